r"""Semantic FPN and UPerNet on pyramid backbones, on ADE20K, as the papers train them.

Mean IoU on the validation set, one scale, of the official READMEs and papers:

  crossformer_small+semantic_fpn 46.4, base 48.0, large 49.1, pp_small 47.4
  crossformer_small+upernet 47.6, base 49.7, large 50.4, pp_small 49.4
  biformer_small+semantic_fpn 48.9, base 49.9; biformer_small+upernet 49.8, base 51.0

  python main.py --config=configs/segmentation_ade20k.py:biformer_small+upernet \
    --workdir=gs://BUCKET/run --config.dataset.data_dir=DIR --config.weights=biformer.safetensors

DIR holds `images` and `annotations` of ADEChallengeData2016; docs/segmentation.md says how to
convert the weights of a classifier to start from. With UPerNet several scales and mirror images:
--config.task.evaluation.flip --config.task.evaluation.scales=0.5,0.75,1.0,1.25,1.5,1.75
SwiftFormer's paper has Semantic FPN only.
"""

import ml_collections

from configs import crossformer_imagenet, recipes
from crossattn_jax import models
from crossattn_jax.training import config as config_lib

# With settings of their own for it.
SYSTEMS = ('biformer', 'crossformer', 'swiftformer')

_BIFORMER_DROP_PATH_RATES = {
  'semantic_fpn': {'biformer_small': 0.15, 'biformer_base': 0.3},
  'upernet': {'biformer_small': 0.3, 'biformer_base': 0.4},
}


def get_config(network: str = 'biformer_small+semantic_fpn') -> ml_collections.ConfigDict:
  """Returns the experiment of a backbone and a head, joined by '+'."""
  model, _, head = network.partition('+')
  if head not in _BIFORMER_DROP_PATH_RATES:
    raise ValueError(f"{network!r} must be BACKBONE+HEAD, such as '{model}+upernet'")
  config = config_lib.default_config('segmentation')
  config.model = models.model_config(network, dtype='bfloat16')
  recipes.ade20k(config)
  config.dataset.image_size = (512, 512)
  config.dataset.evaluation.stretch_to = 32
  config.task.count_ignored = True
  config.optimizer.name = 'adamw'
  config.schedule.name = 'polynomial'
  config.schedule.decay_after_warmup = False
  config.schedule.warmup = 'of_schedule'
  if head == 'upernet':
    config.batch_size = 16
    config.num_steps = 160_000
    config.optimizer.weight_decay = 0.01
    # All that is called a norm in PyTorch: not batch norms and biases.
    config.optimizer.decay_vectors = True
    config.schedule.learning_rate = 6e-5
    config.schedule.warmup_steps = 1500
    config.schedule.warmup_start = 6e-11
  else:
    config.batch_size = 32
    config.num_steps = 80_000
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_vectors = True
    config.schedule.learning_rate = 2e-4
    config.schedule.power = 0.9
  system = model.partition('_')[0]
  {'biformer': _biformer, 'crossformer': _crossformer, 'swiftformer': _swiftformer}[system](
    config, model, head
  )
  config.evaluation.every_steps = config.num_steps // 10
  return config


def _biformer(config: ml_collections.ConfigDict, model: str, head: str) -> None:
  config.model.update(
    regions_per_side=(8, 8, 8, 8),
    padding='input',
    drop_path_rate=_BIFORMER_DROP_PATH_RATES[head].get(model, 0.1),
  )
  if head == 'upernet':
    config.optimizer.decay_exclude = (
      r'backbone/stage_\d/block_\d+/norm\d/.*',
      r'backbone/output_norm_\d/.*',
    )
    # Its recipe tests images as they are: each size is a program of its own.
    config.dataset.evaluation.stretch_to = 1
  else:
    config.schedule.name = 'cosine'
    config.schedule.minimum = 2e-12
    config.schedule.warmup_steps = 1000
    config.schedule.warmup_start = 2e-5


def _crossformer(config: ml_collections.ConfigDict, model: str, head: str) -> None:
  # The groups whose cost is that of the published networks.
  wide = head == 'semantic_fpn' and model != 'crossformer_pp_base'
  config.model.update(
    lda='global',
    group_sizes=(14, 14, 7, 7) if wide else (7, 7, 7, 7),
    intervals=(16, 8, 2, 1) if wide else (8, 4, 2, 1),
    group_rule='constant',
    drop_path_rate=crossformer_imagenet.DROP_PATH_RATES[model],
  )
  if head == 'upernet':
    config.optimizer.decay_exclude = (
      r'backbone/stage_\d/block_\d+/norm\d/.*',
      r'backbone/(embedding|downsampling_\d)/norm/.*',
    )
  else:
    config.batch_size = 16
    config.schedule.learning_rate = 1e-4


def _swiftformer(config: ml_collections.ConfigDict, model: str, head: str) -> None:
  del model
  config.model.distillation = False
  if head == 'semantic_fpn':
    config.num_steps = 40_000
