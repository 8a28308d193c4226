"""Cross-attention vision systems in JAX and Flax.

model = crossattn_jax.create_model('crossvit_tiny_240')
variables = model.init(jax.random.key(0), images)
logits, features = model.apply(variables, images)
"""

import importlib
import typing

from crossattn_jax.models import create_model, list_models

if typing.TYPE_CHECKING:
  from crossattn_jax.conversion.pretrained import load_pretrained

__version__ = '0.1.0'
__all__ = ['create_model', 'list_models', 'load_pretrained']


def __getattr__(name: str):
  # `parity` may import everything, so it is loaded only when asked for.
  if name == 'load_pretrained':
    return importlib.import_module('crossattn_jax.conversion.pretrained').load_pretrained
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
