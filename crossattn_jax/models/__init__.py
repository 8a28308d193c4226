"""One file per system, and the registry of named variants."""

from crossattn_jax.models import (  # noqa: F401  (register their variants)
  atfuse,
  bert,
  biformer,
  ccnet,
  crossformer,
  crossvit,
  mmca,
  mmvit,
  pyramid,
  regnet,
  resnet,
  swiftformer,
)
from crossattn_jax.models.registry import create_model, list_models, model_config, register

__all__ = ['create_model', 'list_models', 'model_config', 'register']
