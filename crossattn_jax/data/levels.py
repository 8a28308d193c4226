"""Images as levels 0..255 of red, green and blue: their order, normalisation and padding."""

from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from crossattn_jax.data import pipeline

CHANNELS = ('rgb', 'bgr')


def add_options(config: ml_collections.ConfigDict) -> None:
  """Adds the keys of `config.dataset` that say how levels become the network's input."""
  # Order of the colours: 'rgb' or 'bgr'.
  config.channels = 'rgb'
  # Subtracted from levels 0..255, one value per colour, in that order.
  config.mean = (123.675, 116.28, 103.53)
  # What the rest is divided by, likewise.
  config.std = (58.395, 57.12, 57.375)


def check_options(config: ml_collections.ConfigDict) -> None:
  """Refuses wrong values of the keys of `add_options`.

  Raises:
    ValueError: names the key.
  """
  require = pipeline.requirement(config)
  require(config.channels in CHANNELS, 'channels', f'one of {", ".join(map(repr, CHANNELS))}')
  require(len(config.mean) == 3, 'mean', 'three values, one per colour')
  require(len(config.std) == 3 and min(config.std) > 0, 'std', 'three positive values')


def reordered(image: np.ndarray, config: ml_collections.ConfigDict) -> np.ndarray:
  """From RGB to the order of the config, and back."""
  return image[..., ::-1] if config.channels == 'bgr' else image


def normalize(image: np.ndarray, config: ml_collections.ConfigDict) -> np.ndarray:
  """Of RGB levels `[height, width, 3]`: the network's input, float32."""
  # On rows of all colours: NumPy is slow at broadcasting over an innermost axis of three.
  height, width = image.shape[:2]
  rows = reordered(image, config).astype(np.float32).reshape(height, -1)
  rows -= np.tile(np.asarray(config.mean, np.float32), width)
  rows /= np.tile(np.asarray(config.std, np.float32), width)
  return rows.reshape(height, width, 3)


def denormalize(image: np.ndarray, config: ml_collections.ConfigDict) -> np.ndarray:
  """Turns images of a batch into uint8 RGB `[..., height, width, 3]` to look at."""
  levels = image * np.asarray(config.std, np.float32) + np.asarray(config.mean, np.float32)
  return np.clip(np.round(reordered(levels, config)), 0, 255).astype(np.uint8)


def describe(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """How levels become the network's input, as JSON can hold it; see docs/export.md."""
  return {
    'channels': config.channels,
    'divide_by': 1,
    'mean': list(config.mean),
    'std': list(config.std),
    'layout': 'HWC',
    'dtype': 'float32',
  }


def pad(x: np.ndarray, size: Sequence[int], value: float = 0) -> np.ndarray:
  """Pads the first two axes at their ends."""
  margins = [(0, size[0] - x.shape[0]), (0, size[1] - x.shape[1])]
  return np.pad(x, margins + [(0, 0)] * (x.ndim - 2), constant_values=value)
