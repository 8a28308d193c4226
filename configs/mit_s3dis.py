r"""MIT on S3DIS: from which classes a room holds, and photographs of it, to labels of its points.

The paper has S3DIS (see `configs/minkunet_s3dis.py`), its code has not: the sizes here are those of
a later system of the same line, the rest is `configs/mit_scannet.py`'s. Nothing was trained by it
here.

  python main.py --config=configs/mit_s3dis.py:mit_18a_r50 --workdir=gs://BUCKET/mit \
    --config.dataset.data_dir=S3DIS --config.weights=RESNETV2_50
  python main.py --mode=label --workdir=gs://BUCKET/mit --output=LABELS

Areas 1, 2, 3, 4 and 6 are learnt from: voxels of 4 cm, six photographs of 256 x 256 pixels from
each room's folder `images` (docs/mit.md), every room 16 times an epoch. Supervoxels are grown here,
others take WyPR's.
"""

import ml_collections

from configs import recipes


def get_config(model: str = 'mit_18a_r50') -> ml_collections.ConfigDict:
  """Returns the experiment of a model."""
  return recipes.mit(model, 's3dis')
