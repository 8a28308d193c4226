"""Where a model looks: the maps that its pictures show."""

from collections.abc import Mapping
import dataclasses

from flax import linen as nn
import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Attention:
  """Where something in an image looks.

  Attributes:
    weights: `[rows, columns]` over the image, 1 is their mean.
    query: what looks, of the same shape, not zero there; None where it has no place in the image,
      as a class token has none.
  """

  weights: np.ndarray
  query: np.ndarray | None = None

  @property
  def is_graded(self) -> bool:
    """Whether there is more to tell apart than what is looked at and what is not."""
    return len(np.unique(self.weights)) > 2


def outputs(
  model: nn.Module, features: Mapping[str, jax.Array], place: jax.Array | None = None
) -> dict[str, jax.Array]:
  """Attention maps `[batch, rows, columns]` of a model's features, where it has any. Inside jit.

  A model takes part in the pictures by a method `attention_maps(features)`, which returns named
  maps. Where what looks has a place in the image, `attention_queries(features)` returns it as maps
  of the same names and shapes. Such a model lets `features['place']` look, where it is given.

  Args:
    model: without variables.
    features: that it returned.
    place: what is to look, shares of height and width, `[batch, 2]`; by default the model says it.

  Returns:
    'attention_maps/NAME', and 'attention_queries/NAME'.
  """
  if place is not None:
    features = {**features, 'place': place}
  return {
    f'{kind}/{name}': values
    for kind in ('attention_maps', 'attention_queries')
    if hasattr(model, kind)
    for name, values in getattr(model, kind)(features).items()
  }


def of_example(result: Mapping[str, np.ndarray]) -> dict[str, Attention]:
  """The maps by name, of one example's share of `outputs`."""
  prefix = 'attention_maps/'
  return {
    key.removeprefix(prefix): Attention(
      weights / max(weights.mean(), 1e-12),
      result.get(f'attention_queries/{key.removeprefix(prefix)}'),
    )
    for key, weights in result.items()
    if key.startswith(prefix)
  }
