r"""The sketch localizer on COCO's photos and QuickDraw's drawings: 42 categories learnt, 14 not.

Nobody has published weights or logs; the paper's abstract says how much higher its AP is than that
of others, the numbers themselves are in the paper alone. Nothing was trained by this recipe here.

  python main.py --config=configs/sketch_localizer_quickdraw.py:sketch_localizer_tiny,repaired \
    --workdir=gs://BUCKET/run --config.dataset.data_dir=COCO \
    --config.dataset.sketches.data_dir=QUICKDRAW \
    --config.weights=swin_tiny_patch4_window7_224.pth,SKETCH_CLASSIFIER

COCO holds `annotations`, `train2017` and `val2017`, QUICKDRAW `elephant.ndjson` and the others of
Google's simplified drawings (docs/sketch_localizer.md). The backbone starts from Swin's ImageNet
weights, the sketches' ResNet from a classifier of drawings, or from torchvision's of images.

':sketch_localizer_tiny' is the release: its schedule divides the rate by ten before the first step
and once more after four epochs. ':sketch_localizer_tiny,nominal' trains at the rate that its
command names, ':sketch_localizer_tiny,repaired' as others made it train, for 50 epochs.
"""

import ml_collections

from configs import recipes


def get_config(argument: str = 'sketch_localizer_tiny') -> ml_collections.ConfigDict:
  """Returns the experiment of 'MODEL' or 'MODEL,RECIPE'; see `recipes.sketch_localizer`."""
  return recipes.sketch_localizer(argument, 'quickdraw')
