"""What tokens are made of."""

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.models.mit import encoder


def test_positions_are_told_apart_in_bfloat16_too():
  """Of cells around 400 bfloat16 has every second one only."""
  module = encoder.PositionMlp((8, 8))
  position = 400 + jnp.arange(12.0).reshape(1, 4, 3)
  variables = module.init(jax.random.key(0), position)
  first = variables['params']['linear_0']
  hidden = np.maximum(np.float64(position) @ first['kernel'] + first['bias'], 0)
  last = variables['params']['linear_1']
  expected = hidden @ last['kernel'] + last['bias']
  clone = module.clone(dtype=jnp.bfloat16)
  np.testing.assert_allclose(clone.apply(variables, position), expected, rtol=1e-5, atol=1e-4)


def test_class_tokens_come_first_and_the_sum_with_positions_is_not_rounded():
  tokens = jnp.full((2, 3, 4), 1.5, jnp.bfloat16) + 300.25 * jnp.ones((), jnp.float32)
  mask = jnp.array([[True, True, False], [True, False, False]])
  x, all_of_them = encoder.with_classes(jnp.arange(8.0).reshape(2, 4), tokens, mask)
  assert (x.shape, x.dtype) == ((2, 5, 4), jnp.float32)
  np.testing.assert_array_equal(x[1, :2], jnp.arange(8.0).reshape(2, 4))
  assert (x[:, 2:] == 301.75).all()
  assert all_of_them.tolist() == [[True] * 4 + [False], [True] * 3 + [False] * 2]
  assert encoder.with_classes(jnp.zeros((2, 4)), tokens)[1] is None


def test_positions_are_centred_in_their_scene():
  position = jnp.array([[[2.0, 4, 6], [0, 0, 0], [10, 6, 6], [6, 4, 6]]])
  mask = jnp.array([[True, False, True, True]])
  centred = encoder.centre_positions(position, mask)
  assert centred[0].tolist() == [[-1, -0.25, 0], [0, 0, 0], [1, 0.25, 0], [0, -0.25, 0]]


def test_padding_does_not_matter():
  x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 8)), jnp.float32)
  module = encoder.Encoder(2, 2)
  variables = jax.jit(module.init)(jax.random.key(0), x)
  padded = jnp.concatenate([x, jnp.full((1, 2, 8), 9.0)], axis=1)
  mask = jnp.arange(6)[None] < 4
  got = jax.jit(module.apply)(variables, padded, mask)[:, :4]
  np.testing.assert_allclose(got, jax.jit(module.apply)(variables, x), rtol=1e-5, atol=1e-6)
