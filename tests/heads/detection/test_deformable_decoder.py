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


def test_at_first_boxes_are_of_the_size_bias():
  head = deformable_decoder.BoxRegressor(size_bias=-2.0)
  change, _ = head.init_with_output(jax.random.key(0), jnp.ones((2, 4)))
  np.testing.assert_array_equal(change, [[0, 0, -2, -2]] * 2)
