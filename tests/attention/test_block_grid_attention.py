import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.attention import block_grid_attention


def _normal(*shape, seed=0):
  return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), jnp.float32)


def test_blocks_are_windows_and_grids_are_spread():
  x = jnp.arange(4 * 6).reshape(1, 4, 6, 1)
  groups = {
    kind: block_grid_attention.find_grouping((4, 6), kind, 2).split(x) for kind in ('block', 'grid')
  }
  np.testing.assert_array_equal(groups['block'][0, 4, :, 0], [14, 15, 20, 21])
  np.testing.assert_array_equal(groups['grid'][0, 4, :, 0], [7, 10, 19, 22])  # group (1, 1)
  with pytest.raises(ValueError, match="kind='window' is not one of block, grid"):
    block_grid_attention.find_grouping((4, 6), 'window', 2)


@pytest.mark.parametrize('kind', ['block', 'grid'])
def test_attends_within_a_group_with_the_bias_of_the_relative_position(kind):
  x = _normal(1, 4, 4, 4)
  module = block_grid_attention.BlockGridAttention(2, kind=kind, window=2)
  variables = jax.eval_shape(module.init, jax.random.key(0), x)
  variables = jax.tree.map(lambda leaf: 0.5 * _normal(*leaf.shape, seed=leaf.size), variables)
  out = jax.jit(module.apply)(variables, x)
  params = jax.device_get(variables['params'])
  qkv = np.einsum('byxc,cphd->pyxhd', x, params['qkv']['kernel'])
  query, key, value = qkv + params['qkv']['bias'][:, None, None]
  step = 1 if kind == 'block' else 2
  top, left = (2, 0) if kind == 'block' else (0, 1)  # a group's first token
  group = [(top + step * a, left + step * b) for a in range(2) for b in range(2)]
  result = np.zeros((2, 2))
  position = 2  # row 1, column 0 of the group
  for head in range(2):
    scores = []
    for index, token in enumerate(group):
      down, right = index // 2 - 1, index % 2 - 0
      bias = params['relative_position_bias'][head, down + 1, right + 1]
      scores.append(query[group[position]][head] @ key[token][head] * 2**-0.5 + bias)
    weights = np.exp(scores) / np.exp(scores).sum()
    result[head] = sum(w * value[token][head] for w, token in zip(weights, group, strict=True))
  expected = np.einsum('hd,hdc->c', result, params['out']['kernel']) + params['out']['bias']
  np.testing.assert_allclose(out[0][group[position]], expected, atol=1e-5)


def test_maps_of_any_size_keep_their_size():
  x = _normal(1, 5, 3, 4)
  module = block_grid_attention.BlockGridAttention(2, window=4)
  assert jax.eval_shape(module.init_with_output, jax.random.key(0), x)[0].shape == x.shape
