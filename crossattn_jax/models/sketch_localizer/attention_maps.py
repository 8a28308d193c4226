"""Where in a photo the sketch is looked at."""

from collections.abc import Mapping
import math

import jax
import jax.numpy as jnp


def of_lines(features: Mapping[str, jax.Array], sketches: jax.Array) -> dict[str, jax.Array]:
  """How much each place of the photo looks at the lines of the sketch, before each stage.

  A place spreads attention of one over the cells of the sketch. That counts as much as there is of
  lines in a cell, so 1 is a place that looks at all cells alike, or at an empty sketch.

  Args:
    features: of the model.
    sketches: as the model takes them, `[batch, sketches, height, width, channels]`; most of each is
      background.

  Returns:
    'stage_0', ...: `[batch, rows, columns]` of the map that enters the stage.
  """
  # All sketches that the model takes are one to its attention, but for 'trainable' fusion; there
  # too the weights of a place are means over the sketches.
  lines = jnp.abs(sketches - jnp.median(sketches, axis=(2, 3), keepdims=True)).mean(axis=(1, 4))
  maps = {}
  for stage in range(sum(name.startswith('attention_') for name in features)):
    weights, size = features[f'attention_{stage}'], features[f'stage_{stage}'].shape[1:3]
    side = math.isqrt(weights.shape[-1])
    cells = jax.image.resize(lines, (lines.shape[0], side, side), 'linear')
    cells = cells.reshape(lines.shape[0], -1).astype(weights.dtype)
    mean = cells.mean(axis=-1, keepdims=True)
    share = jnp.where(mean > 0, cells / jnp.where(mean > 0, mean, 1), 1)
    maps[f'stage_{stage}'] = jnp.einsum('bps,bs->bp', weights, share).reshape(-1, *size)
  return maps
