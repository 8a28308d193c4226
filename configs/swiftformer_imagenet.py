r"""SwiftFormer on ImageNet-1k, the recipe of the official code (300 epochs, 224 x 224).

Top-1 of the paper: XS 75.7, S 78.5, L1 80.9, L3 83.0, with hard distillation from RegNetY-16GF.

  python -m crossattn_jax.parity convert regnety_160 regnety_160-a5fe301d.pth teacher.safetensors
  python main.py --config=configs/swiftformer_imagenet.py:swiftformer_l1 --workdir=gs://BUCKET/run \
    --config.task.distillation.teacher_weights=teacher.safetensors

The first line converts https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth (DeiT's).
Without a teacher the second head goes: --config.task.distillation.kind=none
--config.model.distillation=False. The paper states a learning rate of 1e-3. The official code also
averages weights (decay 0.99996), but reports and releases the last ones; here the average would be
evaluated.
"""

import ml_collections

from configs import recipes
from crossattn_jax import models
from crossattn_jax.models import swiftformer

# The official README: the smaller a variant, the weaker its augmentation.
_WITHOUT_RAND_AUGMENT = ('swiftformer_xs',)
_WITHOUT_MIXING = ('swiftformer_xs', 'swiftformer_s')


def get_config(model: str = 'swiftformer_l1') -> ml_collections.ConfigDict:
  """Returns the experiment of one variant."""
  image_size = models.create_model(model).image_size
  config = recipes.imagenet_classification(
    model, image_size=image_size, epochs=300, warmup_epochs=5
  )
  config.model.dtype = 'bfloat16'
  config.batch_size = 2048
  config.schedule.learning_rate = 2e-3
  config.schedule.reference_batch_size = None
  # The code steps its scheduler with the index of the epoch that has ended.
  config.schedule.epochs_late = 1
  config.optimizer.weight_decay = 0.025
  config.optimizer.clip_adaptive = 0.01
  config.optimizer.clip_adaptive_elements = swiftformer.CHANNEL_FACTORS
  config.optimizer.decay_include = swiftformer.CHANNEL_FACTORS
  config.dataset.repeated_augmentation = 3
  if model in _WITHOUT_RAND_AUGMENT:
    # The code's colour jitter takes its place.
    config.dataset.augmentation.rand_augment.num_ops = 0
  if model in _WITHOUT_MIXING:
    config.task.mixup_alpha = 0.0
    config.task.cutmix_alpha = 0.0
  config.task.distillation.kind = 'hard'
  config.task.distillation.teacher = models.model_config('regnety_160', dtype='bfloat16')
  return config
