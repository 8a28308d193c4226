import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.models.crossvit import tokens_to_token


def test_soft_split_has_the_order_of_torch_s_unfold():
  image = jnp.arange(2 * 5 * 4 * 3, dtype=jnp.float32).reshape(2, 5, 4, 3) + 1
  out = tokens_to_token.soft_split(image, window=3, stride=2, padding=1)
  padded = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
  assert out.shape == (2, 3, 2, 27)
  for row in range(3):
    for column in range(2):
      window = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
      expected = window.transpose(0, 3, 1, 2).reshape(2, -1)  # channel, then row, then column
      np.testing.assert_array_equal(out[:, row, column], expected)


@pytest.mark.parametrize('performer', [False, True], ids=['transformer', 'performer'])
@pytest.mark.parametrize('patch_size', [12, 16])
def test_gives_one_token_per_patch(patch_size, performer):
  image = jnp.zeros((1, 3 * patch_size, 3 * patch_size, 3))
  module = tokens_to_token.TokensToToken(patch_size, 32, performer)
  tokens, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), image)
  assert tokens.shape == (1, 9, 32)


def test_performer_directions_are_orthogonal_constants():
  module = tokens_to_token.TokenPerformer(64)
  variables = module.init(jax.random.key(0), jnp.zeros((1, 4, 147)))
  directions = variables['constants']['directions']
  assert 'directions' not in variables['params']
  assert directions.shape == (32, 64)
  np.testing.assert_allclose(directions @ directions.T, 32 * np.eye(32), atol=1e-4)


def test_performer_drops_in_training_only():
  x = jnp.asarray(np.random.RandomState(0).standard_normal((1, 9, 20)), jnp.float32)
  module = tokens_to_token.TokenPerformer(16)
  variables = module.init(jax.random.key(0), x)
  trained = module.apply(variables, x, True, rngs={'dropout': jax.random.key(1)})
  assert np.abs(trained - module.apply(variables, x)).max() > 0


def test_other_patch_sizes_are_refused():
  with pytest.raises(ValueError, match=r'defined for patch sizes \[12, 16\], not 8'):
    tokens_to_token.TokensToToken(8, 32).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
