"""Attention whose scores get a bias that all examples share, for short sequences.

On TPUs it is the kernel of routed attention in its dense form, with one region of queries and one
of keys: neither scores nor weights are ever in HBM.
"""

import functools

import jax
import jax.numpy as jnp

from crossattn_jax.kernels import dispatch
from crossattn_jax.kernels.routed import tpu

IMPLEMENTATIONS = ('auto', 'reference', 'tpu')
# Queries, or keys, of which there may be as many: the scores of a head are in the vector memory.
MOST_TOKENS = 512
# The biases of all heads, and their gradients, are there too; a core of a v4 has 16 MiB.
MOST_BIASES = 2**20
# A bias that hides a key.
HIDDEN = -1e30

# A network's many layers of equal shapes share their trace and their code.
_STATIC = ('num_heads', 'scale', 'interpret')
_kernel_forward = jax.jit(tpu.forward, static_argnames=_STATIC)
_kernel_backward = jax.jit(tpu.backward, static_argnames=_STATIC)


def biased_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array,
  *,
  num_heads: int,
  scale: float | None = None,
  key_mask: jax.Array | None = None,
  implementation: str = 'auto',
  interpret: bool = False,
) -> jax.Array:
  """softmax(query key^T scale + bias) value, per head.

  A bias of `HIDDEN` hides a key from a query, and the mask hides it from all; a query without any
  key gets a result that is finite and means nothing.

  Args:
    query: `[batch, queries, num_heads * head_dim]`.
    key: `[batch, keys, num_heads * head_dim]`.
    value: `[batch, keys, num_heads * width]`.
    bias: `[num_heads, queries, keys]`.
    num_heads: into which the channels are split, head by head.
    scale: of the scores; head_dim^-0.5 by default.
    key_mask: bool `[batch, keys]`, True where a key is visible.
    implementation: 'reference' is the definition in jnp, 'tpu' the Pallas kernel for float32 and
      bfloat16, 'auto' the kernel on TPUs where `fits` says so, else the definition.
    interpret: runs the kernel's code as jnp, for tests.

  Returns:
    `[batch, queries, num_heads * width]` in `value`'s dtype; the softmax is computed in at least
    float32.

  Raises:
    ValueError: shapes or the implementation that do not go together, by name.
  """
  _check(query, key, value, bias, key_mask, num_heads, implementation)
  scale = (query.shape[-1] // num_heads) ** -0.5 if scale is None else scale
  reference = functools.partial(_reference, num_heads=num_heads, scale=scale)
  kernel = functools.partial(_attend, interpret, num_heads, scale)
  if implementation == 'tpu':
    return kernel(query, key, value, bias, key_mask)
  if implementation == 'reference' or not fits(query, bias.shape):
    return reference(query, key, value, bias, key_mask)
  operands = (query, key, value, bias, key_mask)
  return dispatch.by_platform(*operands, tpu=kernel, xla=reference)


def fits(query: jax.Array, bias: tuple[int, int, int]) -> bool:
  """Whether the kernel takes queries like these, with a bias of this shape."""
  heads, queries, keys = bias
  small = max(queries, keys) <= MOST_TOKENS and heads * queries * keys <= MOST_BIASES
  return small and query.dtype in (jnp.float32, jnp.bfloat16)


def _reference(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array,
  key_mask: jax.Array | None,
  *,
  num_heads: int,
  scale: float,
) -> jax.Array:
  query, key, value = (x.reshape(*x.shape[:2], num_heads, -1) for x in (query, key, value))
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.einsum('bqnd,bknd->bnqk', query, key, preferred_element_type=dtype)
  scores = scores * scale + bias.astype(dtype)
  if key_mask is not None:
    scores = jnp.where(key_mask[:, None, None], scores, HIDDEN)
  weights = jax.nn.softmax(scores)
  out = jnp.einsum('bnqk,bknd->bqnd', weights.astype(value.dtype), value)
  return out.reshape(*out.shape[:2], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(interpret, num_heads, scale, query, key, value, bias, key_mask):
  return _forward(interpret, num_heads, scale, query, key, value, bias, key_mask)[0]


def _forward(interpret, num_heads, scale, query, key, value, bias, key_mask):
  regions = [x[:, None] for x in (query, key, value)]
  routing = jnp.zeros((len(query), 1, 1), jnp.int32)
  mask = None if key_mask is None else key_mask[:, None]
  out, log_sum = _kernel_forward(
    *regions, routing, mask, num_heads=num_heads, scale=scale, bias=bias, interpret=interpret
  )
  return out[:, 0], (*regions, routing, mask, bias, out, log_sum)


def _backward(interpret, num_heads, scale, residuals, d_out):
  *operands, bias, out, log_sum = residuals
  *gradients, d_bias = _kernel_backward(
    *operands,
    out,
    log_sum,
    d_out[:, None],
    num_heads=num_heads,
    scale=scale,
    bias=bias,
    interpret=interpret,
  )
  return (*(x[:, 0] for x in gradients), d_bias.astype(bias.dtype), None)


_attend.defvjp(_forward, _backward)


def _check(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array,
  key_mask: jax.Array | None,
  num_heads: int,
  implementation: str,
) -> None:
  def require(holds: bool, message: str) -> None:
    if not holds:
      raise ValueError(f'biased_attention: {message}')

  require(
    implementation in IMPLEMENTATIONS,
    f'unknown implementation {implementation!r}; there are {", ".join(IMPLEMENTATIONS)}',
  )
  for name, x in (('query', query), ('key', key), ('value', value)):
    require(x.ndim == 3, f'{name} must be [batch, tokens, channels], got {x.shape}')
    require(
      num_heads > 0 and x.shape[-1] % num_heads == 0,
      f'{x.shape[-1]} channels of {name} do not divide into num_heads={num_heads}',
    )
  require(
    key.shape[::2] == query.shape[::2] and key.shape[:2] == value.shape[:2],
    f'query {query.shape}, key {key.shape} and value {value.shape} do not go together',
  )
  expected = (num_heads, query.shape[1], key.shape[1])
  require(
    bias.shape == expected,
    f'bias must be [num_heads, queries, keys] = {expected}, got {bias.shape}',
  )
  require(
    key_mask is None or (key_mask.shape == key.shape[:2] and key_mask.dtype == jnp.bool_),
    f'key_mask must be bool [batch, keys] = {key.shape[:2]}, got '
    f'{None if key_mask is None else (key_mask.dtype, key_mask.shape)}',
  )
  require(
    implementation != 'tpu' or fits(query, bias.shape),
    f"implementation 'tpu' takes float32 and bfloat16, up to {MOST_TOKENS} queries and keys and "
    f'{MOST_BIASES} biases; got {query.dtype} and {bias.shape}',
  )
