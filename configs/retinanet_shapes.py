r"""RetinaNet on a small ResNet, on procedural scenes, small enough for a CPU.

Box AP 0.653, AP50 0.917 on 200 scenes of 160 x 160 pixels after 12 epochs: about 7 minutes on two
idle CPU cores. Needs no network; the scenes are rendered on first use.

  python main.py --config=configs/retinanet_shapes.py --workdir=/tmp/retinanet_shapes
"""

import ml_collections

from configs import recipes
from crossattn_jax import models


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = recipes.detection_scenes()
  config.model = models.model_config(
    'resnet50_deep_stem+retinanet',
    image_size=(160, 160),
    depths=(1, 1, 1, 1),
    widths=(16, 32, 48, 64),
    stem_widths=(16, 16, 32),
    pyramid_channels=64,
    head_channels=64,
    head_convs=2,
    # Objects are 20 to 70 pixels wide, and the finest map has a stride of 8.
    anchor_scale=2.0,
  )
  return config
