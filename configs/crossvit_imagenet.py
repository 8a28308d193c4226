r"""CrossViT on ImageNet-1k, the recipe of the official code (300 epochs, 240 x 240).

Top-1 of the paper (tables 2 and 4): tiny 73.4, small 81.0, base 82.2, 9 73.9, 15 81.5, 18 82.5,
9 dagger 77.1, 15 dagger 82.3, 18 dagger 82.8, 18 with T2T 83.0.

  python main.py --config=configs/crossvit_imagenet.py:crossvit_small_240 --workdir=gs://BUCKET/run

The `*_408` and `*_504` variants are fine-tuned for 30 epochs from weights of their 240 variant,
whose position embeddings are resized (docs/parity.md). Top-1: 15 dagger 408 83.5, 18 dagger 408
83.9, 18 dagger 504 84.1. The paper gives the epochs only; rate and decay are those of DeiT.

  python main.py --config=configs/crossvit_imagenet.py:crossvit_15_dagger_408 \
    --config.weights=crossvit_15_dagger_408_resized.safetensors --workdir=gs://BUCKET/run
"""

import ml_collections

from configs import recipes
from crossattn_jax import models


def get_config(model: str = 'crossvit_small_240') -> ml_collections.ConfigDict:
  """Returns the experiment of one variant."""
  image_size = models.create_model(model).image_size
  config = recipes.imagenet_classification(
    model, image_size=image_size, epochs=300, warmup_epochs=30
  )
  config.model.drop_path_rate = 0.1
  config.model.dtype = 'bfloat16'
  # On for all variants in the code; the paper has it for CrossViT-18 only.
  config.dataset.repeated_augmentation = 3
  # The code steps its scheduler with the index of the epoch that has ended.
  config.schedule.epochs_late = 1
  if image_size[0] > 240:
    config.num_epochs = 30.0
    config.schedule.name = 'constant'
    config.schedule.learning_rate = 5e-6
    config.schedule.warmup_epochs = 0.0
    config.schedule.epochs_late = 0
    config.optimizer.weight_decay = 1e-8
    config.dataset.crop_fraction = 1.0
  return config
