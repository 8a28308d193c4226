"""The losses of MIT's first stage, of each scene (Yang et al. 2023, arXiv 2310.12817)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from crossattn_jax.tasks import losses

# Outputs that are losses already, of each scene.
LOSSES = ('token_similarity', 'consistency')


@jax.custom_jvp
def binary_cross_entropy(probabilities: jax.Array, targets: jax.Array) -> jax.Array:
  """Cross entropy of probabilities, no logarithm below -100, as PyTorch has it.

  Its gradient is finite where a probability is 0 or 1: `p (1 - p)`, by which it is divided, is at
  least 1e-12.

  Args:
    probabilities: in [0, 1].
    targets: of the same shape, in [0, 1].

  Returns:
    Of the same shape, in at least float32.
  """
  dtype = jnp.promote_types(probabilities.dtype, jnp.float32)
  probabilities, targets = probabilities.astype(dtype), targets.astype(dtype)
  present, absent = jnp.log(probabilities), jnp.log1p(-probabilities)
  return -(targets * jnp.maximum(present, -100) + (1 - targets) * jnp.maximum(absent, -100))


def _derivative(change, loss, probabilities, targets):
  probabilities = probabilities.astype(loss.dtype)
  steepness = jnp.maximum(probabilities * (1 - probabilities), 1e-12)
  return change.astype(loss.dtype) * (probabilities - targets) / steepness


binary_cross_entropy.defjvps(_derivative, None)  # Targets are data.


def scene_losses(outputs: Mapping[str, jax.Array], tags: jax.Array) -> dict[str, jax.Array]:
  """What each scene's outputs cost, of whichever a model has.

  Args:
    outputs: 'NAME_logits' and 'NAME_probabilities' `[batch, classes]`, which are to be the tags;
      `LOSSES` `[batch]`. Others cost nothing.
    tags: `[batch, classes]`, 1 where a scene holds a class, else 0.

  Returns:
    By NAME `[batch]`, in at least float32: multi-label soft margins of logits, cross entropies of
    probabilities, both averaged over the classes.
  """
  results = {}
  for key, values in outputs.items():
    name, _, kind = key.rpartition('_')
    if kind == 'logits':
      results[name] = losses.multi_label_cross_entropy(values, tags)
    elif kind == 'probabilities':
      results[name] = binary_cross_entropy(values, tags).mean(axis=-1)
    elif key in LOSSES:
      results[key] = values.astype(jnp.promote_types(values.dtype, jnp.float32))
  return results


def total(parts: Mapping[str, jax.Array], weights: Mapping[str, float]) -> jax.Array:
  """The weighted sum of losses, of any shape they have in common.

  Args:
    parts: by name.
    weights: at least of these.
  """
  return sum(weights[name] * value for name, value in parts.items())
