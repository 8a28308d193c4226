import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.geometry import assignment, encoding
from crossattn_jax.heads.detection import anchors, types
from crossattn_jax.tasks.detection import losses

GRID = anchors.Anchors((8, 16), scales=(2.0,), ratios=(0.5, 1.0)).of_input((32, 64))
COUNT = sum(GRID.counts)
SIZES = np.array([[32, 64], [30, 31], [32, 64]])
# Three objects, one, and none.
BOXES = np.zeros((3, 4, 4), np.float32)
BOXES[0, :3] = [[3, 2, 19, 18], [20, 5, 49, 27], [50, 1, 59, 21]]
BOXES[1, 0] = [4, 7, 21, 25]
LABELS = np.full((3, 4), -1, np.int32)
LABELS[0, :3], LABELS[1, 0] = [2, 0, 1], 1
TRUTHS = types.Truths(jnp.asarray(BOXES), jnp.asarray(LABELS))


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def outputs(classes=3):
  rng = np.random.RandomState(0)
  return {
    'logits': rng.standard_normal((3, COUNT, classes)).astype(np.float32),
    'deltas': rng.standard_normal((3, COUNT, 4)).astype(np.float32),
    'objectness': rng.standard_normal((3, COUNT)).astype(np.float32),
    'anchor_deltas': rng.standard_normal((3, COUNT, 4)).astype(np.float32),
  }


def assigned(**thresholds):
  assign = jax.jit(lambda truths: losses.assign_anchors(truths, SIZES, GRID, **thresholds))
  return np.asarray(assign(TRUTHS))


def box_targets(indices):
  """Encoded boxes of the objects that anchors are assigned to."""
  chosen = np.take_along_axis(BOXES, np.maximum(indices, 0)[..., None], axis=1)
  return np.asarray(jax.jit(lambda x: encoding.encode(GRID.corners(), x))(chosen))


def test_focal_loss_is_equation_5_of_its_paper():
  logits = np.array([[2.0, -1.0, 0.5], [-3.0, 0.2, 1.0]])
  weights = np.array([1.0, 0.5])
  found = losses.focal_loss(jnp.asarray(logits), jnp.array([1, 3]), weights, alpha=0.3, gamma=1.5)
  p = sigmoid(logits)
  true = np.array([[0, 1, 0], [0, 0, 0]], bool)
  p_t, alpha_t = np.where(true, p, 1 - p), np.where(true, 0.3, 0.7)
  expected = weights * (-alpha_t * (1 - p_t) ** 1.5 * np.log(p_t)).sum(axis=1)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_focal_loss_and_its_gradient_are_finite_for_logits_of_any_size():
  logits = jnp.array([[-1e4, 1e4], [200.0, -200.0]])
  total = lambda x: losses.focal_loss(x, jnp.array([0, 0]), jnp.ones(2)).sum()
  loss, gradient = jax.jit(jax.value_and_grad(total))(logits)
  assert np.isfinite(loss)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize(('beta', 'expected'), [(0.0, 0.5 + 2.0), (1.0, 0.125 + 1.5)])
def test_small_differences_of_boxes_may_count_less(beta, expected):
  targets = jnp.array([0.0, 0.5, -2.0, 0.0])
  assert losses.box_loss(jnp.zeros(4), targets, 1.0, beta) == pytest.approx(expected)


def test_retinanet_learns_classes_of_all_and_boxes_of_some_anchors():
  out = outputs()
  with_all = jax.jit(lambda out: losses.retinanet_losses(out, TRUTHS, jnp.asarray(SIZES), GRID))
  found = with_all(out)
  indices = assigned(positive=0.5, negative=0.4, min_positive=0.0)
  assert (indices[0] >= 0).sum() > 3
  assert (indices == assignment.IGNORED).any()
  # An image without objects counts as one positive example.
  number = sum(max((row >= 0).sum(), 1) for row in indices)
  classes = 0.0
  for image in range(3):
    for i in np.flatnonzero(indices[image] != assignment.IGNORED):
      label = LABELS[image, indices[image, i]] if indices[image, i] >= 0 else -1
      for c, p in enumerate(sigmoid(out['logits'][image, i].astype(np.float64))):
        if c == label:
          classes -= 0.25 * (1 - p) ** 2 * np.log(p)
        else:
          classes -= 0.75 * p**2 * np.log(1 - p)
  boxes = np.abs(out['deltas'] - box_targets(indices))[indices >= 0].sum()
  assert found['class_loss'] == pytest.approx(classes / number, rel=1e-5)
  assert found['box_loss'] == pytest.approx(boxes / number, rel=1e-5)


def test_no_loss_depends_on_padding_or_on_boxes_without_area():
  def with_rows(box, labels):
    return types.Truths(
      jnp.concatenate([TRUTHS.boxes, jnp.full((3, 2, 4), box)], axis=1),
      jnp.concatenate([TRUTHS.labels, jnp.array([labels] * 3)], axis=1),
    )

  sizes, key = jnp.asarray(SIZES), jax.random.key(0)

  @jax.jit
  def all_losses(truths):
    return (
      losses.retinanet_losses(outputs(), truths, sizes, GRID),
      losses.rpn_losses(outputs(), truths, sizes, GRID, key, number=16),
    )

  expected, found = all_losses(with_rows(0.0, [-1, -1])), all_losses(with_rows(7.0, [-1, 1]))
  assert jax.tree.leaves(found) == jax.tree.leaves(expected)


def test_proposals_learn_from_a_sample_of_each_image():
  out, sizes = outputs(), jnp.asarray(SIZES)
  terms, indices = jax.jit(
    lambda out, key: losses.rpn_terms(out, TRUTHS, sizes, GRID, key, number=12)
  )(out, jax.random.key(3))
  of_all = assigned(positive=0.7, negative=0.3, min_positive=0.3)
  of_sample = np.take_along_axis(of_all, np.asarray(indices), axis=1)
  drawn = np.asarray(terms['objectness_loss']) > 0
  found = drawn & (of_sample >= 0)
  assert drawn.all()
  assert (of_sample != assignment.IGNORED).all()
  assert 0 < found[0].sum() <= 6
  assert not found[2].any()
  number = sum(max(row.sum(), 1) + max((~row).sum(), 1) for row in found)
  p = sigmoid(np.take_along_axis(out['objectness'], np.asarray(indices), axis=1))
  np.testing.assert_allclose(
    terms['objectness_loss'], -np.log(np.where(found, p, 1 - p)) / number, rtol=1e-5
  )
  difference = np.abs(out['anchor_deltas'] - box_targets(of_all)).sum(axis=-1)
  expected = np.take_along_axis(difference, np.asarray(indices), axis=1) * found / number
  np.testing.assert_allclose(terms['proposal_loss'], expected, rtol=1e-5)


def test_an_image_s_sample_does_not_depend_on_the_other_images():
  sample = jax.jit(lambda key, x: losses.sample_anchors(key, x, 12)[0])
  of_all = jnp.asarray(assigned(positive=0.7, negative=0.3, min_positive=0.3))
  one, other = (sample(jax.random.key(seed), of_all) for seed in (0, 1))
  changed = sample(jax.random.key(0), of_all.at[1].set(assignment.BACKGROUND))
  assert (one != other).any()
  np.testing.assert_array_equal(one[::2], changed[::2])
