r"""MinkUNet on ScanNet in voxels of 2 cm, from the labels of `configs/mit_scannet.py`.

mIoU in percent, of MIT as others have it in their tables: 35.8 of val; 31.7 of test (paper). The
authors' log, `minkunet18a`, one look at each scan: 36.9 in the best of 200 epochs, chosen by val,
34.6 in the last; their best weights, eight looks: 38.5. With true labels a MinkUNet has 72.2.
Nothing was trained by this recipe here.

  python main.py --config=configs/minkunet_scannet.py:minkunet18a --workdir=gs://BUCKET/minkunet \
    --config.dataset.data_dir=SCANNET --config.dataset.labels_dir=LABELS
  python main.py --mode=eval --workdir=gs://BUCKET/minkunet --config.dataset.evaluation.votes=7

LABELS are what `--mode=label` wrote; without `dataset.labels_dir` the true ones are learnt from.
Any `minkunet14a` to `minkunet34c` will do (the authors' settings name 34C, and train 18A).

The recipe is that of the code: 24 scans a batch, every scan five times an epoch. Other than there,
scans are moved along x, y and z, not x and y alone; batch statistics are of all scans of a batch,
not of the three of a GPU; val is measured every tenth epoch, not in each; scans with more voxels
than the largest of `dataset.buckets` are cropped.
"""

import ml_collections

from configs import recipes


def get_config(model: str = 'minkunet18a') -> ml_collections.ConfigDict:
  """Returns the experiment of a model."""
  return recipes.minkunet(model, 'scannet')
