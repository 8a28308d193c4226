"""Recipes that several experiments share."""

import ml_collections

from crossattn_jax import models
from crossattn_jax.training import config as config_lib


def imagenet_classification(
  model: str, image_size: tuple[int, int], epochs: float, warmup_epochs: float
) -> ml_collections.ConfigDict:
  """The DeiT recipe for ImageNet-1k (Touvron et al. 2021, arXiv 2012.12877, table 9).

  AdamW with cosine decay, RandAugment, random erasing, mixup, CutMix, label smoothing.

  Args:
    model: name of a registered model.
    image_size: (height, width) of the images that the model gets.
    epochs: of training.
    warmup_epochs: of linear warm-up, part of `epochs`.

  Returns:
    A complete experiment.
  """
  config = config_lib.default_config('classification')
  config.model = models.model_config(model)
  config.batch_size = 1024
  config.num_epochs = float(epochs)

  config.dataset.name = 'imagenet2012'
  config.dataset.train_split = 'train'
  config.dataset.eval_split = 'validation'
  config.dataset.image_size = image_size

  config.task.label_smoothing = 0.1
  config.task.mixup_alpha = 0.8
  config.task.cutmix_alpha = 1.0

  config.optimizer.name = 'adamw'
  config.optimizer.weight_decay = 0.05

  config.schedule.name = 'cosine'
  config.schedule.learning_rate = 5e-4
  config.schedule.reference_batch_size = 512
  config.schedule.minimum = 1e-5
  config.schedule.warmup_epochs = float(warmup_epochs)
  config.schedule.warmup_start = 1e-6
  config.schedule.decay_after_warmup = False
  config.schedule.per_epoch = True

  config.evaluation.every_epochs = 1.0
  config.logging.every_steps = 50
  return config
