"""The public function of routed attention: checks, choice of the implementation."""

from collections.abc import Callable
import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.kernels import dispatch
from crossattn_jax.kernels.routed import gpu, reference, tpu, xla


def routed_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  routing: jax.Array,
  *,
  num_heads: int,
  scale: float | None = None,
  key_mask: jax.Array | None = None,
  implementation: str = 'auto',
) -> jax.Array:
  """Attends from every region of queries to the key regions that its routing names.

  The maps are partitioned into regions by the caller; queries and keys may have different grids.
  All heads of a token lie side by side in the channels, head by head. Under a mesh each device
  attends for its examples and heads.

  Args:
    query: `[batch, regions, tokens, num_heads * qk_width]`, float.
    key: `[batch, key_regions, key_tokens, num_heads * qk_width]`, `query`'s dtype.
    value: `[batch, key_regions, key_tokens, num_heads * width]`, `query`'s dtype.
    routing: indices of key regions, int32 in `[0, key_regions)`: `[batch, regions, top_k]` for all
      heads, or `[batch, num_heads, regions, top_k]`. Their order does not matter; a region named
      twice counts twice. Indices outside the range are the caller's error and are not detected.
    num_heads: into which the channels of query, key and value are split.
    scale: of the scores; `qk_width ** -0.5` by default. (BiFormer's own scale is
      `(num_heads * qk_width) ** -0.5`.)
    key_mask: bool `[batch, key_regions, key_tokens]`, True where a key is visible. A query with no
      visible key gets zeros, and gives no gradient.
    implementation: 'auto' takes the kernel of the platform that the program is lowered for, and
      'xla' in float64; 'reference' is the definition, 'xla' the form in bounded memory, 'tpu' and
      'gpu' the Pallas kernels.

  Returns:
    `[batch, regions, tokens, num_heads * width]` in `value`'s dtype.

  Raises:
    ValueError: shapes, dtypes or the implementation that do not go together, by name.

  Examples:
    >>> x = jnp.ones((1, 49, 16, 64))
    >>> routing = jnp.zeros((1, 49, 4), jnp.int32)  # Four regions for each.
    >>> jax.eval_shape(lambda x: routed_attention(x, x, x, routing, num_heads=2), x).shape
    (1, 49, 16, 64)
  """
  dispatch.check_implementation('routed_attention', implementation)
  _check(query, key, value, routing, key_mask, num_heads)
  dispatch.check_kernel_dtype('routed_attention', implementation, query.dtype)
  head_dim = query.shape[-1] // num_heads
  scale = head_dim**-0.5 if scale is None else scale
  if implementation == 'auto' and query.dtype not in (jnp.float32, jnp.bfloat16):
    implementation = 'xla'
  form = reference.routed_attention
  if implementation != 'reference':
    form = functools.partial(attend, Form(implementation))

  def attend_part(query, key, value, routing, key_mask=None):
    heads = query.shape[-1] // head_dim
    return form(query, key, value, routing, key_mask, num_heads=heads, scale=scale)

  tokens = ('batch', None, None, ('heads', num_heads))
  routes = ('batch', 'heads', None, None) if routing.ndim == 4 else ('batch', None, None)
  mask = () if key_mask is None else (key_mask,)
  return parallel.map_shards(
    attend_part,
    *(query, key, value, routing, *mask),
    names=(tokens, tokens, tokens, routes, *(('batch', None, None) for _ in mask)),
    out_names=tokens,
  )


def attend(
  form: 'Form',
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  routing: jax.Array,
  key_mask: jax.Array | None,
  *,
  num_heads: int,
  scale: float,
) -> jax.Array:
  """`routed_attention` in a form, unchecked."""
  if routing.ndim == 3:
    return _attend(form, scale, num_heads, query, key, value, routing, key_mask)
  # Heads that are routed differently have nothing in common: they are images of one head.
  images = [_images_of_heads(x, num_heads) for x in (query, key, value)]
  if key_mask is not None:
    key_mask = jnp.repeat(key_mask, num_heads, axis=0)
  out = _attend(form, scale, 1, *images, routing.reshape(-1, *routing.shape[2:]), key_mask)
  return reference.merge_heads(out.reshape(-1, num_heads, *out.shape[1:]))


def _images_of_heads(x: jax.Array, num_heads: int) -> jax.Array:
  x = reference.split_heads(x, num_heads)
  return x.reshape(-1, *x.shape[2:])


@dataclasses.dataclass(frozen=True)
class Form:
  """An implementation.

  Attributes:
    name: one of `dispatch.IMPLEMENTATIONS`, not 'reference'.
    interpret: runs a Pallas kernel as jnp, for tests.
  """

  name: str
  interpret: bool = False

  def __call__(self, function: str, *arguments: jax.Array | None, **static: Any) -> Any:
    """Calls 'forward' or 'backward' of the implementation."""
    forms = {
      'xla': functools.partial(_traced_once(xla, function), **static),
      'tpu': functools.partial(_traced_once(tpu, function), interpret=self.interpret, **static),
      'gpu': functools.partial(_traced_once(gpu, function), interpret=self.interpret, **static),
    }
    if self.name == 'auto':
      return dispatch.by_platform(*arguments, **forms)
    return forms[self.name](*arguments)


@functools.cache
def _traced_once(module: types.ModuleType, function: str) -> Callable[..., Any]:
  """An implementation; a network's many layers of equal shapes share its trace and its code."""
  static = ('num_heads', 'scale') + (() if module is xla else ('interpret',))
  return jax.jit(getattr(module, function), static_argnames=static)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(form, scale, num_heads, query, key, value, routing, key_mask):
  return _attend_forward(form, scale, num_heads, query, key, value, routing, key_mask)[0]


def _attend_forward(form, scale, num_heads, *arguments):
  out, log_sum = form('forward', *arguments, num_heads=num_heads, scale=scale)
  return out, (*arguments, out, log_sum)


def _attend_backward(form, scale, num_heads, residuals, d_out):
  gradients = form('backward', *residuals, d_out, num_heads=num_heads, scale=scale)
  return (*gradients, None, None)


_attend.defvjp(_attend_forward, _attend_backward)


def _check(query, key, value, routing, key_mask, num_heads):
  require = functools.partial(dispatch.require, 'routed_attention')
  for name, x in (('query', query), ('key', key), ('value', value)):
    require(x.ndim == 4, f'{name} must be [batch, regions, tokens, channels], got {x.shape}')
    require(jnp.issubdtype(x.dtype, jnp.floating), f'{name} must be floating, got {x.dtype}')
    require(x.dtype == query.dtype, f'{name} is {x.dtype} and query {query.dtype}; cast one')
    require(
      num_heads > 0 and x.shape[-1] % num_heads == 0,
      f'{x.shape[-1]} channels of {name} do not divide into num_heads={num_heads}',
    )
    require(all(side > 0 for side in x.shape), f'{name} is empty: {x.shape}')
  require(
    key.shape[-1] == query.shape[-1],
    f'query has {query.shape[-1]} channels and key {key.shape[-1]}; they must be equal',
  )
  require(
    key.shape[:3] == value.shape[:3],
    f'key {key.shape} and value {value.shape} must agree in batch, regions and tokens',
  )
  batch, regions = query.shape[:2]
  require(
    key.shape[0] == batch, f'query has batch {batch} and key {key.shape[0]}; they must be equal'
  )
  require(
    routing.ndim in (3, 4)
    and routing.shape[:-1] in ((batch, regions), (batch, num_heads, regions))
    and routing.shape[-1] > 0,
    f'routing must be [batch, regions, top_k] = [{batch}, {regions}, top_k] or [batch, num_heads, '
    f'regions, top_k] = [{batch}, {num_heads}, {regions}, top_k], got {routing.shape}',
  )
  require(routing.dtype == jnp.int32, f'routing must be int32, got {routing.dtype}')
  if key_mask is not None:
    require(
      key_mask.shape == key.shape[:3],
      f'key_mask must be [batch, key_regions, key_tokens] = {key.shape[:3]}, got {key_mask.shape}',
    )
    require(key_mask.dtype == jnp.bool_, f'key_mask must be bool, got {key_mask.dtype}')
