"""From the last map to logits, and what the map has to do with them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.layers import initializers, linear


def global_mean(x: jax.Array) -> jax.Array:
  """Mean over the positions of `[batch, height, width, channels]`, in at least float32."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean(axis=(1, 2))


def classify(vector: jax.Array, num_classes: int, name: str = 'head', **options: Any) -> jax.Array:
  """A linear map to logits, which are in at least float32.

  Args:
    vector: `[batch, channels]`.
    num_classes: of the logits; 0 returns the vector in their place.
    name: of the submodule; this is called from a compact method.
    **options: of `linear.Dense`.

  Returns:
    `[batch, num_classes]`, or `[batch, channels]`.
  """
  if num_classes:
    options = {'kernel_init': initializers.linear} | options
    vector = linear.Dense(num_classes, name=name, **options)(vector)
    vector = parallel.constrain(vector, 'batch', None)
  return vector.astype(jnp.promote_types(vector.dtype, jnp.float32))


def evidence(x: jax.Array, logits: jax.Array, kernel: jax.Array) -> jax.Array:
  """How much each position contributes to the largest logit, where logits are of `global_mean(x)`.

  Args:
    x: `[batch, height, width, channels]`.
    logits: `[batch, num_classes]`.
    kernel: of the classifier, `[channels, num_classes]`.

  Returns:
    `[batch, height, width]`, in at least float32.
  """
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  best = kernel[:, jnp.argmax(logits, axis=-1)].astype(x.dtype)
  return jnp.einsum('bhwc,cb->bhw', x, best)


def looking_place(features: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
  """The place of an image that looks in pictures, as shares of height and width, `[batch]`.

  Args:
    features: whose 'place' it is, `[batch, 2]`; else that of the greatest 'evidence'.
  """
  if 'place' in features:
    return features['place'][:, 0], features['place'][:, 1]
  return strongest_place(features['evidence'])


def strongest_place(evidence: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The middle of the position of greatest evidence, as shares of height and width, `[batch]`."""
  batch, rows, columns = evidence.shape
  best = jnp.argmax(evidence.reshape(batch, -1), axis=-1)
  return (best // columns + 0.5) / rows, (best % columns + 0.5) / columns
