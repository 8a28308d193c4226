"""The originals' `qk_scale`, for attentions that multiply their scores by head_dim^-0.5."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import re
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from crossattn_jax.parity import adapters

Arrays = dict[str, jax.Array]
MakeAdapter = Callable[[Mapping[str, Any]], adapters.Adapter]


def takes_scale(attentions: str = '(.*/)?') -> Callable[[MakeAdapter], MakeAdapter]:
  """Decorates `make_adapter(manifest)` of a kind whose constructor takes `qk_scale`.

  Args:
    attentions: a regular expression of the paths of the attentions that have it, up to their last
      '/': all that project to `query`, or by one product to `qkv`.
  """

  def decorate(make_adapter: MakeAdapter) -> MakeAdapter:
    @functools.wraps(make_adapter)
    def make(manifest: Mapping[str, Any]) -> adapters.Adapter:
      adapter = make_adapter(manifest)
      scale = manifest['constructor'].get('qk_scale')
      # None and 0 are the default, for the originals too.
      return _scaled(adapter, scale, attentions) if scale else adapter

    return make

  return decorate


def _scaled(adapter: adapters.Adapter, scale: float, attentions: str) -> adapters.Adapter:
  """Multiplies queries, in the parameters of their projection, by scale / head_dim^-0.5.

  What the case recorded of a projection is what it was before.
  """
  factors, torch_names = {}, {}
  for entry in adapter.mapping.entries:
    match = re.fullmatch(f'(?:{attentions})(?P<name>query|qkv)/(kernel|bias)', '/'.join(entry.path))
    if match:
      factor = scale * entry.flax_shape[-1] ** 0.5
      parts = np.ones(3 if match['name'] == 'qkv' else 1)
      parts[0] = factor
      factors[entry.path] = parts[:, None, None] if len(parts) > 1 else factor
      torch_names[entry.torch_key.rpartition('.')[0]] = parts

  def restore(name: str, x: jax.Array) -> jax.Array:
    if name not in torch_names:
      return x
    parts = torch_names[name]
    return x / np.repeat(parts, x.shape[-1] // len(parts)).astype(x.dtype)

  def run(variables: Any, inputs: Arrays) -> tuple[Arrays, Arrays]:
    params = traverse_util.flatten_dict(variables['params'])
    for path, factor in factors.items():
      params[path] = params[path] * np.asarray(factor, params[path].dtype)
    params = traverse_util.unflatten_dict(params)
    results = adapter.run({**variables, 'params': params}, inputs)
    return tuple({name: restore(name, x) for name, x in part.items()} for part in results)

  return dataclasses.replace(adapter, run=run)
