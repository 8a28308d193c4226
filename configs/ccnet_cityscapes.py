r"""CCNet on Cityscapes, the official recipe (60000 steps, crops of 769 x 769).

Mean IoU on the validation set with R = 2 and OHEM, three runs of the authors: 78.67, 80.00, 79.83;
without OHEM 79.74, 79.22, 78.40 (--config.task.loss=cross_entropy). On the test set 79.01 from
whole images of one scale, 81.4 (ICCV) and 81.9 (TPAMI) with several scales and mirror images. Users
of the authors' code report PSPNet at 78.0 to 78.5.

  python main.py --config=configs/ccnet_cityscapes.py --workdir=gs://BUCKET/run \
    --config.weights=ccnet_resnet101.safetensors

The weights to start from are the backbone's of ImageNet; docs/segmentation.md says how to convert
them. The data set is TFDS's `cityscapes`, or the released folders
(--config.dataset.name=cityscapes_folder --config.dataset.data_dir=DIR). The category consistent
loss of the journal version is --config.model.embedding=16 --config.task.consistency_weight=1.
"""

import ml_collections

from configs import recipes
from crossattn_jax import models


def get_config(model: str = 'ccnet_resnet101') -> ml_collections.ConfigDict:
  """Returns the experiment of a `ccnet_*`, `pspnet_*` or `deeplabv3_*`."""
  config = recipes.ccnet()
  config.model = models.model_config(model, dtype='bfloat16')
  config.dataset.name = 'cityscapes'
  config.dataset.image_size = (769, 769)
  config.task.loss = 'ohem'
  config.task.evaluation.mode = 'sliding'
  config.batch_size = 8
  config.num_steps = 60000
  config.evaluation.every_steps = 10000
  return config
