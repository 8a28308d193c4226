r"""Mask R-CNN on pyramid backbones, on COCO, as the papers train it.

Box AP / mask AP on val2017 of the official READMEs and papers, 12 epochs (1x) and 36 (3x):

  crossformer_small 45.4 / 41.4, base 47.2 / 42.7; pp_small 46.4 / 42.1, pp_base 47.7 / 43.2
  crossformer_small,3x 48.7 / 43.9, base,3x 49.8 / 44.5
  biformer_small 48.1 / 43.6 (the released code; the paper: 47.8 / 43.2), base 48.6 / 43.7
  swiftformer_l1 41.2 / 38.1, l3 42.7 / 39.1

  python main.py --config=configs/mask_rcnn_coco.py:crossformer_small --workdir=gs://BUCKET/run \
    --config.dataset.data_dir=DIR --config.weights=crossformer-s.pth

DIR holds `annotations`, `train2017` and `val2017` of COCO (docs/detection.md); weights are those of
the classifier, to start from. The authors of CrossFormer published no configuration of 3x: images,
rate and drops are those that are usual for it.
"""

import ml_collections

from configs import crossformer_imagenet, recipes

_BIFORMER_DROP_PATH_RATES = {'biformer_small': 0.2, 'biformer_base': 0.3}


def get_config(argument: str = 'crossformer_small') -> ml_collections.ConfigDict:
  """Returns the experiment of a backbone: 'BACKBONE', or 'BACKBONE,3x'."""
  return detection(argument, 'mask_rcnn')


def detection(argument: str, head: str) -> ml_collections.ConfigDict:
  """The experiment of a backbone with any head of detection."""
  model, _, length = argument.partition(',')
  length = length or '1x'
  config = recipes.coco_detection(f'{model}+{head}', length)
  config.dataset.masks = head == 'mask_rcnn'
  if model.startswith('biformer'):
    config.model.update(
      regions_per_side=(16, 16, 16, 16),
      padding='input',
      frozen_norm=True,
      drop_path_rate=_BIFORMER_DROP_PATH_RATES.get(model, 0.1),
    )
    if head == 'mask_rcnn':
      config.optimizer.weight_decay = 0.05
      # All that is called a norm in PyTorch: not batch norms.
      config.optimizer.decay_exclude = (
        r'backbone/stage_\d/block_\d+/norm\d/.*',
        r'backbone/output_norm_\d/.*',
      )
  elif model.startswith('crossformer'):
    # The groups whose cost is that of the published networks.
    wide = length == '3x'
    config.model.update(
      lda='global',
      group_sizes=(14, 14, 7, 7) if wide else (7, 7, 7, 7),
      intervals=(16, 8, 2, 1) if wide else (8, 4, 2, 1),
      group_rule='constant',
      drop_path_rate=crossformer_imagenet.DROP_PATH_RATES[model],
    )
  elif model.startswith('swiftformer'):
    config.model.distillation = False
    config.batch_size = 32
    config.schedule.learning_rate = 2e-4
    config.schedule.warmup_start = 2e-10
  return config
