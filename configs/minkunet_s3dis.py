r"""MinkUNet on S3DIS in voxels of 4 cm, from the labels of `configs/mit_s3dis.py`.

mIoU of area 5 in percent, of MIT as others have it in their tables: 27.7. There is no recipe of its
authors; this is that of `configs/minkunet_scannet.py` with the sizes of `configs/mit_s3dis.py`.
Nothing was trained by it here.

  python main.py --config=configs/minkunet_s3dis.py:minkunet18a --workdir=gs://BUCKET/minkunet \
    --config.dataset.data_dir=S3DIS --config.dataset.labels_dir=LABELS
  python main.py --mode=eval --workdir=gs://BUCKET/minkunet --config.dataset.evaluation.votes=7
"""

import ml_collections

from configs import recipes


def get_config(model: str = 'minkunet18a') -> ml_collections.ConfigDict:
  """Returns the experiment of a model."""
  return recipes.minkunet(model, 's3dis')
