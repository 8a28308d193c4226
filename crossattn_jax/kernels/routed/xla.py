"""Routed attention in jnp, in bounded memory: a chunk of queries at a time.

Two forms: *gathered* copies the routed keys and values of a chunk, *dense* scores all keys and
hides those that are not routed, which wastes products but neither gathers nor scatters.
"""

from collections.abc import Callable
import functools
import math

import jax
from jax import export, lax
import jax.numpy as jnp

from crossattn_jax.kernels.routed import reference

# Of the scores of one chunk: small enough for the caches of a CPU.
CHUNK_BYTES = 8 * 2**20
# Key regions per routed region up to which dense is faster.
DENSE_RATIO = 4


def takes_dense(key_regions: int, top_k: int) -> bool:
  """Whether the dense form is the faster one."""
  return key_regions <= DENSE_RATIO * top_k


def forward(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  routing: jax.Array,
  key_mask: jax.Array | None,
  *,
  num_heads: int,
  scale: float,
) -> tuple[jax.Array, jax.Array]:
  """Attends.

  Args:
    query: `[batch, regions, tokens, channels]`.
    key: `[batch, key_regions, key_tokens, channels]`.
    value: `[batch, key_regions, key_tokens, channels]`.
    routing: `[batch, regions, top_k]`.
    key_mask: None or bool `[batch, key_regions, key_tokens]`.
    num_heads: in the channels.
    scale: of the scores.

  Returns:
    The result, and the logarithm of every query's softmax denominator, flattened to
    `[batch, heads * regions * tokens]` in an order that only `backward` needs to know.
  """
  attend = functools.partial(_forward, num_heads=num_heads, scale=scale)
  return _each_image(attend, query, key, value, routing, key_mask, num_heads=num_heads)


def backward(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  routing: jax.Array,
  key_mask: jax.Array | None,
  out: jax.Array,
  log_sum: jax.Array,
  d_out: jax.Array,
  *,
  num_heads: int,
  scale: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The gradients of query, key and value, given `forward`'s arguments and results."""
  differentiate = functools.partial(_backward, num_heads=num_heads, scale=scale)
  return _each_image(
    differentiate, query, key, value, routing, key_mask, out, log_sum, d_out, num_heads=num_heads
  )


def _each_image(function: Callable, *arguments: jax.Array | None, num_heads: int):
  """Applies `function` to the batch, or to image after image where one region of all is much."""
  query, key, _, routing = arguments[:4]
  # Exported for any batch size, the program cannot know how many images fit at once.
  if not export.is_symbolic_dim(query.shape[0]) and (
    len(query) == 1 or _rows(query, key, routing, num_heads) >= query.shape[2]
  ):
    return function(*arguments)

  def of_image(image):
    result = function(*jax.tree.map(lambda x: x[None], image))
    return jax.tree.map(lambda x: x[0], result)

  return lax.map(of_image, arguments)


def _rows(query: jax.Array, key: jax.Array, routing: jax.Array, num_heads: int) -> int:
  """How many queries of every image make a chunk."""
  key_regions, key_tokens = key.shape[1:3]
  regions = key_regions if takes_dense(key_regions, routing.shape[-1]) else routing.shape[-1]
  score_bytes = jnp.promote_types(query.dtype, jnp.float32).itemsize
  return max(1, CHUNK_BYTES // (len(query) * num_heads * regions * key_tokens * score_bytes))


class _Chunks:
  """The queries, chunk by chunk: several regions, or a part of one region."""

  def __init__(self, query: jax.Array, key: jax.Array, routing: jax.Array, num_heads: int):
    self.regions, self.tokens = query.shape[1:3]
    rows = _rows(query, key, routing, num_heads)
    # A region becomes `parts` of `part` tokens; a chunk is `size` parts.
    self.parts = math.ceil(self.tokens / min(rows, self.tokens))
    self.part = math.ceil(self.tokens / self.parts)
    total = self.regions * self.parts
    self.count = math.ceil(total / max(1, min(rows // self.part, total)))
    self.size = math.ceil(total / self.count)

  def split(self, x: jax.Array) -> jax.Array:
    """`[batch, heads, regions, tokens, ...]` -> `[chunks, batch, heads, size, part, ...]`."""
    short = self.parts * self.part - self.tokens
    x = jnp.pad(x, [(0, 0)] * 3 + [(0, short)] + [(0, 0)] * (x.ndim - 4))
    x = x.reshape(*x.shape[:2], self.regions * self.parts, self.part, *x.shape[4:])
    return self._cut(x, 2)

  def merge(self, x: jax.Array) -> jax.Array:
    """The inverse of `split`."""
    x = jnp.moveaxis(x, 0, 2)
    x = x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, : self.regions * self.parts]
    x = x.reshape(*x.shape[:2], self.regions, -1, *x.shape[4:])
    return x[:, :, :, : self.tokens]

  def split_routing(self, routing: jax.Array) -> jax.Array:
    """`[batch, regions, top_k]` -> `[chunks, batch, size, top_k]`."""
    return self._cut(jnp.repeat(routing, self.parts, axis=1), 1)

  def _cut(self, x: jax.Array, axis: int) -> jax.Array:
    short = self.count * self.size - x.shape[axis]
    x = jnp.pad(x, [(0, short if i == axis else 0) for i in range(x.ndim)])
    x = x.reshape(*x.shape[:axis], self.count, self.size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


class _Keys:
  """What the queries of a chunk attend to. Arrays have their heads split off.

  The dense form takes the queries of a chunk for those of one region, whose keys are all keys.
  """

  def __init__(self, key: jax.Array, value: jax.Array, key_mask: jax.Array | None, top_k: int):
    self.key, self.value, self.key_mask = key, value, key_mask
    self.dense = takes_dense(key.shape[2], top_k)

  def rows(self, x: jax.Array) -> jax.Array:
    """Queries of a chunk, `[batch, heads, size, part, ...]`, as queries of fewer regions."""
    return x.reshape(*x.shape[:2], 1, -1, *x.shape[4:]) if self.dense else x

  def select(self, x: jax.Array, routing: jax.Array) -> jax.Array:
    """Keys or values, `[batch, heads, size or 1, keys, width]`."""
    x = x[:, :, None] if self.dense else reference.gather_regions(x, routing[:, None])
    return x.reshape(*x.shape[:3], -1, x.shape[-1])

  def bias(self, routing: jax.Array, part: int, dtype: jnp.dtype) -> jax.Array | float:
    """Hides keys, and counts those of a region as often as it is named."""
    mask = self.key_mask
    if self.dense:
      regions, tokens = self.key.shape[2:4]
      named = jnp.sum(jax.nn.one_hot(routing, regions, dtype=dtype), axis=-2)
      bias = jnp.log(named)[:, None, :, None, :, None]
      bias = bias if mask is None else jnp.where(mask[:, None, None, None], bias, -jnp.inf)
      batch, _, size = bias.shape[:3]
      bias = jnp.broadcast_to(bias, (batch, 1, size, part, regions, tokens))
      return bias.reshape(batch, 1, 1, size * part, regions * tokens)
    if mask is None:
      return 0.0
    visible = self.select(mask[:, None, :, :, None], routing)[..., 0]
    return jnp.where(visible, 0, -jnp.inf).astype(dtype)[:, :, :, None]

  def add(self, total: jax.Array, update: jax.Array, routing: jax.Array) -> jax.Array:
    """Adds the gradients of what `select` gave to those of all keys or values."""
    if self.dense:
      return total + update.reshape(total.shape)
    update = update.reshape(*total.shape[:2], *routing.shape[1:], *total.shape[3:])
    of_head = lambda total, update, routing: total.at[routing].add(update)
    return jax.vmap(jax.vmap(of_head, (0, 0, None)))(total, update, routing)


def _forward(query, key, value, routing, key_mask, *, num_heads, scale):
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  product = functools.partial(jnp.einsum, preferred_element_type=dtype)
  split = functools.partial(reference.split_heads, num_heads=num_heads)
  chunks = _Chunks(query, key, routing, num_heads)
  keys = _Keys(split(key), split(value), key_mask, routing.shape[-1])

  def attend(chunk):
    query, routing = chunk
    rows = keys.rows(query)
    scores = scale * product('bhrnd,bhrmd->bhrnm', rows, keys.select(keys.key, routing))
    scores += keys.bias(routing, chunks.part, dtype)
    largest = jnp.max(scores, axis=-1, keepdims=True, initial=jnp.finfo(dtype).min)
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    total = jnp.where(total == 0, 1, total)
    weights = weights.astype(value.dtype)
    out = product('bhrnm,bhrmd->bhrnd', weights, keys.select(keys.value, routing)) / total
    log_sum = (largest + jnp.log(total)).reshape(query.shape[:4])
    return out.reshape(*query.shape[:4], -1).astype(value.dtype), log_sum

  chunked = chunks.split(split(query)), chunks.split_routing(routing)
  out, log_sum = lax.map(attend, chunked)
  log_sum = chunks.merge(log_sum).reshape(len(query), -1)
  return reference.merge_heads(chunks.merge(out)), log_sum


def _backward(query, key, value, routing, key_mask, out, log_sum, d_out, *, num_heads, scale):
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  product = functools.partial(jnp.einsum, preferred_element_type=dtype)
  split = functools.partial(reference.split_heads, num_heads=num_heads)
  chunks = _Chunks(query, key, routing, num_heads)
  keys = _Keys(split(key), split(value), key_mask, routing.shape[-1])
  # The weights' own gradient, weighted: what the softmax takes off the gradient of every score.
  mean = jnp.sum(split(d_out).astype(dtype) * split(out).astype(dtype), axis=-1)

  def differentiate(totals, chunk):
    query, log_sum, mean, d_out, routing = chunk
    rows, d_rows = keys.rows(query), keys.rows(d_out)
    selected_keys = keys.select(keys.key, routing)
    selected_values = keys.select(keys.value, routing)
    scores = scale * product('bhrnd,bhrmd->bhrnm', rows, selected_keys)
    scores += keys.bias(routing, chunks.part, dtype)
    weights = jnp.exp(scores - keys.rows(log_sum)[..., None])
    d_weights = product('bhrnd,bhrmd->bhrnm', d_rows, selected_values)
    d_scores = weights * (d_weights - keys.rows(mean)[..., None]) * scale
    weights, d_scores = weights.astype(d_out.dtype), d_scores.astype(query.dtype)
    d_query = product('bhrnm,bhrmd->bhrnd', d_scores, selected_keys)
    d_keys = product('bhrnm,bhrnd->bhrmd', d_scores, rows)
    d_values = product('bhrnm,bhrnd->bhrmd', weights, d_rows)
    totals = (keys.add(totals[0], d_keys, routing), keys.add(totals[1], d_values, routing))
    return totals, d_query.reshape(query.shape).astype(query.dtype)

  totals = tuple(reference.zeros(x.shape, dtype, x) for x in (keys.key, keys.value))
  log_sum = log_sum.reshape(mean.shape)
  chunked = tuple(map(chunks.split, (split(query), log_sum, mean, split(d_out))))
  (d_key, d_value), d_query = lax.scan(
    differentiate, totals, (*chunked, chunks.split_routing(routing))
  )
  merge = reference.merge_heads
  return (
    merge(chunks.merge(d_query)),
    merge(d_key).astype(key.dtype),
    merge(d_value).astype(value.dtype),
  )
