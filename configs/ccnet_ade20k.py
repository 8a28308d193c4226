r"""CCNet on ADE20K, 150 classes.

Mean IoU on the validation set: 45.22 (ICCV), 45.76 (TPAMI) of the paper, ResNet-101, several scales
and mirror images. The authors did not release code for it; the crops, the batch and the length are
those of mmsegmentation, whose own CCNet reaches 43.71 (ResNet-50: 42.08) from one scale.

  python main.py --config=configs/ccnet_ade20k.py --workdir=gs://BUCKET/run \
    --config.dataset.data_dir=DIR --config.weights=ccnet_resnet101.safetensors

DIR holds `images` and `annotations` of ADEChallengeData2016; see docs/segmentation.md, also for the
weights of the backbone.
"""

import ml_collections

from configs import recipes
from crossattn_jax import models


def get_config(model: str = 'ccnet_resnet101') -> ml_collections.ConfigDict:
  """Returns the experiment of a `ccnet_*`, `pspnet_*` or `deeplabv3_*`."""
  config = recipes.ccnet()
  config.model = models.model_config(model, dtype='bfloat16')
  recipes.ade20k(config)
  config.dataset.image_size = (513, 513)
  config.task.evaluation.scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
  config.task.evaluation.flip = True
  config.batch_size = 16
  config.num_steps = 160_000
  config.optimizer.weight_decay = 5e-4
  config.schedule.minimum = 1e-4
  config.evaluation.every_steps = 16_000
  return config
