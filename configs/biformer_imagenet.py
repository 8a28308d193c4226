r"""BiFormer on ImageNet-1k, the recipe of the official code (300 epochs, 224 x 224).

Top-1 of the official README: tiny 81.4, small 83.8, base 84.3, stl 82.7, stl_nchw 82.7.

  python main.py --config=configs/biformer_imagenet.py:biformer_small --workdir=gs://BUCKET/run

The official code also averages weights (--config.ema.decay=0.99996 --config.ema.warmup=False), but
reports and releases the last ones; here the average would be evaluated.

By the compiler's estimates TPUs are fastest with 128 images a chip (8 chips of v5e for this batch),
and without `model.remat` or `model.scan_blocks`: docs/measurements/tpu.md.
"""

import ml_collections

from configs import recipes
from crossattn_jax import models

# Of the official commands; base's from the paper.
_DROP_PATH_RATES = {
  'biformer_tiny': 0.1,
  'biformer_small': 0.15,
  'biformer_base': 0.4,
  'biformer_stl': 0.1,
  'biformer_stl_nchw': 0.1,
  'maxvit_stl': 0.1,
}


def get_config(model: str = 'biformer_small') -> ml_collections.ConfigDict:
  """Returns the experiment of one variant."""
  image_size = models.create_model(model).image_size
  config = recipes.imagenet_classification(
    model, image_size=image_size, epochs=300, warmup_epochs=5
  )
  config.model.drop_path_rate = _DROP_PATH_RATES[model]
  config.model.dtype = 'bfloat16'
  config.dataset.repeated_augmentation = 3
  # The code steps its scheduler with the index of the epoch that has ended.
  config.schedule.epochs_late = 1
  return config
