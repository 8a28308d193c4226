r"""ICAFusion on procedural scenes at night, small enough for a CPU, or one of its streams alone.

In each image a third of the objects does not show: in the visible one those in the dark, in the
thermal one those that are as warm as the ground. AP50 0.903, AP 0.685 on 300 scenes of 96 x 96
pixels after 6 epochs; of one stream alone AP50 0.622 (RGB) and 0.640 (thermal). About 7 minutes on
two idle CPU cores. Needs no network; the scenes are rendered on first use.

  python main.py --config=configs/icafusion_shapes.py --workdir=/tmp/icafusion_shapes

`configs/icafusion_shapes.py:rgb` and `:thermal` train the same network without fusion on one image.
"""

import ml_collections

from configs import recipes
from crossattn_jax import models
from crossattn_jax.training import config as config_lib


def get_config(modalities: str = 'rgb,thermal') -> ml_collections.ConfigDict:
  """Returns the experiment.

  Args:
    modalities: which images the network looks at: 'rgb,thermal', 'rgb' or 'thermal'.
  """
  config = config_lib.default_config('paired_detection')
  config.model = models.model_config(
    'icafusion_n',
    modalities=tuple(modalities.split(',')),
    image_size=(96, 96),
    # Maps are 12, 6 and 3 cells wide.
    grids=((6, 6), (6, 6), (3, 3)),
    # Those that suit objects 8 to 38 pixels wide.
    anchor_sizes=(
      ((13.0, 13.0), (16.0, 16.0), (18.0, 18.0)),
      ((21.0, 21.0), (24.0, 24.0), (30.0, 24.0)),
      ((27.0, 28.0), (30.0, 30.0), (34.0, 34.0)),
    ),
    detection_prior=True,
  )
  config.dataset.name = 'shape_scenes/night'
  config.dataset.image_size = (96, 96)
  config.dataset.max_boxes = 8
  config.dataset.cache = True
  augmentation = config.dataset.augmentation
  augmentation.mosaic = 0.0
  augmentation.hue = augmentation.saturation = augmentation.value = 0.0
  augmentation.flip = augmentation.flip_vertical = 0.5
  config.dataset.evaluation.rectangular = False
  config.task.loss.reduction = 'mean'
  config.batch_size = 16
  config.num_epochs = 6.0
  recipes.use_muon(config)
  if len(config.model.modalities) == 2:
    # Half of Muon's work would be for a map of 3 x 3 cells.
    config.optimizer.muon_exclude = ('fusion_5/.*',)
    config.optimizer.multipliers = (('fusion_5/.*', 0.2),)
  config.schedule.name = 'cosine'
  config.schedule.learning_rate = 5e-3
  config.schedule.warmup_steps = 50
  config.evaluation.batch_size = 20
  config.evaluation.every_epochs = 3.0
  config.logging.every_steps = 20
  return config
