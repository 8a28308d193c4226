import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import kernels
from crossattn_jax.kernels.criss_cross import api

# batch, positions, query channels, value channels
SHAPES = [
  (2, 9, 7, 8, 24),
  (1, 1, 11, 2, 16),
  (1, 6, 1, 2, 16),
  (1, 1, 1, 2, 4),
  (1, 17, 20, 64, 256),
  (2, 3, 5, 6, 4, 8),
]
FORMS = [
  ('reference', 'float32'),
  ('reference', 'bfloat16'),
  ('xla', 'float64'),
  ('xla', 'float32'),
  ('xla', 'bfloat16'),
  ('tpu', 'float32'),
  ('tpu', 'bfloat16'),
  ('gpu', 'float32'),
  ('gpu', 'bfloat16'),
]
# Relative errors against float64.
BOUNDS = {'float64': 1e-12, 'float32': 2e-6, 'bfloat16': 1.5e-2}


def arguments(shape, dtype, seed=0):
  """Query, key, value and a cotangent."""
  *positions, key_channels, channels = shape
  rng = np.random.default_rng(seed)
  widths = (key_channels, key_channels, channels, channels)
  # Scores of about one standard deviation, else bfloat16 itself decides the result.
  scales = (key_channels**-0.5, 1, 1, 1)
  return tuple(
    jnp.asarray(scale * rng.standard_normal((*positions, width)), dtype)
    for width, scale in zip(widths, scales, strict=True)
  )


def value_and_vjp(attend, query, key, value, cotangent):
  out, pull_back = jax.vjp(attend, query, key, value)
  return out, *pull_back(cotangent)


@functools.cache
def expected(shape, dtype):
  """Of the same rounded arguments, by the definition in float64."""
  with jax.enable_x64(True):
    exact = tuple(x.astype(jnp.float64) for x in arguments(shape, dtype))
    attend = functools.partial(kernels.criss_cross_attention, implementation='reference')
    return jax.device_get(jax.jit(functools.partial(value_and_vjp, attend))(*exact))


def relative_error(actual, exact):
  actual = np.asarray(actual, np.float64)
  return np.linalg.norm(actual - exact) / max(np.linalg.norm(exact), 1e-12)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize(('implementation', 'dtype'), FORMS)
def test_value_and_gradients_match_the_definition(shape, implementation, dtype):
  with jax.enable_x64(dtype == 'float64'):
    attend = functools.partial(
      api.attention, implementation=implementation, interpret=implementation in ('tpu', 'gpu')
    )
    inputs = arguments(shape, dtype)
    actual = jax.jit(functools.partial(value_and_vjp, attend))(*inputs)
  for name, array, exact in zip(
    ('out', 'query', 'key', 'value'), actual, expected(shape, dtype), strict=True
  ):
    assert array.dtype == dtype, name
    assert array.shape == exact.shape, name
    assert relative_error(array, exact) < BOUNDS[dtype], name
