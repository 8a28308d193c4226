import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.heads.detection import retinanet

MAPS = [
  jax.random.normal(jax.random.key(i), (2, *size, 4)) for i, size in enumerate([(2, 3), (1, 2)])
]


def test_an_untrained_head_believes_in_one_of_a_hundred():
  head = retinanet.RetinaNetHead(3, 2, channels=4, num_convs=1, dtype=jnp.bfloat16)
  outputs, variables = jax.jit(head.init_with_output)(jax.random.key(0), MAPS)
  assert outputs['logits'].shape == (2, (6 + 2) * 2, 3)
  assert outputs['deltas'].shape == (2, 16, 4)
  assert outputs['logits'].dtype == outputs['deltas'].dtype == jnp.float32
  np.testing.assert_allclose(jax.nn.sigmoid(outputs['logits']), 0.01, rtol=0.05)
  np.testing.assert_allclose(outputs['deltas'], 0, atol=0.05)
  assert set(variables['params']) == {'class_conv_0', 'box_conv_0', 'classifier', 'regressor'}


def test_rows_are_the_levels_cells_and_anchors_in_this_order():
  maps = [np.arange(2 * 3 * 4).reshape(1, 2, 3, 4), 100 + np.arange(4).reshape(1, 1, 1, 4)]
  rows = retinanet.rows_of_anchors([jnp.asarray(x, jnp.bfloat16) for x in maps], 2)
  assert rows.shape == (1, 2 * 3 * 2 + 2, 2)
  np.testing.assert_array_equal(rows[0, 2 * 4 + 1], maps[0][0, 1, 1, 2:])  # Row 1, column 1.
  np.testing.assert_array_equal(rows[0, -2:], maps[1].reshape(2, 2))


def test_every_level_is_seen_by_the_same_convolutions():
  head = retinanet.RetinaNetHead(3, 2, channels=4, num_convs=1)
  variables = jax.jit(head.init)(jax.random.key(0), MAPS)
  outputs = lambda v: (head.apply(v, MAPS), [head.apply(v, [x]) for x in MAPS])
  together, alone = jax.jit(outputs)(variables)
  for name, rows in together.items():
    expected = jnp.concatenate([x[name] for x in alone], axis=1)
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)
