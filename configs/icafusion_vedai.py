r"""ICAFusion on VEDAI's vehicles from the air, as its authors' script trains it: without mosaics.

AP50 / AP in percent: icafusion_l 76.62 / 44.93 (the paper).

  python main.py --config=configs/icafusion_vedai.py:icafusion_l --workdir=RUN \
    --config.dataset.data_dir=DIR --config.weights=yolov5l.pt

DIR holds `visible`, `infrared` and `labels`, each with `train` and `test`, of one of the ten folds
(the authors' first one has no object of one of the classes, a user says). The docstring of
`configs/icafusion_flir.py` says more of weights and options.
"""

import ml_collections

from configs import recipes

_CLASSES = ('car', 'truck', 'pickup', 'tractor', 'camper', 'ship', 'van', 'plane', 'other')


def get_config(argument: str = 'icafusion_l') -> ml_collections.ConfigDict:
  """Returns the experiment of 'MODEL' or 'MODEL,FUSION'; see `recipes.icafusion`."""
  config = recipes.icafusion(argument, _CLASSES)
  config.dataset.augmentation.mosaic = 0.0
  return config
