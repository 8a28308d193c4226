import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import kernels
from crossattn_jax.kernels.depthwise import cpu, reference

SHAPES = [(2, 5, 7, 3, 3), (1, 6, 4, 8, 5), (2, 1, 1, 2, 5), (1, 2, 9, 1, 3)]


def _arrays(shape, dtype=np.float64):
  batch, height, width, channels, side = shape
  rng = np.random.RandomState(0)
  x, cotangent = (rng.standard_normal((batch, height, width, channels)) for _ in range(2))
  kernel = rng.standard_normal((side, side, 1, channels))
  return tuple(jnp.asarray(array, dtype) for array in (x, kernel, cotangent))


def _expected(x, kernel):
  """Correlation by the definition."""
  side, (height, width) = kernel.shape[0], x.shape[1:3]
  padded = np.pad(x, ((0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0)))
  out = np.zeros_like(x)
  for y in range(height):
    for u in range(width):
      window = padded[:, y : y + side, u : u + side]
      out[:, y, u] = np.einsum('bijc,ijc->bc', window, kernel[:, :, 0])
  return out


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_each_channel_is_correlated_with_its_own_kernel(shape):
  with jax.enable_x64(True):
    x, kernel, _ = _arrays(shape)
    out = jax.jit(kernels.depthwise_convolution)(x, kernel)
    np.testing.assert_allclose(out, _expected(np.asarray(x), np.asarray(kernel)), atol=1e-12)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_both_forms_have_the_same_value_and_gradients(shape):
  with jax.enable_x64(True):
    x, kernel, cotangent = _arrays(shape)
    np.testing.assert_allclose(cpu.forward(x, kernel), reference.forward(x, kernel), atol=1e-12)
    shifted = cpu.backward(x, kernel, cotangent)
    grouped = reference.backward(x, kernel, cotangent)
    for a, b in zip(shifted, grouped, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-11)


@pytest.mark.parametrize('stride', [2, 4])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_strides_take_every_nth_position(shape, stride):
  with jax.enable_x64(True):
    x, kernel, cotangent = _arrays(shape)
    expected = _expected(np.asarray(x), np.asarray(kernel))[:, ::stride, ::stride]
    cotangent = cotangent[:, ::stride, ::stride]
    for form in (cpu.forward, reference.forward):
      np.testing.assert_allclose(form(x, kernel, stride), expected, atol=1e-12)
    shifted = cpu.backward(x, kernel, cotangent, stride)
    grouped = reference.backward(x, kernel, cotangent, stride)
    for a, b in zip(shifted, grouped, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-11)


def test_its_gradient_is_that_of_the_form_of_the_platform():
  x, kernel, cotangent = _arrays((1, 4, 3, 2, 3), np.float32)
  backward = lambda x, kernel, g: jax.vjp(kernels.depthwise_convolution, x, kernel)[1](g)
  expected = cpu.backward(x, kernel, cotangent)
  for a, b in zip(jax.jit(backward)(x, kernel, cotangent), expected, strict=True):
    np.testing.assert_array_equal(a, b)


def test_bfloat16_adds_up_in_float32():
  x, kernel, cotangent = _arrays((1, 8, 8, 4, 5), np.float32)
  half = tuple(array.astype(jnp.bfloat16) for array in (x, kernel, cotangent))
  wide = tuple(array.astype(jnp.float32) for array in half)
  out = cpu.forward(*half[:2])
  assert out.dtype == jnp.bfloat16
  # One rounding, of the result.
  np.testing.assert_allclose(out, cpu.forward(*wide[:2]), rtol=2**-8)
  for a, b in zip(
    cpu.backward(*half),
    cpu.backward(*wide),
    strict=True,
  ):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(a, b, rtol=2**-8)


def test_lowering_picks_the_form_of_the_platform():
  x, kernel, _ = _arrays((1, 8, 8, 4, 3), np.float32)
  function = jax.jit(kernels.depthwise_convolution)
  assert 'stablehlo.convolution' not in function.lower(x, kernel).as_text()
  exported = jax.export.export(function, platforms=['tpu'])(x, kernel)
  assert 'stablehlo.convolution' in exported.mlir_module()
