import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.tasks.detection import dense_losses, set_losses

# Three queries, two objects of class 1 and padding; the second query is where the first object is.
BOXES = jnp.array([[[0.2, 0.2, 0.1, 0.1], [0.5, 0.5, 0.4, 0.2], [0.8, 0.7, 0.1, 0.3]]])
TRUTHS = jnp.array([[[0.5, 0.5, 0.4, 0.2], [0.8, 0.8, 0.1, 0.3], [0.0, 0.0, 0.0, 0.0]]])
LABELS = jnp.array([[1, 1, -1]])
LOGITS = jnp.array([[[0.0, -2.0], [0.0, 3.0], [0.0, 0.5]]])
QUERIES = jnp.array([[1, 2, -1]])


def test_objects_get_the_query_that_costs_least():
  arguments = LOGITS, BOXES, LABELS, TRUTHS
  np.testing.assert_array_equal(jax.jit(set_losses.match)(*arguments), QUERIES)
  cost = np.asarray(set_losses.matching_cost(*arguments))
  p = 1 / (1 + np.exp(-3.0))
  expected = 2 * (0.25 * (1 - p) ** 2 * -np.log(p) - 0.75 * p**2 * -np.log(1 - p)) - 2
  np.testing.assert_allclose(cost[0, 1, 0], expected, rtol=1e-4)
  np.testing.assert_array_equal(cost[0, :, 2], np.zeros(3))


def losses(logits=LOGITS, boxes=BOXES, labels=LABELS, truths=TRUTHS, queries=QUERIES):
  return set_losses.set_losses(logits, boxes, labels, truths, queries, 2)


def test_matched_queries_learn_boxes_and_all_learn_classes():
  found = losses()
  np.testing.assert_allclose(found['box_loss'], 0.1 / 2, rtol=1e-5)
  shared, union, hull = 0.1 * 0.2, 0.1 * 0.4, 0.1 * 0.4
  giou = shared / union - (hull - union) / hull
  np.testing.assert_allclose(found['giou_loss'], (1 - giou) / 2, rtol=1e-4)
  p = 1 / (1 + np.exp(-np.asarray(LOGITS, np.float64)))
  target = np.array([[[0, 0], [0, 1], [0, 1]]])
  right = np.where(target, p, 1 - p)
  expected = np.where(target, 0.25, 0.75) * (1 - right) ** 2 * -np.log(right)
  np.testing.assert_allclose(found['class_loss'], expected.sum() / 2, rtol=1e-5)


def test_padding_changes_nothing():
  other = losses(truths=TRUTHS.at[0, 2].set(0.9))
  for name, value in losses().items():
    np.testing.assert_array_equal(other[name], value)
  gradient = jax.grad(lambda boxes: sum(losses(boxes=boxes).values()))(BOXES)
  np.testing.assert_array_equal(gradient[0, 0], np.zeros(4))
  assert np.all(np.isfinite(gradient))


def test_an_image_without_objects_has_a_class_loss_only():
  labels = jnp.full((1, 3), -1)
  queries = set_losses.match(LOGITS, BOXES, labels, TRUTHS)
  found = losses(labels=labels, queries=queries)
  assert found['box_loss'] == found['giou_loss'] == 0 < found['class_loss']
  assert set_losses.number_of_objects(labels) == 1
  assert set_losses.class_error(LOGITS, labels, queries) == 100


def test_soft_targets_of_0_and_1_have_the_hard_loss():
  target = jnp.array([[[0.0, 0], [0, 1], [0, 1]]])
  total = dense_losses.focal_loss(LOGITS, target).sum() / 2
  np.testing.assert_allclose(total, losses()['class_loss'], rtol=1e-5)


def test_margins_are_kept_by_scores_that_are_apart():
  matched = jnp.array([[False, True, True]])
  assert set_losses.margin_loss(jnp.array([[0.0, 0.9, 0.9]]), matched, 0.5) == 0
  loss = set_losses.margin_loss(jnp.array([[0.6, 0.6, 0.6]]), matched, 0.5)
  np.testing.assert_allclose(loss, 0.5 - (1.2 / 2.1 - 0.6), rtol=1e-5)
  assert set_losses.pair_margin_loss(jnp.array([[0.0, 0.9, 0.9]]), matched, -0.3) == 0
  loss = set_losses.pair_margin_loss(jnp.array([[0.5, 0.5, 0.5]]), matched, -0.3)
  np.testing.assert_allclose(loss, 0.7 * 4 / 9, rtol=1e-5)


def test_a_teacher_has_no_gradient():
  def loss(student, teacher):
    return set_losses.token_matching_loss([student], [teacher])

  student, teacher = jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.zeros((2, 2)).at[1, 0].set(1)
  np.testing.assert_allclose(loss(student, teacher), np.sqrt(3))
  gradient, none = jax.grad(loss, argnums=(0, 1))(student, teacher)
  np.testing.assert_array_equal(none, np.zeros((2, 2)))
  assert np.any(np.asarray(gradient))


@pytest.mark.extended
def test_what_a_query_says_of_its_iou():
  ious = jnp.array([[0.0, 2.0, -1.0]])
  loss = set_losses.iou_loss(ious, BOXES, LABELS, TRUTHS, QUERIES, 2)
  expected = [np.log1p(np.exp(x)) - t * x for x, t in ((2.0, 1.0), (-1.0, 0.5))]
  np.testing.assert_allclose(loss, np.sum(expected) / 2, rtol=1e-4)
