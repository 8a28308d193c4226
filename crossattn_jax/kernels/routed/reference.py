"""Routed attention as defined: gather the routed keys and values, then attend.

Source: BiFormer, Zhu et al. 2023 (arXiv 2303.08810), section 3.2.
"""

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp


def split_heads(x: jax.Array, num_heads: int) -> jax.Array:
  """Maps `[batch, regions, tokens, heads * width]` to `[batch, heads, regions, tokens, width]`."""
  return jnp.moveaxis(x.reshape(*x.shape[:-1], num_heads, -1), 3, 1)


def merge_heads(x: jax.Array) -> jax.Array:
  """The inverse of `split_heads`."""
  x = jnp.moveaxis(x, 1, 3)
  return x.reshape(*x.shape[:-2], -1)


def per_head(routing: jax.Array) -> jax.Array:
  """Gives `[batch, regions, top_k]` routing a heads axis of 1; per-head routing stays as it is."""
  return routing[:, None] if routing.ndim == 3 else routing


def gather_regions(x: jax.Array, routing: jax.Array) -> jax.Array:
  """Selects regions of `x` for every query region.

  Args:
    x: `[batch, heads, key_regions, ...]`.
    routing: `[batch, heads or 1, regions, top_k]`.

  Returns:
    `[batch, heads, regions, top_k, ...]`.
  """
  routing = jnp.broadcast_to(routing, (*x.shape[:2], *routing.shape[2:]))
  return jax.vmap(jax.vmap(lambda regions, chosen: regions[chosen]))(x, routing)


def zeros(shape: tuple[int, ...], dtype: jnp.dtype, like: jax.Array) -> jax.Array:
  """Zeros that, inside `shard_map`, vary over the axes of the mesh over which `like` does."""
  axes = tuple(jax.typeof(like).manual_axis_type.varying)
  x = jnp.zeros(shape, dtype)
  return lax.pcast(x, axes, to='varying') if axes else x


def routed_attention(query, key, value, routing, key_mask, *, num_heads, scale):
  """See `kernels.routed_attention`."""
  score_dtype = jnp.promote_types(query.dtype, jnp.float32)
  routing = per_head(routing)
  key = gather_regions(split_heads(key, num_heads), routing)
  value = gather_regions(split_heads(value, num_heads), routing)
  query = split_heads(query, num_heads)
  scores = scale * jnp.einsum(
    'bhrnd,bhrkmd->bhrnkm', query, key, preferred_element_type=score_dtype
  )
  if key_mask is None:
    weights = nn.softmax(scores, axis=(-2, -1))
  else:
    key_mask = jnp.repeat(key_mask[:, None], routing.shape[1], axis=1)
    visible = gather_regions(key_mask, routing)[:, :, :, None]
    # Finite, so that a query without any visible key has a gradient; its weights are zeros.
    scores = jnp.where(visible, scores, jnp.finfo(score_dtype).min)
    weights = jnp.where(visible, nn.softmax(scores, axis=(-2, -1)), 0.0)
  return merge_heads(jnp.einsum('bhrnkm,bhrkmd->bhrnd', weights.astype(value.dtype), value))
