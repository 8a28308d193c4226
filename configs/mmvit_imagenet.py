r"""MMViT on ImageNet-1k, MViT's recipe (300 epochs, 224 x 224); the paper does not state its own.

No top-1 to compare with: see docs/mmvit.md.

  python main.py --config=configs/mmvit_imagenet.py:mmvit_base --workdir=gs://BUCKET/run
"""

import ml_collections

from configs import recipes
from crossattn_jax import models


def get_config(model: str = 'mmvit_base') -> ml_collections.ConfigDict:
  """Returns the experiment of one variant."""
  image_size = models.create_model(model).image_size
  config = recipes.imagenet_classification(
    model, image_size=image_size, epochs=300, warmup_epochs=70
  )
  config.model.drop_path_rate = 0.1
  config.model.dtype = 'bfloat16'
  config.dataset.augmentation.rand_augment.num_ops = 6
  config.optimizer.clip_norm = 1.0
  config.schedule.learning_rate = 2.5e-4
  config.schedule.reference_batch_size = 256
  config.schedule.minimum = 1e-6
  config.schedule.warmup_start = 1e-8
  config.schedule.decay_after_warmup = True
  config.schedule.per_epoch = False
  return config
