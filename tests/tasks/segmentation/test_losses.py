import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from crossattn_jax.tasks.segmentation import losses

RNG = np.random.RandomState(0)
LOGITS = jnp.asarray(RNG.standard_normal((2, 16, 24, 4)), jnp.float32)
LABELS = jnp.asarray(np.where(RNG.rand(2, 16, 24) < 0.2, 255, RNG.randint(4, size=(2, 16, 24))))
NOTHING = jnp.full_like(LABELS, 255)
ALL = {
  'cross_entropy': losses.cross_entropy,
  'ohem': lambda z, y: losses.ohem_cross_entropy(z, y, threshold=0.3, min_kept=64),
  'lovasz': losses.lovasz_softmax,
  'category': lambda z, y: losses.category_consistency(z, y, 4).total(),
}
_consistency = jax.jit(losses.category_consistency, static_argnames=('num_classes', 'piecewise'))


def _log_loss():
  log = np.asarray(jax.nn.log_softmax(LOGITS), np.float64)
  return -np.take_along_axis(log, np.where(LABELS == 255, 0, LABELS)[..., None], -1)[..., 0]


def test_cross_entropy_is_the_mean_over_pixels_with_a_class():
  valid = np.asarray(LABELS) != 255
  expected = _log_loss()[valid].mean()
  np.testing.assert_allclose(losses.cross_entropy(LOGITS, LABELS), expected, rtol=1e-5)
  counted = losses.cross_entropy(LOGITS, LABELS, count_ignored=True)
  np.testing.assert_allclose(counted, expected * valid.mean(), rtol=1e-5)


def test_class_weights_give_a_weighted_mean():
  weights = jnp.asarray([1.0, 0.0, 2.0, 0.5])
  w = np.where(LABELS == 255, 0, np.asarray(weights)[np.where(LABELS == 255, 0, LABELS)])
  np.testing.assert_allclose(
    losses.cross_entropy(LOGITS, LABELS, class_weights=weights),
    (_log_loss() * w).sum() / w.sum(),
    rtol=1e-5,
  )


@pytest.mark.parametrize('name', ALL)
def test_a_batch_without_any_class_costs_nothing_and_has_no_gradient(name):
  value, gradient = jax.jit(jax.value_and_grad(ALL[name]))(LOGITS, NOTHING)
  assert value == 0
  assert (gradient == 0).all()


@pytest.mark.parametrize('name', ALL)
def test_pixels_without_a_class_get_no_gradient(name):
  gradient = jax.jit(jax.grad(ALL[name]))(LOGITS, LABELS)
  assert jnp.isfinite(gradient).all()
  assert (gradient[np.asarray(LABELS) == 255] == 0).all()
  assert (gradient[np.asarray(LABELS) != 255] != 0).any()


def test_hard_pixels_are_at_least_as_many_as_asked_for():
  easy = 8 * jax.nn.one_hot(LABELS, 4) + 0.3 * LOGITS
  few = losses.ohem_threshold(easy, LABELS, threshold=0.0, min_kept=64)
  many = losses.ohem_threshold(easy, LABELS, threshold=0.0, min_kept=256)
  everything = losses.ohem_threshold(easy, LABELS, threshold=0.0, min_kept=100_000)
  assert 0 < few < many <= everything == 1
  assert losses.ohem_threshold(easy, LABELS, threshold=0.7, min_kept=0) == np.float32(0.7)


def test_hard_pixels_are_looked_for_where_scipy_does():
  rng = np.random.RandomState(1)
  labels, logits = rng.randint(4, size=(1, 17, 30)), rng.standard_normal((1, 17, 30, 4))
  shares = np.asarray(jax.nn.softmax(logits))
  small = ndimage.zoom(labels, (1, 0.25, 0.25), order=0)
  shares = ndimage.zoom(shares, (1, 0.25, 0.25, 1), order=1)
  assert not small[..., -1].any()  # SciPy misses the last column of this size.
  true = np.sort(np.take_along_axis(shares, small[..., None], -1).ravel())
  found = losses.ohem_threshold(logits, jnp.asarray(labels), threshold=0, min_kept=320, factor=4)
  np.testing.assert_allclose(found, true[19], rtol=1e-5)


def test_lovasz_of_certain_predictions_is_one_minus_the_mean_iou():
  predictions = RNG.randint(4, size=LABELS.shape)
  valid = np.asarray(LABELS) != 255
  iou = []
  for index in range(4):
    true, guess = (np.asarray(LABELS) == index) & valid, (predictions == index) & valid
    iou.append((true & guess).sum() / (true | guess).sum())
  certain = 1e4 * jax.nn.one_hot(predictions, 4)
  np.testing.assert_allclose(losses.lovasz_softmax(certain, LABELS), 1 - np.mean(iou), rtol=1e-5)


def test_one_class_has_no_distance_to_others_and_one_pixel_none_to_its_mean():
  points = jnp.asarray(RNG.standard_normal((1, 2, 2, 3)), jnp.float32)
  labels = jnp.asarray([[[1, 255], [255, 255]]])
  loss = _consistency(points, labels, num_classes=4)
  assert loss.variance == loss.distance == 0
  np.testing.assert_allclose(loss.norm, np.linalg.norm(points[0, 0, 0]), rtol=1e-6)
  gradient = jax.jit(jax.grad(lambda p: _consistency(p, labels, num_classes=4).variance))(points)
  assert (gradient == 0).all()


@pytest.mark.parametrize(('distance', 'piecewise', 'expected'), [
  (0.4, True, 0.0),
  (1.2, True, 0.7**2),
  (2.5, True, 2.5 - 1.5 + 1.0),
  (2.5, False, 2.0**2),
])  # fmt: skip
def test_the_cost_of_a_distance_grows_as_the_paper_says(distance, piecewise, expected):
  points = jnp.asarray([-distance, distance]).reshape(1, 1, 2, 1)
  labels = jnp.zeros((1, 1, 2), int)
  loss = _consistency(points, labels, num_classes=2, piecewise=piecewise)
  np.testing.assert_allclose(loss.variance, expected, atol=1e-6)
