r"""ICAFusion on LLVIP's pedestrians in the dark, as its authors' script trains it.

They have configurations of icafusion_l and of icafusion_l,nin for it; we know of no result.

  python main.py --config=configs/icafusion_llvip.py:icafusion_l --workdir=RUN \
    --config.dataset.data_dir=LLVIP --config.weights=yolov5l.pt

LLVIP is the folder as it is released: `visible` and `infrared` with `train` (12,025 pairs) and
`test` (3,463), and `Annotations`. The docstring of `configs/icafusion_flir.py` says more of weights
and options.
"""

import ml_collections

from configs import recipes


def get_config(argument: str = 'icafusion_l') -> ml_collections.ConfigDict:
  """Returns the experiment of 'MODEL' or 'MODEL,FUSION'; see `recipes.icafusion`."""
  return recipes.icafusion(argument, ['person'])
