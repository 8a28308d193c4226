import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.attention import sketch_guided


def arrays(*shapes):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def applied(module, *arguments):
  variables = jax.jit(module.init)(jax.random.key(0), *arguments)
  return variables, jax.jit(module.apply)


def test_several_guides_are_attended_to_one_by_one():
  x, guides, x_position, guide_position = arrays((2, 5, 8), (2, 3, 4, 8), (5, 8), (4, 8))
  module = sketch_guided.GuidedFusion(num_heads=2, hidden=16)
  variables, apply = applied(module, x, guides, x_position, guide_position)
  _, features = apply(variables, x, guides, x_position, guide_position)
  each = [
    apply(variables, x, guides[:, i : i + 1], x_position, guide_position)[1] for i in range(3)
  ]
  for name, value in features.items():
    np.testing.assert_allclose(value, np.mean([part[name] for part in each], axis=0), atol=1e-5)
  np.testing.assert_allclose(features['weights'].sum(axis=-1), np.ones((2, 5)), rtol=1e-5)


@pytest.mark.extended
def test_one_sketch_is_fused_alike_either_way():
  x, sketches = arrays((1, 3, 2, 32), (1, 1, 2, 2, 8))
  modules = [
    sketch_guided.SketchCrossAttention(fusion, num_heads=2, hidden=8)
    for fusion in ('mean', 'trainable')
  ]
  variables, apply = applied(modules[0], x, sketches)
  expected, _ = apply(variables, x, sketches)
  np.testing.assert_allclose(jax.jit(modules[1].apply)(variables, x, sketches)[0], expected)


@pytest.mark.extended
def test_equal_sketches_fuse_to_what_none_of_them_changes():
  """Where no sketch differs from the mean, values are 0: the order is of no account either."""
  (sketches,) = arrays((1, 3, 2, 2, 32))
  module = sketch_guided.SketchFusion(num_heads=2, hidden=8)
  variables, apply = applied(module, sketches)
  out = apply(variables, sketches)
  np.testing.assert_allclose(apply(variables, sketches[:, ::-1]), out, atol=1e-5)
  assert out.shape == (1, 2, 2, 32)
