import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.models.crossvit import patch_embedding


def test_linear_embedding_is_one_product_per_patch_row_by_row():
  image = jnp.asarray(np.random.RandomState(0).standard_normal((2, 6, 8, 3)), jnp.float32)
  module = patch_embedding.LinearPatchEmbedding(2, 5)
  variables = module.init(jax.random.key(0), image)
  kernel, bias = variables['params']['conv']['kernel'], variables['params']['conv']['bias']
  tokens = module.apply(variables, image)
  assert tokens.shape == (2, 12, 5)
  expected = np.tensordot(image[0, 2:4, 6:8], kernel, 3) + bias  # row 1, column 3
  np.testing.assert_allclose(tokens[0, 1 * 4 + 3], expected, rtol=1e-5)


def test_pixels_beyond_the_last_whole_patch_are_not_seen():
  image = jnp.asarray(np.random.RandomState(0).standard_normal((1, 7, 9, 3)), jnp.float32)
  module = patch_embedding.LinearPatchEmbedding(2, 5)
  variables = module.init(jax.random.key(0), image)
  tokens = module.apply(variables, image)
  np.testing.assert_array_equal(tokens, module.apply(variables, image[:, :6, :8]))


@pytest.mark.parametrize(('patch_size', 'grid'), [(12, (2, 4)), (16, (3, 2))])
def test_three_convolutions_give_one_token_per_patch(patch_size, grid):
  image = jnp.zeros((1, grid[0] * patch_size, grid[1] * patch_size, 3))
  module = patch_embedding.ConvPatchEmbedding(patch_size, 8)
  tokens, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), image)
  assert tokens.shape == (1, grid[0] * grid[1], 8)
  widths = [variables['params'][f'conv_{i}']['bias'].shape for i in range(3)]
  assert widths == [(2,), (4,), (8,)]


def test_three_convolutions_exist_for_two_patch_sizes():
  with pytest.raises(ValueError, match=r'defined for patch sizes \[12, 16\], not 8'):
    patch_embedding.ConvPatchEmbedding(8, 8).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


def test_initialisation_is_torch_s_uniform():
  module = patch_embedding.LinearPatchEmbedding(16, 384)
  params = module.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))['params']['conv']
  bound = (3 * 16 * 16) ** -0.5
  for name in ('kernel', 'bias'):
    assert np.abs(params[name]).max() <= bound
    assert np.abs(params[name]).max() > 0.98 * bound
  np.testing.assert_allclose(np.std(params['kernel']), bound / np.sqrt(3), rtol=0.01)
