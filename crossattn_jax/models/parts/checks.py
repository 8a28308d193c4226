"""Refusals that name the field or the array, what was expected, and what to do."""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp


def check_image(model: nn.Module, image: jax.Array, num_channels: int) -> None:
  """Raises a ValueError unless images are `[batch, height, width, num_channels]` and normalised."""
  name = type(model).__name__
  if image.ndim != 4 or image.shape[-1] != num_channels:
    raise ValueError(
      f'{name} expects images [batch, height, width, {num_channels}], not an array of shape '
      f'{image.shape}; transpose NCHW images, or set num_channels'
    )
  if not jnp.issubdtype(image.dtype, jnp.floating):
    raise ValueError(
      f'{name} expects normalised floating-point images, not {image.dtype}; scale them to [0, 1], '
      'subtract the mean and divide by the standard deviation'
    )


def check_choices(owner: Any, **choices: Sequence[str]) -> None:
  """Raises a ValueError that names a field of `owner` whose value is not one of its choices."""
  for field, values in choices.items():
    if getattr(owner, field) not in values:
      raise ValueError(f'{field}={getattr(owner, field)!r} is not one of {", ".join(values)}')


def check_lengths(owner: Any, counted: str, things: str, *fields: str) -> None:
  """Raises a ValueError that names a field of `owner` which is not as long as its field `counted`.

  Args:
    owner: has the fields; None is as long as anything.
    counted: such as 'widths'.
    things: what its entries stand for, such as 'stages'.
    *fields: to check.
  """
  count = len(getattr(owner, counted))
  for field in fields:
    values = getattr(owner, field)
    if values is not None and len(values) != count:
      raise ValueError(f'{field}={values} needs one entry for each of {count} {things} ({counted})')
