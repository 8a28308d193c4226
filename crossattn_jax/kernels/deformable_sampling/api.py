"""The public function of deformable sampling: checks, choice of the form."""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp

from crossattn_jax.kernels import dispatch
from crossattn_jax.kernels.deformable_sampling import reference, xla

IMPLEMENTATIONS = ('auto', 'reference', 'xla')


def deformable_sampling(
  value: jax.Array,
  locations: jax.Array,
  weights: jax.Array,
  sizes: Sequence[tuple[int, int]],
  *,
  implementation: str = 'auto',
) -> jax.Array:
  """Weighted sums of bilinear samples of several maps, per head.

  Source: Deformable DETR, Zhu et al. 2021 (arXiv 2010.04159), equation 3 without its projections.
  A cell's value is at its centre; outside of a map everything is 0.

  Args:
    value: `[batch, positions, heads, head_dim]`, the maps one after the other, each row by row.
    locations: `[batch, queries, heads, levels, points, 2]`, x and y as fractions of a map's width
      and height.
    weights: `[batch, queries, heads, levels, points]`, of the samples.
    sizes: rows and columns of each map.
    implementation: 'reference' is the definition, with gathers, 'xla' products of matrices without
      any, 'auto' takes those on TPUs and gathers elsewhere. The gradient is the definition's.

  Returns:
    `[batch, queries, heads, head_dim]` in `value`'s dtype; positions and weights of cells are
    computed in at least float32. All three arrays have gradients.

  Raises:
    ValueError: shapes or the implementation that do not go together, by name.

  Examples:
    >>> value, sizes = jnp.ones((1, 20, 2, 8)), ((4, 4), (2, 2))
    >>> locations, weights = jnp.full((1, 3, 2, 2, 4, 2), 0.5), jnp.ones((1, 3, 2, 2, 4)) / 8
    >>> jax.eval_shape(lambda *x: deformable_sampling(*x, sizes), value, locations, weights).shape
    (1, 3, 2, 8)
  """
  sizes = tuple((int(height), int(width)) for height, width in sizes)
  _check(value, locations, weights, sizes, implementation)
  locations, weights = (
    x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (locations, weights)
  )
  if implementation == 'reference':
    return reference.deformable_sampling(value, locations, weights, sizes=sizes)
  return _sample(value, locations, weights, sizes, implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
@functools.partial(jax.jit, static_argnums=(3, 4))
def _sample(value, locations, weights, sizes, implementation):
  if implementation == 'xla':
    return xla.deformable_sampling(value, locations, weights, sizes=sizes)
  return dispatch.by_platform(
    value,
    locations,
    weights,
    xla=reference.deformable_sampling,
    tpu=xla.deformable_sampling,
    sizes=sizes,
  )


def _forward(value, locations, weights, sizes, implementation):
  operands = value, locations, weights
  return _sample(*operands, sizes, implementation), operands


def _backward(sizes, implementation, operands, cotangent):
  del implementation
  sample = functools.partial(reference.deformable_sampling, sizes=sizes)
  return jax.vjp(sample, *operands)[1](cotangent)


_sample.defvjp(_forward, _backward)


def _check(value, locations, weights, sizes, implementation):
  require = functools.partial(dispatch.require, 'deformable_sampling')
  dispatch.check_implementation('deformable_sampling', implementation, IMPLEMENTATIONS)
  require(value.ndim == 4, f'value must be [batch, positions, heads, head_dim], got {value.shape}')
  cells = sum(height * width for height, width in sizes)
  require(
    value.shape[1] == cells,
    f'value has {value.shape[1]} positions, maps of {sizes} have {cells}',
  )
  require(
    weights.ndim == 5 and weights.shape[::2][:2] == (value.shape[0], value.shape[2]),
    f'weights must be [batch, queries, heads, levels, points] for value {value.shape}, got '
    f'{weights.shape}',
  )
  require(weights.shape[3] == len(sizes), f'weights {weights.shape} are not of {len(sizes)} levels')
  require(
    locations.shape == (*weights.shape, 2),
    f'locations must have the shape of weights {weights.shape} and x, y, got {locations.shape}',
  )
