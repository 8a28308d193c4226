r"""ICAFusion on KAIST's pedestrians by day and by night, as its authors' script trains it.

Log-average miss rates in percent, all / day / night, lower is better:

  icafusion_l 7.17 / 6.82 / 7.85 (the paper); of the released weights 7.35 for all (a user)
  icafusion_l,nin 9.26 for all (a user)

  python main.py --config=configs/icafusion_kaist.py:icafusion_l --workdir=RUN \
    --config.dataset.data_dir=DIR --config.weights=yolov5l.pt \
    --config.task.miss_rate.annotations=KAIST_annotation.json

DIR holds `visible`, `infrared` and `labels`, each with `train` (7,601 pairs) and `test` (2,252, in
the order of the annotations). yolov5l.pt is YOLOv5's network for COCO (v6), from which both
backbones start. The docstring of `configs/icafusion_flir.py` says more of weights and options.
"""

import ml_collections

from configs import recipes


def get_config(argument: str = 'icafusion_l') -> ml_collections.ConfigDict:
  """Returns the experiment of 'MODEL' or 'MODEL,FUSION'; see `recipes.icafusion`."""
  return recipes.icafusion(argument, ['person'])
