r"""CrossFormer and CrossFormer++ on ImageNet-1k, the official recipe (300 epochs, 224 x 224).

Top-1 of the official README: tiny 81.5, small 82.5, base 83.4, large 84.0; CrossFormer++: pp_small
83.2, pp_base 84.2, pp_large 84.7, pp_huge 84.9.

  python main.py --config=configs/crossformer_imagenet.py:crossformer_small --workdir=gs://BUCKET/run
"""

import ml_collections

from configs import recipes
from crossattn_jax import models

DROP_PATH_RATES = {
  'crossformer_tiny': 0.1,
  'crossformer_small': 0.2,
  'crossformer_base': 0.3,
  'crossformer_large': 0.5,
  'crossformer_pp_small': 0.2,
  'crossformer_pp_base': 0.3,
  'crossformer_pp_large': 0.5,
  'crossformer_pp_huge': 0.5,
}


def get_config(model: str = 'crossformer_small') -> ml_collections.ConfigDict:
  """Returns the experiment of one variant."""
  config = recipes.imagenet_classification(
    model,
    image_size=models.create_model(model).image_size,
    epochs=300,
    warmup_epochs=20,
  )
  config.model.drop_path_rate = DROP_PATH_RATES[model]
  config.model.dtype = 'bfloat16'
  config.optimizer.clip_norm = 5.0
  # By step, and the code steps its scheduler with the index of the update that was made.
  config.schedule.per_epoch = False
  config.schedule.steps_late = 1
  return config
