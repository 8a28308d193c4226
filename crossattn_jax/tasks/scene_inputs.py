"""What networks take of batches of scenes; `data.scene_points` makes them."""

import jax
import jax.numpy as jnp
import ml_collections

from crossattn_jax.layers import sparse_convolution as sparse
from crossattn_jax.tasks import predictor


def levels(batch: predictor.Batch) -> tuple[sparse.Level, ...]:
  """How the cells of a batch hang together at each resolution, the finest first.

  Args:
    batch: 'neighbours_0', 'children_0', 'place_0' and so on, see `data.scene_points.tables`.
  """
  count = sum(name.startswith('neighbours_') for name in batch)
  return tuple(
    sparse.Level(*(batch.get(f'{table}_{level}') for table in sparse.Level._fields))
    for level in range(count)
  )


def class_names(dataset: ml_collections.ConfigDict, num_classes: int) -> tuple[str, ...]:
  """The names of `config.dataset`; numbers without data, as where a step is only compiled."""
  return tuple(dataset.class_names) or tuple(map(str, range(num_classes)))


def padding(batch: predictor.Batch) -> jax.Array:
  """The share of a batch's rows that is padding, of all levels together; a scalar."""
  is_cell = [level.is_cell for level in levels(batch)]
  cells = sum(jnp.sum(x, dtype=jnp.float32) for x in is_cell)
  return 1 - cells / sum(x.size for x in is_cell)
