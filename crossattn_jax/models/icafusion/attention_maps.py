"""Where places of a pair of images look: each modality asks, and looks over the other one.

`model.apply(..., mutable='intermediates', capture_intermediates=is_shown)` keeps what the maps are
made of.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import cross_modal
from crossattn_jax.layers import pooling
from crossattn_jax.models.icafusion import fusion
from crossattn_jax.models.icafusion.model import ICAFusion


def is_shown(module: nn.Module, method: str) -> bool:
  """For `capture_intermediates` of the model: keeps queries and keys, of which maps are made."""
  return isinstance(module, cross_modal.Modality) and method == 'project'


def of_anchors(
  model: ICAFusion,
  intermediates: Mapping[str, Any],
  input_size: Sequence[int],
  anchors: jax.Array,
) -> dict[str, jax.Array]:
  """Where the cells of anchors look, in the last iteration of the last block of their level.

  A token is a window of the map, over whose cells its weight is spread evenly.

  Args:
    model: without variables.
    intermediates: that `is_shown` has kept.
    input_size: (height, width) of the images in pixels.
    anchors: numbers of anchors in the grid, `[batch, count]`, as `Detections.anchors` has them.

  Returns:
    Maps `[batch, count, height / 8, width / 8]`, of sum one, 0 for the anchor -1:
      'rgb': weights over the RGB image; thermal asks.
      'thermal': weights over the thermal image; RGB asks.
      'query': the window that asks.
    Empty where nothing was kept, since the model fuses without attention.
  """
  if not intermediates:
    return {}
  grid = model.anchors().of_input(input_size)
  finest, per_cell = grid.map_sizes[0], grid.anchors.per_cell
  maps: dict[str, jax.Array] = {}
  for level, ((height, width), rows) in enumerate(zip(grid.map_sizes, grid.levels, strict=True)):
    tokens = fusion.smaller_size((height, width), model.grids[level])
    cell = jnp.clip((anchors - rows.start) // per_cell, 0, height * width - 1)
    row, column = cell // width * tokens[0] // height, cell % width * tokens[1] // width
    token = row * tokens[1] + column
    block = intermediates[f'fusion_{level + 3}'][f'block_{model.fusion_depth - 1}']['attention']
    rgb, thermal = (block[modality]['project'][-1] for modality in cross_modal.MODALITIES)

    def looks(
      asking: cross_modal.Projected, asked: cross_modal.Projected, token: jax.Array = token
    ) -> jax.Array:
      query = jnp.take_along_axis(asking.query, token[..., None, None], axis=1)
      return cross_modal.attention_weights(query, asked.key)

    weights = {
      'rgb': looks(thermal, rgb),
      'thermal': looks(rgb, thermal),
      'query': jax.nn.one_hot(token, tokens[0] * tokens[1]),
    }
    here = (rows.start <= anchors) & (anchors < rows.stop)
    for name, values in weights.items():
      spread = _spread(values.reshape(*anchors.shape, *tokens), (height, width), finest)
      maps[name] = maps.get(name, 0) + jnp.where(here[..., None, None], spread, 0)
  return maps


def _spread(weights: jax.Array, size: Sequence[int], finest: Sequence[int]) -> jax.Array:
  """Weights of the windows of a map of `size`, `[..., rows, columns]`, as those of finer cells."""
  flat = weights.reshape(-1, *weights.shape[-2:], 1)
  pool = lambda x: pooling.equal_window_average_pool(x, weights.shape[-2:])
  (cells,) = jax.linear_transpose(pool, jax.ShapeDtypeStruct((len(flat), *size, 1), flat.dtype))(
    flat
  )
  for axis, (side, out) in enumerate(zip(size, finest, strict=True), start=1):
    cells = jnp.repeat(cells, out // side, axis=axis) * (side / out)
  return cells.reshape(*weights.shape[:-2], *finest)
