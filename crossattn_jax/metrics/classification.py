"""Classification metrics."""

import jax
import jax.numpy as jnp


def in_top_k(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
  """Whether the true class is among the `k` classes with the largest logits.

  Ties are broken by the class index, so that exactly `k` classes count. With fewer than `k` classes
  every example counts whose label is a class.

  Args:
    logits: `[batch, classes]`.
    labels: integer classes `[batch]`; what is no class is no hit.
    k: how many classes count.

  Returns:
    Booleans `[batch]`.

  Examples:
    >>> logits, labels = jnp.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]), jnp.array([2, 2])
    >>> in_top_k(logits, labels, 2).tolist()
    [True, False]
  """
  true = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  before = jnp.arange(logits.shape[-1]) < labels[:, None]
  ahead = (logits > true) | ((logits == true) & before)
  known = (labels >= 0) & (labels < logits.shape[-1])
  # A NaN compares false with everything; it must not count as the best.
  return (jnp.sum(ahead, axis=-1) < k) & jnp.isfinite(true[:, 0]) & known
