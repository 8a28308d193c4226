r"""MIT on ScanNet: from which classes a scan holds, and photographs of it, to labels of its points.

Only `configs/minkunet_scannet.py`, which learns from these labels, has published results. Nothing
was trained by this recipe here.

  python main.py --config=configs/mit_scannet.py:mit_18a_r50 --workdir=gs://BUCKET/mit \
    --config.dataset.data_dir=SCANNET --config.weights=RESNETV2_50
  python main.py --mode=label --workdir=gs://BUCKET/mit --output=LABELS

SCANNET is as docs/mit.md says, RESNETV2_50 timm's `resnetv2_50.a1h_in1k`, from which the network
for photographs starts. Models are `mit_18a_r50` (the authors'), `mit_34c_r50`, `mit_18a_r101` and
`mit_34c_r101`, and what sees points or photographs alone, `mit_points` and `mit_images`.

The recipe is that of the code: 32 scans a batch, every scan five times an epoch, 1000 epochs (500
in the paper) in periods of 20. What may not have been meant, and how to have it otherwise:

  --config.schedule.epoch_starts_ahead=False  no step has the rate of an epoch later
  --config.model.mask_empty=True              supervoxels without a voxel take no part
  --config.optimizer.decay_vectors=False      norms, biases and tokens are not decayed

Batch statistics are of all scans of a batch; the authors' are of the four of a GPU. Scans with more
voxels than the largest of `dataset.buckets` are cropped.
"""

import ml_collections

from configs import recipes


def get_config(model: str = 'mit_18a_r50') -> ml_collections.ConfigDict:
  """Returns the experiment of a model."""
  return recipes.mit(model, 'scannet')
