r"""SwiftFormer on scikit-learn's handwritten digits: a convolutional pyramid in minutes on a CPU.

Test accuracy: 99.2 % (355 images, seed 0) after 20 epochs. Needs no network.

  python main.py --config=configs/swiftformer_digits.py --workdir=/tmp/swiftformer_digits

Taught by a run of configs/biformer_digits.py (98.6 %) as well as by the labels, 99.7 %:

  python main.py --config=configs/swiftformer_digits.py:taught --workdir=/tmp/swiftformer_taught \
    --config.task.distillation.teacher_weights=/tmp/biformer_digits
"""

import ml_collections

from configs import biformer_digits
from crossattn_jax import models
from crossattn_jax.models import swiftformer


def get_config(variant: str = 'alone') -> ml_collections.ConfigDict:
  """Returns the experiment of a student that is 'alone' or 'taught'."""
  if variant not in ('alone', 'taught'):
    raise ValueError(f"unknown variant {variant!r} of swiftformer_digits.py; 'alone' or 'taught'")
  config = biformer_digits.get_config()
  teacher = config.model.copy_and_resolve_references()
  # The 8 x 8 images, enlarged to 32 x 32, give maps of 8 x 8, 4 x 4, 2 x 2 and 1 x 1.
  config.model = models.model_config(
    'swiftformer_xs',
    image_size=(32, 32),
    widths=(24, 32, 64, 96),
    depths=(2, 2, 2, 2),
    num_classes=10,
    num_channels=1,
    distillation=variant == 'taught',
  )
  config.num_epochs = 20.0
  config.optimizer.clip_norm = None
  config.optimizer.clip_adaptive = 0.01
  config.optimizer.clip_adaptive_elements = swiftformer.CHANNEL_FACTORS
  config.optimizer.decay_include = swiftformer.CHANNEL_FACTORS
  if variant == 'taught':
    config.task.distillation.kind = 'hard'
    config.task.distillation.teacher = teacher
  return config
