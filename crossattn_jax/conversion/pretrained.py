"""Models with weights, by name: `crossattn_jax.load_pretrained('crossvit_tiny_240')`."""

import os
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.conversion import convert, opening
from crossattn_jax.models import registry


def load_pretrained(
  name: str,
  source: str | os.PathLike = 'official',
  *,
  which: str = 'auto',
  cache_dir: str | os.PathLike | None = None,
  num_classes: int | None = None,
  image_size: tuple[int, int] | None = None,
  **overrides: Any,
) -> tuple[nn.Module, dict[str, Any]]:
  """Builds a model with published or own weights.

  Args:
    name: of the model, as `list_models` shows it.
    source: 'official' (the authors' release; needs PyTorch to read), 'timm' (timm's copy of it,
      needs nothing), 'transformers' (needs PyTorch), or the path of a PyTorch checkpoint or of a
      variables file.
    which: 'ema', 'raw', or 'auto': the average where the file has one.
    cache_dir: where downloads are kept; `published.default_cache_dir()` by default.
    num_classes: replaces the classifiers by freshly initialised ones.
    image_size: (height, width); resizes the position embeddings.
    **overrides: of `create_model`, such as `dtype='bfloat16'` or `drop_path_rate=0.1`.

  Returns:
    The module, and its variables as jax arrays.

  Raises:
    ValueError: the name or the source is unknown.
    DownloadError: the file cannot be had; says which file to put where.
    mapping.MappingError: the weights are not those of the model.
    convert.CheckpointError: the file is damaged, or no checkpoint.
  """
  opened = opening.open_weights(source, name, overrides, which=which, cache_dir=cache_dir)
  conversion = convert.Conversion(name, opened.overrides, opened.variables, opened.report)
  if num_classes is not None or image_size is not None:
    conversion = convert.adapt(conversion, num_classes=num_classes, image_size=image_size)
  model = registry.create_model(name, **{**overrides, **conversion.overrides})
  return model, jax.tree.map(jnp.asarray, dict(conversion.variables))
