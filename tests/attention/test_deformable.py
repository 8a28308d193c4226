import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.attention import deformable

SIZES = ((4, 6), (2, 3))


def test_offsets_from_points_are_cells_and_from_boxes_halves_of_sides():
  offsets = jnp.array([[1.0, -2.0], [4.0, 0.0]]).reshape(1, 1, 1, 1, 2, 2)
  point = jnp.array([0.5, 0.25]).reshape(1, 1, 1, 2)
  at = deformable.sampling_locations(point, offsets, [(4, 8)])
  np.testing.assert_allclose(at.reshape(2, 2), [[0.5 + 1 / 8, 0.25 - 2 / 4], [0.5 + 4 / 8, 0.25]])
  box = jnp.array([0.5, 0.25, 0.2, 0.4]).reshape(1, 1, 1, 4)
  at = deformable.sampling_locations(box, offsets, [(4, 8)])
  np.testing.assert_allclose(
    at.reshape(2, 2), [[0.5 + 0.1 / 2, 0.25 - 2 * 0.2 / 2], [0.5 + 4 * 0.1 / 2, 0.25]], rtol=1e-6
  )


def test_equal_scores_take_the_mean_of_all_samples():
  value = jnp.arange(24 + 6, dtype=jnp.float32).reshape(1, 30, 1, 1)
  centers = jnp.array([[1.5 / 6, 0.5 / 4], [0.5 / 6, 2.5 / 4]]), jnp.array([[2.5 / 3, 0.75]] * 2)
  locations = jnp.stack(centers).reshape(1, 1, 1, 2, 2, 2)
  out = deformable.deformable_attention(value, locations, jnp.zeros((1, 1, 1, 2, 2)), SIZES)
  np.testing.assert_allclose(out, [[[[np.mean([1, 12, 29, 29])]]]], rtol=1e-6)


def test_initial_offsets_go_around_a_square_ever_farther():
  offsets = deformable.offset_init(8, 2, 3)(jax.random.key(0), (8 * 2 * 3 * 2,))
  offsets = np.asarray(offsets).reshape(8, 2, 3, 2)
  np.testing.assert_allclose(offsets[1, 0], [[1, 1], [2, 2], [3, 3]], atol=1e-6)
  np.testing.assert_allclose(offsets[4, 1], [[-1, 0], [-2, 0], [-3, 0]], atol=1e-6)


@pytest.fixture(scope='module')
def module():
  return deformable.DeformableAttention(num_heads=2, num_points=2)


def inputs(dtype=jnp.float32, seed=0):
  rng = np.random.default_rng(seed)
  return (
    jnp.asarray(rng.standard_normal((2, 3, 8)), dtype),
    jnp.asarray(rng.uniform(0, 1, (2, 3, 2, 4)), dtype),
    jnp.asarray(rng.standard_normal((2, 30, 8)), dtype),
  )


@pytest.mark.extended
def test_padding_has_no_influence(module):
  query, reference, memory = inputs()
  padding = jnp.arange(30) % 5 == 0
  padding = jnp.stack([padding, ~padding])
  init = jax.jit(lambda x: module.init(jax.random.key(0), query, reference, x, SIZES))
  variables = init(memory)
  apply = jax.jit(lambda x: module.apply(variables, query, reference, x, SIZES, padding))
  changed = jnp.where(padding[..., None], 1e4, memory)
  np.testing.assert_array_equal(apply(changed), apply(memory))
  assert not np.allclose(apply(memory), apply(-memory))


@pytest.mark.extended
def test_bfloat16_computes_positions_in_float32():
  arguments = inputs()
  modules = [deformable.DeformableAttention(2, 2, dtype=dtype) for dtype in (None, jnp.bfloat16)]
  variables = jax.jit(lambda *x: modules[0].init(jax.random.key(0), *x, SIZES))(*arguments)
  exact, rounded = (
    jax.jit(lambda *x, module=module: module.apply(variables, *x, SIZES))(*arguments)
    for module in modules
  )
  assert rounded.dtype == jnp.bfloat16
  np.testing.assert_allclose(rounded.astype(jnp.float32), exact, atol=0.05)


def test_what_does_not_go_together_is_said(module):
  query, reference, memory = inputs()
  with pytest.raises(ValueError, match='num_heads=3 does not divide the width 8'):
    deformable.DeformableAttention(3).init(jax.random.key(0), query, reference, memory, SIZES)
  with pytest.raises(ValueError, match=r'reference must be \[batch, queries, 2 levels, 2 or 4\]'):
    module.init(jax.random.key(0), query, reference[:, :, :1], memory, SIZES)
