r"""Semantic FPN on a small ResNet, on procedural scenes, small enough for a CPU.

75.3 % mean IoU and 94.4 % of the pixels of 300 scenes of 64 x 64 pixels, seen in three sizes and
mirrored, after 10 epochs: about six minutes on two idle CPU cores. Needs no network; the scenes
are rendered on first use.
Any backbone and head will do: `--config.task.head=upernet`.

  python main.py --config=configs/semantic_fpn_shapes.py --workdir=/tmp/semantic_fpn_shapes
"""

import ml_collections

from configs import recipes
from crossattn_jax import models


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = recipes.shape_scenes(96)
  # Maps of 24 x 24, 12 x 12, 6 x 6 and 3 x 3.
  config.model = models.model_config(
    'resnet50_deep_stem',
    num_classes=0,
    image_size=(96, 96),
    depths=(1, 1, 1, 1),
    widths=(16, 32, 48, 64),
    stem_widths=(8, 8, 16),
  )
  config.task.head = 'semantic_fpn'
  config.task.head_channels = 32
  config.task.pyramid_channels = 64
  return config
