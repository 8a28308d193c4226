import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.attention import reconfigured


def test_shifted_windows_hang_over_the_map():
  grouping = reconfigured.shifted_windows((4, 4), 2, 1)
  windows = np.asarray(grouping.split(grouping.pad(jnp.arange(1, 17).reshape(1, 4, 4, 1))))
  seen = [sorted(set(window) - {0}) for window in windows[0, ..., 0].tolist()]
  assert seen == [[1], [2, 3], [4], [5, 9], [6, 7, 10, 11], [8, 12], [13], [14, 15], [16]]
  assert not reconfigured.shifted_windows((4, 4), 2, 0).pads


def arrays(*shapes):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


@pytest.fixture(scope='module')
def module():
  return reconfigured.ReconfiguredAttention(num_heads=2, window=2)


@pytest.mark.extended
def test_detection_tokens_see_patches_that_are_no_padding_and_patches_see_no_tokens(module):
  patches, det, position, other = arrays((1, 4, 4, 8), (1, 3, 8), (1, 3, 4, 8), (1, 3, 8))
  padding = jnp.zeros((1, 3, 4), bool).at[0, 2].set(True).at[0, :, 3].set(True)
  variables = jax.jit(module.init)(jax.random.key(0), patches, det, position, padding)
  apply = jax.jit(lambda *x: module.apply(variables, *x))
  out, out_det = apply(patches, det, position, padding)
  hidden = jnp.pad(padding, ((0, 0), (0, 1), (0, 0)), constant_values=True)[..., None]
  _, same_det = apply(jnp.where(hidden, 100.0, patches), det, position, padding)
  np.testing.assert_allclose(same_det, out_det, atol=1e-6)
  same, changed = apply(patches, other, position, padding)
  np.testing.assert_array_equal(same, out)
  assert not np.allclose(changed, out_det)


@pytest.mark.extended
def test_without_positions_detection_tokens_see_each_other_only(module):
  patches, det = arrays((1, 2, 2, 8), (1, 3, 8))
  variables = jax.jit(module.init)(jax.random.key(0), patches, det)
  apply = jax.jit(lambda *x: module.apply(variables, *x))
  np.testing.assert_array_equal(apply(patches, det)[1], apply(-patches, det)[1])
