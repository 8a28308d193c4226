import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.heads.detection import deformable_decoder


def test_boxes_move_by_logits_and_points_get_the_size_that_is_said():
  box = jnp.array([0.5, 0.2, 0.3, 0.9])
  np.testing.assert_allclose(deformable_decoder.move(box, jnp.zeros(4)), box, rtol=1e-5)
  moved = deformable_decoder.move(box, jnp.array([np.log(3), 0, 0, 0]))
  np.testing.assert_allclose(moved, [0.75, 0.2, 0.3, 0.9], rtol=1e-5)
  point = deformable_decoder.move(box[:2], jnp.array([0, 0, -2, 2.0]))
  np.testing.assert_allclose(point, [0.5, 0.2, *jax.nn.sigmoid(np.array([-2, 2.0]))], rtol=1e-5)


def test_logits_of_the_border_are_finite():
  logits = deformable_decoder.inverse_sigmoid(jnp.array([-1.0, 0, 0.5, 1, 2]))
  np.testing.assert_allclose(logits, np.log([1e-5, 1e-5, 1, 1e5, 1e5]), rtol=1e-4, atol=1e-6)


def test_valid_ratios_are_width_then_height():
  padding = np.ones((1, 4, 8), bool)
  padding[0, :3, :2] = False
  ratios = deformable_decoder.valid_ratios(jnp.asarray(padding))
  np.testing.assert_array_equal(ratios, [[2 / 8, 3 / 4]])


def test_at_first_a_regressor_says_the_same_of_every_query_and_several_may_start_alike():
  def variables(seed, key):
    head = deformable_decoder.Regressor((0.0, 0.0, -2.0), key)
    said, variables = head.init_with_output(jax.random.key(seed), jnp.eye(4)[:2])
    np.testing.assert_array_equal(said, [[0, 0, -2]] * 2)
    return jax.tree.leaves(variables)

  for own, key in ((True, None), (False, jax.random.key(7))):
    differ = [not (x == y).all() for x, y in zip(variables(0, key), variables(1, key), strict=True)]
    assert differ == [own] * 4 + [False] * 2
