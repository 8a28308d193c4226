import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import kernels
from crossattn_jax.layers import convolution


@pytest.mark.parametrize(
  ('size', 'channels', 'side', 'stride', 'padding'),
  [
    ((6, 9), 3, 3, 2, 1),
    ((7, 8), 9, 3, 2, 1),
    ((9, 10), 3, 4, 4, 0),
    ((11, 8), 3, 7, 4, 3),
    ((5, 6), 8, 1, 2, 0),
    # At stride 1, with fewer channels than come out and with more.
    ((5, 6), 3, 1, 1, 0),
    ((5, 6), 3, 3, 1, 1),
    ((5, 6), 8, 3, 1, 1),
    ((6, 7), 8, 4, 1, 1),
    ((6, 7), 4, 2, 1, 2),
    # Kernels several strides wide.
    ((9, 10), 3, 8, 4, 2),
    ((8, 12), 3, 16, 4, 6),
    ((7, 5), 3, 6, 2, 2),
    ((8, 6), 3, 6, 2, 2),
  ],
  ids=str,
)
def test_every_form_has_the_value_and_gradients_of_the_convolution(
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
    (_, out), gradients = run(kernels.conv_general_dilated)(x, kernel)
    (_, expected), expected_gradients = run(jax.lax.conv_general_dilated)(x, kernel)
    np.testing.assert_allclose(out, expected, atol=1e-12)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
      np.testing.assert_allclose(gradient, wanted, atol=1e-11)


@pytest.mark.parametrize('side', [1, 3])
def test_a_convolution_of_sentences_is_a_product(side):
  x = jax.random.normal(jax.random.key(0), (2, 7, 5))
  kernel = jax.random.normal(jax.random.key(1), (side, 5, 4))

  def run(form):
    numbers = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, ('NWC', 'WIO', 'NWC'))
    return lambda x, kernel: form(x, kernel, (1,), [(0, 0)], dimension_numbers=numbers)

  product, expected = run(kernels.conv_general_dilated), run(jax.lax.conv_general_dilated)
  assert 'conv_general_dilated' not in str(jax.make_jaxpr(product)(x, kernel))
  np.testing.assert_allclose(product(x, kernel), expected(x, kernel), atol=1e-5)


def test_layers_take_the_quick_forms_and_any_other_the_convolution():
  image = jnp.zeros((2, 8, 8, 4))

  def traced(side=3, **fields):
    module = convolution.convolution(4, 6, side, **fields)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return str(jax.make_jaxpr(module.apply)(variables, image))

  assert 'custom_vjp' in traced(stride=2, padding=1)
  assert 'custom_vjp' in traced(padding=1)
  assert 'custom_vjp' not in traced(stride=2, feature_group_count=2)
  assert 'custom_vjp' not in traced(stride=2, kernel_dilation=2)
  # A kernel two strides wide is one of whole blocks, or has twice the channels, in two slices.
  assert 'f32[2,2,16,6]' in traced(side=4, stride=2)
  assert 'f32[2,4,5,12] = conv_general_dilated' in traced(side=4, stride=2, padding=1)
