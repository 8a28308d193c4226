import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.attention import criss_cross


def maps(shape, widths, seed=0):
  rng = np.random.default_rng(seed)
  return tuple(jnp.asarray(rng.standard_normal((*shape, width))) for width in widths)


def test_a_video_of_one_frame_is_an_image():
  (x,) = maps((2, 5, 6), (16,))
  module = criss_cross.CrissCrossAttention()
  variables = jax.jit(module.init)(jax.random.key(0), x)
  variables['params']['gate'] = jnp.asarray(0.7)
  image = jax.jit(module.apply)(variables, x)
  video = jax.jit(module.apply)(variables, x[:, None])
  np.testing.assert_allclose(video[:, 0], image, rtol=1e-5, atol=1e-5)


def reached(recurrence, shape, source):
  """Which positions the input at one position changes."""
  with jax.enable_x64(True):
    (x,) = maps((1, *shape), (8,))
    module = criss_cross.CrissCrossAttention(
      recurrence=recurrence, reduction=4, param_dtype=jnp.float64
    )
    variables = jax.jit(module.init)(jax.random.key(0), x)
    variables['params']['gate'] = jnp.asarray(1.0)
    changed = x.at[(0, *source)].add(1.0)
    out = jax.jit(module.apply)(variables, jnp.concatenate([x, changed]))
    return np.abs(np.asarray(out[0] - out[1])).sum(axis=-1) > 0


def test_once_reaches_the_cross_and_twice_the_image():
  itself = np.zeros((5, 6), bool)
  itself[2, 3] = True
  cross = itself.any(axis=1, keepdims=True) | itself.any(axis=0, keepdims=True)
  np.testing.assert_array_equal(reached(0, (5, 6), (2, 3)), itself)
  np.testing.assert_array_equal(reached(1, (5, 6), (2, 3)), cross)
  assert reached(2, (5, 6), (2, 3)).all()


def test_a_video_takes_three_times():
  assert not reached(2, (3, 4, 4), (1, 2, 3)).all()
  assert reached(3, (3, 4, 4), (1, 2, 3)).all()


def test_it_begins_as_the_identity():
  (x,) = maps((1, 4, 5), (16,))
  module = criss_cross.CrissCrossAttention()
  variables = jax.jit(module.init)(jax.random.key(0), x)
  np.testing.assert_array_equal(jax.jit(module.apply)(variables, x), x)


def test_a_width_that_does_not_reduce_is_refused():
  with pytest.raises(ValueError, match='reduction=8 does not divide the width 12'):
    criss_cross.CrissCrossAttention().init(jax.random.key(0), jnp.zeros((1, 2, 2, 12)))
