import jax
import jax.numpy as jnp
import numpy as np

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
