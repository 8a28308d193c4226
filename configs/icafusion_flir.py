r"""ICAFusion on FLIR's aligned pairs from cars, as its authors' script trains it.

AP50 in percent, person / car / bicycle / mean, of icafusion_l:

  81.6 / 89.0 / 66.9 / 79.2 (the paper; AP75 36.9, AP 41.4), 84.9 / 89.8 / 73.8 / 82.8 (the authors'
  weights of 2025); users get 74 to 81, the better ones from COCO's weights

  python main.py --config=configs/icafusion_flir.py:icafusion_l --workdir=RUN \
    --config.dataset.data_dir=DIR --config.weights=yolov5l.pt

DIR holds `visible`, `infrared` and `labels`, each with `train` (4,129 pairs) and `test` (1,013).
yolov5l.pt is YOLOv5's network for COCO (v6), from which both backbones start; without
`config.weights` they start from scratch, as those of ResNet-50 and VGG-16 do in the paper's code.
Models are `icafusion_n`, `_s`, `_m`, `_l`, `_resnet50` and `_vgg16`. Yardsticks are other fusions,
`icafusion_l,nin` and `icafusion_l,add`, and each stream alone, which is YOLOv5: `icafusion_l,rgb`
and `icafusion_l,thermal`. (A user found the thermal one no worse than fusion here, at 42 of AP.)

The recipe is that of the code, with what may not have been meant:

  --config.schedule.epochs_late=0  each epoch after the warm-up has its own rate, not that before
  --config.freeze='()'             positions and the factors of shrinking are trained, as the paper
                                   says
"""

import ml_collections

from configs import recipes


def get_config(argument: str = 'icafusion_l') -> ml_collections.ConfigDict:
  """Returns the experiment of 'MODEL' or 'MODEL,FUSION'; see `recipes.icafusion`."""
  return recipes.icafusion(argument, ['person', 'car', 'bicycle'])
