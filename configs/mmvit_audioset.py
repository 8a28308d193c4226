r"""MMViT on AudioSet, AST's recipe; the paper does not state its own.

No mean average precision to compare with: see docs/mmvit.md, which also says how the clips lie in
the folder, and how to start from an image model.

  python main.py --config=configs/mmvit_audioset.py:full --workdir=gs://BUCKET/run \
    --config.dataset.data_dir=/data/audioset --config.weights=mmvit_base_audio.safetensors
"""

import ml_collections

from crossattn_jax import models
from crossattn_jax.training import config as config_lib

# Clips: learning rate, epochs, epochs that halve it, those whose weights AST averages.
_RECIPES = {
  'full': (1e-5, 5, (2, 3, 4)),
  '20k': (5e-5, 25, (10, 15, 20)),
}


def get_config(clips: str = 'full') -> ml_collections.ConfigDict:
  """Returns the experiment.

  Args:
    clips: 'full', the 2 million training clips, or '20k', the balanced ones. Both rates are for
      models that start from ImageNet's weights.
  """
  if clips not in _RECIPES:
    raise ValueError(f'unknown set of clips {clips!r}; there are {", ".join(_RECIPES)}')
  learning_rate, epochs, boundaries = _RECIPES[clips]
  config = config_lib.default_config('audio_classification')
  config.model = models.model_config('mmvit_base_audio', drop_path_rate=0.1, dtype='bfloat16')
  config.dataset.name = 'wav_folder'
  config.dataset.train_split = 'unbalanced_train' if clips == 'full' else 'balanced_train'
  config.dataset.eval_split = 'eval'
  config.dataset.balanced = clips == 'full'
  config.dataset.unreadable = 'skip'
  config.batch_size = 12
  config.num_epochs = float(epochs)
  config.optimizer.name = 'adam'
  config.optimizer.beta1 = 0.95
  config.optimizer.beta2 = 0.999
  config.optimizer.weight_decay = 5e-7
  config.optimizer.decay_vectors = True
  config.schedule.name = 'step'
  config.schedule.learning_rate = learning_rate
  config.schedule.boundary_epochs = boundaries
  config.schedule.factor = 0.5
  config.schedule.warmup_steps = 1000
  config.schedule.decay_after_warmup = False
  config.evaluation.every_epochs = 1.0
  config.logging.every_steps = 50
  return config
