import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.layers import convolution


def test_even_sizes_are_padded_on_all_sides():
  """Flax's 'SAME' would see the first pixel in the middle of no window."""
  image = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(1.0)
  module = convolution.convolution(1, 1, 3, stride=2, padding=1, use_bias=False)
  out = module.apply({'params': {'kernel': jnp.arange(9.0).reshape(3, 3, 1, 1)}}, image)
  np.testing.assert_array_equal(out[0, :, :, 0], [[4, 0], [0, 0]])


def test_initialisation_is_torch_s_uniform():
  module = convolution.convolution(16, 256, 3)
  params = module.init(jax.random.key(0), jnp.zeros((1, 3, 3, 16)))['params']
  bound = (16 * 9) ** -0.5
  for name in ('kernel', 'bias'):
    assert 0.95 * bound < np.abs(params[name]).max() <= bound


@pytest.mark.parametrize(
  ('size', 'channels', 'side', 'stride', 'padding'),
  [
    ((6, 9), 3, 3, 2, 1),
    ((7, 8), 9, 3, 2, 1),
    ((9, 10), 3, 4, 4, 0),
    ((11, 8), 3, 7, 4, 3),
    ((5, 6), 8, 1, 2, 0),
  ],
  ids=str,
)
def test_windows_that_are_apart_have_the_value_and_gradients_of_the_convolution(
  size, channels, side, stride, padding
):
  rng = np.random.RandomState(0)
  geometry = (stride, stride), ((padding, padding),) * 2

  def run(form):
    def value_and_gradients(x, kernel):
      out = form(
        x,
        kernel,
        *geometry,
        dimension_numbers=jax.lax.conv_dimension_numbers(
          x.shape, kernel.shape, ('NHWC', 'HWIO', 'NHWC')
        ),
      )
      return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.value_and_grad(value_and_gradients, argnums=(0, 1), has_aux=True))

  with jax.enable_x64(True):
    x = jnp.asarray(rng.standard_normal((2, *size, channels)))
    kernel = jnp.asarray(rng.standard_normal((side, side, channels, 5)))
    (_, out), gradients = run(convolution.conv_general_dilated)(x, kernel)
    (_, expected), expected_gradients = run(jax.lax.conv_general_dilated)(x, kernel)
    np.testing.assert_allclose(out, expected, atol=1e-12)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
      np.testing.assert_allclose(gradient, wanted, atol=1e-11)


def test_a_strided_layer_takes_the_quick_form_and_any_other_the_convolution():
  image = jnp.zeros((2, 8, 8, 4))

  def traced(**fields):
    module = convolution.convolution(4, 6, 3, **fields)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return str(jax.make_jaxpr(module.apply)(variables, image))

  assert 'custom_vjp' in traced(stride=2, padding=1)
  assert 'custom_vjp' not in traced(padding=1)
  assert 'custom_vjp' not in traced(stride=2, feature_group_count=2)
  assert 'custom_vjp' not in traced(stride=2, kernel_dilation=2)


@pytest.mark.parametrize(
  ('size', 'side', 'stride', 'padding'),
  [((9, 10), 8, 4, 2), ((8, 12), 16, 4, 6), ((7, 5), 6, 2, 2), ((8, 8), 4, 4, 0)],
  ids=str,
)
def test_a_large_kernel_in_slices_is_the_convolution(size, side, stride, padding):
  rng = np.random.RandomState(0)

  def run(form):
    def loss(x, kernel):
      out = form(
        x,
        kernel,
        (stride, stride),
        ((padding, padding),) * 2,
        dimension_numbers=jax.lax.conv_dimension_numbers(
          x.shape, kernel.shape, ('NHWC', 'HWIO', 'NHWC')
        ),
      )
      return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

  with jax.enable_x64(True):
    x = jnp.asarray(rng.standard_normal((2, *size, 3)))
    kernel = jnp.asarray(rng.standard_normal((side, side, 3, 2)))
    (_, out), gradients = run(convolution.large_kernel_convolution)(x, kernel)
    (_, expected), expected_gradients = run(jax.lax.conv_general_dilated)(x, kernel)
    np.testing.assert_allclose(out, expected, atol=1e-12)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
      np.testing.assert_allclose(gradient, wanted, atol=1e-11)
