"""The public function of criss-cross attention: checks, choice of the implementation, gradients."""

import functools

import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.kernels import dispatch
from crossattn_jax.kernels.criss_cross import passes, reference, sharded


def criss_cross_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, *, implementation: str = 'auto'
) -> jax.Array:
  """Attends from every position of a map to all that differ from it in one coordinate, and itself.

  In an image that is the row and the column of a pixel, in a video also its line through time: one
  softmax over all of them, in which the position itself counts once. Scores are not scaled.

  Source: CCNet, Huang et al. 2019 (arXiv 1811.11721), section 3.2; its journal version for video.
  Under a mesh batch and rows stay where they are; see `sharded`.

  Args:
    query: `[batch, height, width, channels]`, or `[batch, time, height, width, channels]`. Any size
      may be 1.
    key: the same shape and dtype as `query`.
    value: `[batch, (time,) height, width, value channels]`, `query`'s dtype.
    implementation: 'auto' takes the kernel of the platform that the program is lowered for, and
      'xla' in float64; 'reference' is the definition, 'xla' the form in bounded memory, 'tpu' and
      'gpu' the Pallas kernels.

  Returns:
    An array like `value`.

  Raises:
    ValueError: shapes, dtypes or the implementation that do not go together, by name.

  Examples:
    >>> query, value = jnp.ones((1, 5, 7, 8)), jnp.ones((1, 5, 7, 64))
    >>> jax.eval_shape(criss_cross_attention, query, query, value).shape
    (1, 5, 7, 64)
  """
  dispatch.check_implementation('criss_cross_attention', implementation)
  _check(query, key, value)
  dispatch.check_kernel_dtype('criss_cross_attention', implementation, query.dtype)
  if implementation == 'reference':
    return attention(query, key, value, implementation)

  def attend_part(query, key, value):
    attend = attention if query.shape[-3] == height else sharded.attention
    return attend(query, key, value, implementation)

  height = query.shape[-3]
  names = ('batch', *(None,) * (query.ndim - 4), 'height', None, None)
  return parallel.map_shards(
    attend_part, query, key, value, names=(names, names, names), out_names=names
  )


# Recurrent attention calls it with the same shapes again and again: traced once.
@functools.partial(jax.jit, static_argnames=('implementation', 'interpret'))
def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  implementation: str,
  *,
  interpret: bool = False,
) -> jax.Array:
  """`criss_cross_attention` of checked arguments; `interpret` runs a kernel in the interpreter."""
  if implementation == 'reference':
    return reference.criss_cross_attention(query, key, value)
  return _attention(query, key, value, implementation, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attention(query, key, value, implementation, interpret):
  return _forward(query, key, value, implementation, interpret)[0]


def _forward(query, key, value, implementation, interpret):
  options = {'implementation': implementation, 'interpret': interpret}
  out, lse = passes.attend_along(query, key, value, passes.axes_of(query), **options)
  return out, (query, key, value, out, lse)


def _backward(implementation, interpret, residuals, cotangent):
  options = {'implementation': implementation, 'interpret': interpret}
  axes = passes.axes_of(residuals[0])
  return passes.attend_along_vjp(*residuals, cotangent, axes, **options)[0]


_attention.defvjp(_forward, _backward)


def _check(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
  require = functools.partial(dispatch.require, 'criss_cross_attention')
  for name, x in (('query', query), ('key', key), ('value', value)):
    require(
      x.ndim in (4, 5),
      f'{name} must be [batch, height, width, channels] or [batch, time, height, width, channels], '
      f'got {x.shape}',
    )
    require(jnp.issubdtype(x.dtype, jnp.floating), f'{name} must be floating, got {x.dtype}')
    require(x.dtype == query.dtype, f'{name} is {x.dtype} and query {query.dtype}; cast one')
    require(all(side > 0 for side in x.shape), f'{name} is empty: {x.shape}')
  require(key.shape == query.shape, f'key {key.shape} must have the shape of query {query.shape}')
  require(
    value.shape[:-1] == query.shape[:-1],
    f'value {value.shape} and query {query.shape} must agree in all but the channels',
  )
