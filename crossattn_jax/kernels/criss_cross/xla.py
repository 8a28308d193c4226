"""Criss-cross attention in jnp, a few lines of the map at a time."""

from collections.abc import Callable
import math

import jax
from jax import export
import jax.numpy as jnp

# Of the scores of one chunk of lines: they stay in a core's cache.
_SCORE_BYTES = 2**21
_MASKED = -1e30

Arrays = tuple[jax.Array, ...]


def attend(query, key, value, previous=None, *, axis, itself):
  """See `passes.attend`."""
  out, lse = _over_lines(
    lambda *lines: _attend_lines(*lines, itself=itself), axis, (query, key, value)
  )
  lse = lse.squeeze(-1)
  return (out, lse) if previous is None else merge(previous, (out, lse))


def attend_vjp(query, key, value, lse, cotangent, out, delta, previous, *, axis, itself):
  """See `passes.attend_vjp`."""
  if delta is None:
    dtype = lse.dtype
    delta = jnp.einsum('...c,...c->...', out.astype(dtype), cotangent.astype(dtype))
  gradients = _over_lines(
    lambda *lines: _attend_lines_vjp(*lines, itself=itself),
    axis,
    (query, key, value, lse[..., None], delta[..., None], cotangent),
  )
  if previous is not None:
    gradients = tuple(a + b for a, b in zip(previous, gradients, strict=True))
  return gradients, delta


def merge(a: Arrays, b: Arrays) -> Arrays:
  """The output and log-sum-exp of two sets of keys together, from those of each."""
  (out_a, lse_a), (out_b, lse_b) = a, b
  lse = jnp.logaddexp(lse_a, lse_b)
  out = jnp.exp(lse_a - lse)[..., None] * out_a + jnp.exp(lse_b - lse)[..., None] * out_b
  return out.astype(out_a.dtype), lse


def _over_lines(function: Callable[..., Arrays], axis: int, arrays: Arrays) -> Arrays:
  """Maps a function of `[lines, length, channels]` arrays over the lines of maps along `axis`."""
  if export.is_symbolic_dim(arrays[0].shape[0]):
    # Exported for any batch size, the program cannot know how many lines there are: image by image.
    def of_image(image):
      results = _over_lines(function, axis, tuple(x[None] for x in image))
      return tuple(x[0] for x in results)

    return jax.lax.map(of_image, arrays)
  moved = [jnp.moveaxis(x, axis, -2) for x in arrays]
  lead, length = moved[0].shape[:-2], moved[0].shape[-2]
  lines = [x.reshape(-1, length, x.shape[-1]) for x in moved]
  scores = length * length * jnp.promote_types(arrays[0].dtype, jnp.float32).itemsize
  chunk = max(1, _SCORE_BYTES // scores)
  if chunk >= math.prod(lead):
    results = function(*lines)
  else:
    results = jax.lax.map(
      lambda line: tuple(x[0] for x in function(*(x[None] for x in line))),
      tuple(lines),
      batch_size=chunk,
    )
  return tuple(jnp.moveaxis(x.reshape(*lead, length, x.shape[-1]), -2, axis) for x in results)


def _scores(query, key, itself):
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.einsum('nqc,nkc->nqk', query, key, preferred_element_type=dtype)
  if itself:
    return scores
  return jnp.where(jnp.eye(scores.shape[-1], dtype=bool), _MASKED, scores)


def _attend_lines(query, key, value, *, itself):
  scores = _scores(query, key, itself)
  highest = scores.max(axis=-1, keepdims=True)
  weights = jnp.exp(scores - highest)
  total = weights.sum(axis=-1, keepdims=True)
  out = jnp.einsum(
    'nqk,nkc->nqc', weights.astype(value.dtype), value, preferred_element_type=scores.dtype
  )
  return (out / total).astype(value.dtype), highest + jnp.log(total)


def _attend_lines_vjp(query, key, value, lse, delta, cotangent, *, itself):
  weights = jnp.exp(_scores(query, key, itself) - lse)
  weight_gradient = jnp.einsum(
    'nqc,nkc->nqk', cotangent, value, preferred_element_type=weights.dtype
  )
  score_gradient = (weights * (weight_gradient - delta)).astype(query.dtype)
  return (
    jnp.einsum('nqk,nkc->nqc', score_gradient, key),
    jnp.einsum('nqk,nqc->nkc', score_gradient, query),
    jnp.einsum('nqk,nqc->nkc', weights.astype(cotangent.dtype), cotangent),
  )
