import jax.numpy as jnp
import numpy as np

from crossattn_jax.heads.detection import queries


def test_pairs_of_query_and_class_come_best_first_in_pixels():
  logits = jnp.array([[[-3.0, 2.0], [1.0, 0.0]]])
  boxes = jnp.array([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.5, 1.0]]])
  found = queries.find_objects(logits, boxes, jnp.array([[100, 200]]), 3)
  np.testing.assert_array_equal(found.labels, [[1, 0, 1]])
  np.testing.assert_allclose(found.scores[0, 2], 0.5)
  first, second = [80, 30, 120, 70], [0, 0, 100, 100]
  np.testing.assert_allclose(found.boxes, [[first, second, second]], rtol=1e-5, atol=1e-4)
  assert queries.find_objects(logits, boxes, jnp.array([[1, 1]])).scores.shape == (1, 4)
