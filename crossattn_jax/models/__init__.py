"""One file per system, and the registry of named variants."""

import importlib
import pkgutil

from crossattn_jax.models.registry import create_model, list_models, model_config, register

__all__ = ['create_model', 'list_models', 'model_config', 'register']

# Every module of this room registers its variants.
for _module in pkgutil.walk_packages(__path__, f'{__name__}.'):
  importlib.import_module(_module.name)
