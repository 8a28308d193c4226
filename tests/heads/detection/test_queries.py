import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import parallel
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


@pytest.mark.extended
def test_each_device_sorts_its_own_images():
  rng = np.random.default_rng(0)
  operands = [
    jnp.asarray(rng.uniform(0, 1, shape), jnp.float32) for shape in ((8, 3, 2), (8, 3, 4), (8, 2))
  ]
  find = jax.jit(lambda *x: queries.find_objects(*x, 4))
  expected = find(*operands)
  mesh = parallel.create_mesh(data=8)
  with jax.set_mesh(mesh):
    split = [jax.device_put(x, jax.NamedSharding(mesh, jax.P('data'))) for x in operands]
    program = find.lower(*split).compile()
  assert 'all-gather' not in program.as_text()
  for own, other in zip(jax.tree.leaves(program(*split)), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(own, other)
