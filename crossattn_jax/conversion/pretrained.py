"""Models with weights, by name: `crossattn_jax.load_pretrained('crossvit_tiny_240')`."""

import os
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.conversion import fitting, opening
from crossattn_jax.models import registry


def load_pretrained(
  name: str,
  source: str | os.PathLike = 'official',
  *,
  which: str = 'auto',
  cache_dir: str | os.PathLike | None = None,
  seed: int = 0,
  **overrides: Any,
) -> tuple[nn.Module, dict[str, Any]]:
  """Builds a model with published or own weights.

  Args:
    name: of the model, as `list_models` shows it.
    source: 'official' (the authors' release), 'timm' or 'transformers' (their copy), or the path of
      a checkpoint, a variables file or a folder with weights; see `opening.open_weights`.
    which: 'ema', 'raw', or 'auto': the average where the file has one. Or the name of the entry
      with the weights.
    cache_dir: where downloads are kept; `published.default_cache_dir()` by default.
    seed: of what starts fresh.
    **overrides: of `create_model`, such as `num_classes=5`, `image_size=(384, 384)`,
      `num_channels=1` or `dtype='bfloat16'`; `fitting.fit` says what becomes of the weights.

  Returns:
    The module, and its variables as jax arrays.

  Raises:
    ValueError: the name or the source is unknown.
    DownloadError: the file cannot be had; says which file to put where.
    mapping.MappingError: the weights are not those of the model.
    reading.CheckpointError: the file is damaged, or no checkpoint.

  Examples:
    >>> model, variables = load_pretrained('swiftformer_xs', 'model.safetensors')
    >>> model.num_classes, variables['params']['head']['kernel'].shape
    (1000, (220, 1000))
  """
  free = {f: x for f, x in overrides.items() if f not in fitting.CHANGED_BY_FITTING}
  opened = opening.open_weights(source, name, free, which=which, cache_dir=cache_dir)
  opened = fitting.refit(opened, name, overrides, seed=seed)
  module = registry.create_model(name, **opened.overrides)
  return module, jax.tree.map(jnp.asarray, dict(opened.variables))
