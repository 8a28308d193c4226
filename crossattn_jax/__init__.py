"""Cross-attention vision systems in JAX and Flax.

model = crossattn_jax.create_model('crossvit_tiny_240')
variables = model.init(jax.random.key(0), images)
logits, features = model.apply(variables, images)
"""

import importlib
import typing

from crossattn_jax import models
from crossattn_jax.models import create_model

if typing.TYPE_CHECKING:
  from crossattn_jax.conversion.pretrained import load_pretrained

__version__ = '0.1.0'
__all__ = ['create_model', 'list_models', 'load_pretrained']


def list_models(pattern: str = '*', *, weights: bool = False) -> list[str]:
  """Returns the names of the models that match a shell-style pattern, sorted.

  Args:
    pattern: such as 'crossvit_*'; with a '+', as in 'biformer_small+*', of backbones with heads.
    weights: only those whose weights `load_pretrained` downloads, from one source or another.

  Examples:
    >>> list_models('swiftformer_*')
    ['swiftformer_l1', 'swiftformer_l3', 'swiftformer_s', 'swiftformer_xs']
    >>> list_models('biformer_small+mask*')
    ['biformer_small+mask_rcnn']
  """
  names = models.list_models(pattern)
  if weights:
    published = importlib.import_module('crossattn_jax.conversion.published')
    names = [name for name in names if set(published.where(name)) - {'by hand'}]
  return names


def __getattr__(name: str):
  # `parity` may import everything, so it is loaded only when asked for.
  if name == 'load_pretrained':
    return importlib.import_module('crossattn_jax.conversion.pretrained').load_pretrained
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
