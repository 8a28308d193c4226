import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.attention import dynamic_position_bias


def test_biases_are_looked_up_by_offset():
  table = jnp.asarray(np.random.RandomState(0).standard_normal((5, 7, 2)), jnp.float32)
  bias = dynamic_position_bias.relative_position_bias(table)
  assert bias.shape == (2, 12, 12)
  for q in range(12):
    for k in range(12):
      np.testing.assert_array_equal(bias[:, q, k], table[q // 4 - k // 4 + 2, q % 4 - k % 4 + 3])
  offsets = dynamic_position_bias.relative_offsets((3, 4))
  np.testing.assert_array_equal(offsets[1, 5], [-1, 2])


def test_networks_compute_in_at_least_float32():
  table, _ = dynamic_position_bias.DynamicPositionBias(2, 2).init_with_output(
    jax.random.key(0), dynamic_position_bias.relative_offsets((4, 4))
  )
  assert table.dtype == jnp.float32
