r"""The sketch localizer on COCO's photos and Sketchy's drawings: 22 categories learnt, 5 not.

  python main.py --config=configs/sketch_localizer_sketchy.py:sketch_localizer_tiny,repaired \
    --workdir=gs://BUCKET/run --config.dataset.data_dir=COCO \
    --config.dataset.sketches.data_dir=SKETCHY \
    --config.weights=swin_tiny_patch4_window7_224.pth,SKETCH_CLASSIFIER

SKETCHY holds a folder of drawings for each class, as `sketch/tx_000000000000` of the database does.
`configs/sketch_localizer_quickdraw.py` says more of weights and recipes. The authors had
another set of unseen classes earlier:
`--config.dataset.unseen_classes='("elephant","umbrella","apple","car")'`.
"""

import ml_collections

from configs import recipes


def get_config(argument: str = 'sketch_localizer_tiny') -> ml_collections.ConfigDict:
  """Returns the experiment of 'MODEL' or 'MODEL,RECIPE'; see `recipes.sketch_localizer`."""
  config = recipes.sketch_localizer(argument, 'sketchy')
  # Whatever the recipe, these are black on white.
  config.dataset.sketches.style = 'repaired'
  return config
