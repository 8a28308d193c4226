"""Levels become the network's input and back."""

import ml_collections
import numpy as np
import pytest

from crossattn_jax.data import levels


@pytest.fixture
def config():
  config = ml_collections.ConfigDict()
  levels.add_options(config)
  return config


@pytest.mark.parametrize('channels', levels.CHANNELS)
def test_normalisation_is_the_formula_in_the_order_of_the_config(config, channels):
  config.channels, config.mean, config.std = channels, (1.0, 2.0, 3.0), (2.0, 4.0, 8.0)
  image = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
  first, second, third = (0, 1, 2) if channels == 'rgb' else (2, 1, 0)
  result = levels.normalize(image, config)
  assert result.dtype == np.float32
  np.testing.assert_array_equal(result[..., 0], (image[..., first].astype(np.float32) - 1) / 2)
  np.testing.assert_array_equal(result[..., 1], (image[..., second].astype(np.float32) - 2) / 4)
  np.testing.assert_array_equal(result[..., 2], (image[..., third].astype(np.float32) - 3) / 8)
  np.testing.assert_array_equal(levels.denormalize(result, config), image)


def test_padding_is_at_the_ends():
  padded = levels.pad(np.ones((1, 2, 2)), (2, 3), -1)
  np.testing.assert_array_equal(padded[..., 0], [[1, 1, -1], [-1, -1, -1]])
