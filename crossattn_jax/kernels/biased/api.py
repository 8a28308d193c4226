"""The public function of attention with a bias: checks, choice of the form."""

import functools

import jax
import jax.numpy as jnp

from crossattn_jax.kernels import dispatch
from crossattn_jax.kernels.biased import reference, tpu

IMPLEMENTATIONS = ('auto', 'reference', 'tpu')
# Queries, or keys, of which there may be as many: the scores of a head are in the vector memory.
MOST_TOKENS = 512
# The biases of all heads, and their gradients, are there too; a core of a v4 has 16 MiB.
MOST_BIASES = 2**20
# A bias that hides a key.
HIDDEN = reference.HIDDEN


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
  """softmax(query key^T scale + bias) value, per head, for short sequences.

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

  Examples:
    >>> x, bias = jnp.ones((2, 49, 64)), jnp.zeros((4, 49, 49))
    >>> jax.eval_shape(lambda x: biased_attention(x, x, x, bias, num_heads=4), x).shape
    (2, 49, 64)
  """
  _check(query, key, value, bias, key_mask, num_heads, implementation)
  scale = (query.shape[-1] // num_heads) ** -0.5 if scale is None else scale
  options = {'num_heads': num_heads, 'scale': scale}
  definition = functools.partial(reference.biased_attention, **options)
  kernel = functools.partial(tpu.biased_attention, **options, interpret=interpret)
  operands = (query, key, value, bias, key_mask)
  if implementation == 'tpu':
    return kernel(*operands)
  if implementation == 'reference' or not fits(query, bias.shape):
    return definition(*operands)
  return dispatch.by_platform(*operands, tpu=kernel, xla=definition)


def fits(query: jax.Array, bias: tuple[int, int, int]) -> bool:
  """Whether the kernel takes queries like these, with a bias of this shape."""
  heads, queries, keys = bias
  small = max(queries, keys) <= MOST_TOKENS and heads * queries * keys <= MOST_BIASES
  return small and query.dtype in (jnp.float32, jnp.bfloat16)


def _check(query, key, value, bias, key_mask, num_heads, implementation):
  require = functools.partial(dispatch.require, 'biased_attention')
  dispatch.check_implementation('biased_attention', implementation, IMPLEMENTATIONS)
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
