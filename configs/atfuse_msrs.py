r"""ATFuse on MSRS, the recipe of the authors' code.

1,083 pairs of visible and infrared images, 20 random crops of 128 x 128 of each per epoch, 2,000
epochs, luma only. The authors trained on a set of their own; the paper's tables are not reproduced.

  python main.py --config=configs/atfuse_msrs.py --workdir=gs://BUCKET/atfuse \
    --config.dataset.data_dir=/data/MSRS
"""

import ml_collections

from crossattn_jax import models
from crossattn_jax.training import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = config_lib.default_config('image_fusion')
  config.model = models.model_config('atfuse')
  config.dataset.name = 'msrs'
  config.dataset.train_split = 'train'
  config.dataset.eval_split = 'test'
  config.dataset.image_size = (128, 128)
  config.dataset.crops_per_pair = 20
  config.batch_size = 16
  config.num_epochs = 2000.0
  config.optimizer.name = 'adamw'
  config.optimizer.weight_decay = 0.0
  config.optimizer.max_loss_ratio = 4.0
  config.schedule.name = 'step'
  config.schedule.learning_rate = 1e-4
  config.schedule.boundary_epochs = (50, 100, 200, 400)
  config.schedule.factor = 0.5
  config.evaluation.batch_size = 16
  config.evaluation.every_epochs = 50.0
  config.logging.every_steps = 50
  config.checkpoint.use = 'best'
  return config
