r"""RetinaNet on pyramid backbones, on COCO, as the papers train it.

Box AP on val2017 of the official READMEs, 12 epochs:

  crossformer_small 44.4, base 46.2; pp_small 45.1, pp_base 46.6
  biformer_small 47.3 (the released code; the paper: 45.9), base 47.1 (the paper)

  python main.py --config=configs/retinanet_coco.py:crossformer_small --workdir=gs://BUCKET/run \
    --config.dataset.data_dir=DIR --config.weights=crossformer-s.pth

DIR holds `annotations`, `train2017` and `val2017` of COCO (docs/detection.md); weights are those of
the classifier, to start from. Any other backbone with maps at strides 8, 16 and 32 trains by the
same recipe, and for 36 epochs on images of many sizes: 'BACKBONE,3x'.
"""

import ml_collections

from configs import mask_rcnn_coco


def get_config(argument: str = 'crossformer_small') -> ml_collections.ConfigDict:
  """Returns the experiment of a backbone: 'BACKBONE', or 'BACKBONE,3x'."""
  return mask_rcnn_coco.detection(argument, 'retinanet')
