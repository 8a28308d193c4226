import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.geometry import boxes

# Pairs: equal, apart, touching, nested, crossing, without area (one side, both, both boxes), and
# one whose corners are exchanged.
PAIRS = [
  ([10, 20, 50, 40], [10, 20, 50, 40]),
  ([0, 0, 10, 10], [20, 30, 40, 70]),
  ([0, 0, 10, 10], [10, 0, 20, 10]),
  ([0, 0, 100, 80], [30, 20, 50, 70]),
  ([0, 10, 100, 20], [40, 0, 50, 100]),
  ([5, 5, 5, 25], [0, 0, 30, 30]),
  ([5, 5, 5, 5], [0, 0, 30, 30]),
  ([5, 5, 5, 5], [5, 5, 5, 5]),
  ([40, 40, 10, 10], [0, 0, 30, 30]),
]


def random_boxes(count, seed=0):
  """Corners on whole and half pixels, so that many are equal."""
  rng = np.random.RandomState(seed)
  low = rng.randint(0, 60, (count, 2)) / 2
  return np.concatenate([low, low + rng.randint(0, 40, (count, 2)) / 2], axis=-1)


def sides(box):
  return max(box[2] - box[0], 0), max(box[3] - box[1], 0)


def area(box):
  return np.prod(sides(box))


def intersection(a, b):
  return area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])


def hull(a, b):
  return [min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])]


def iou(a, b):
  shared = intersection(a, b)
  return shared / max(area(a) + area(b) - shared, 1e-6)


def giou(a, b):
  union = area(a) + area(b) - intersection(a, b)
  return iou(a, b) - (area(hull(a, b)) - union) / max(area(hull(a, b)), 1e-6)


def ciou(a, b, eps=1e-7):
  (w1, h1), (w2, h2) = sides(a), sides(b)
  h1, h2 = h1 + eps, h2 + eps
  shared = intersection(a, b)
  overlap = shared / (w1 * h1 + w2 * h2 - shared + eps)
  centers = [(box[0] + box[2]) / 2 + 1j * (box[1] + box[3]) / 2 for box in (a, b)]
  distance = abs(centers[0] - centers[1]) ** 2 / (sum(np.square(sides(hull(a, b)))) + eps)
  v = 4 / np.pi**2 * (np.arctan(w2 / h2) - np.arctan(w1 / h1)) ** 2
  return overlap - distance - v / (v - overlap + 1 + eps) * v


MEASURES = {'iou': iou, 'giou': giou, 'ciou': ciou}


@pytest.mark.parametrize('name', MEASURES)
def test_pairs_are_measured_as_defined(name):
  first, second = (np.array(side, np.float32) for side in zip(*PAIRS, strict=True))
  expected = [MEASURES[name](a, b) for a, b in zip(first, second, strict=True)]
  result = jax.jit(getattr(boxes, name))(first, second)
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', MEASURES)
def test_all_pairs_are_measured_by_broadcasting(name):
  first, second = random_boxes(20), random_boxes(30, seed=1)
  expected = [[MEASURES[name](a, b) for b in second] for a in first]
  result = jax.jit(getattr(boxes, name))(first[:, None], second)
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', MEASURES)
def test_gradients_are_finite_for_boxes_without_area(name):
  first, second = (jnp.array(side, jnp.float32) for side in zip(*PAIRS, strict=True))
  gradients = jax.jit(jax.grad(lambda a, b: getattr(boxes, name)(a, b).sum(), (0, 1)))(
    first, second
  )
  assert np.isfinite(gradients).all()


def test_boxes_that_touch_are_drawn_together():
  box, other = jnp.array([0.0, 0, 2, 2]), jnp.array([2.0, 0, 4, 2])
  gradient = jax.grad(boxes.iou)(box, other)
  np.testing.assert_allclose(gradient, [0, 0, 2 / 8, 0])  # Of the shared area; the union is 8.


@pytest.mark.parametrize('name', MEASURES)
def test_overlap_of_a_box_with_itself_is_one(name):
  some = np.float32(random_boxes(50) * 1.37)
  some = some[[area(box) > 0 for box in some]]
  np.testing.assert_allclose(jax.jit(getattr(boxes, name))(some, some), 1, rtol=1e-5)


@jax.jit
def there(some):
  return boxes.to_center_size(some), boxes.normalize(some, (50, 80))


@jax.jit
def back(center_size, fractions):
  return boxes.from_center_size(center_size), boxes.denormalize(fractions, (50, 80))


def test_forms_are_each_others_inverse():
  some = np.float32([[2, 4, 8, 5], *random_boxes(20)])
  center_size, fractions = there(some)
  np.testing.assert_array_equal(center_size[0], [5, 4.5, 6, 1])
  np.testing.assert_allclose(fractions, some / [80, 50, 80, 50], rtol=1e-6)
  for result in back(center_size, fractions):
    np.testing.assert_allclose(result, some, rtol=1e-6)


def test_every_image_clips_its_own_boxes():
  some = np.float32([[-5, -1, 30, 20], [2, 3, 4, 5], [12, 13, 14, 15]])
  sizes = np.array([[10, 25], [4, 13]])
  result = jax.jit(boxes.clip)(np.stack([some, some]), sizes[:, None])
  np.testing.assert_array_equal(result[0], [[0, 0, 25, 10], [2, 3, 4, 5], [12, 10, 14, 10]])
  np.testing.assert_array_equal(result[1], [[0, 0, 13, 4], [2, 3, 4, 4], [12, 4, 13, 4]])


@pytest.mark.torch
def test_torchvision_agrees():
  ops = pytest.importorskip('torchvision').ops
  import torch

  first, second = random_boxes(40), random_boxes(30, seed=1)
  first, second = first[[area(a) > 0 for a in first]], second[[area(b) > 0 for b in second]]
  theirs = torch.tensor(first), torch.tensor(second)
  ours = jnp.float32(first[:, None]), jnp.float32(second)
  np.testing.assert_allclose(boxes.area(ours[1]), ops.box_area(theirs[1]), rtol=1e-6)
  np.testing.assert_allclose(boxes.iou(*ours), ops.box_iou(*theirs), atol=1e-6)
  np.testing.assert_allclose(boxes.giou(*ours), ops.generalized_box_iou(*theirs), atol=1e-6)
  np.testing.assert_allclose(boxes.ciou(*ours), ops.complete_box_iou(*theirs), atol=1e-5)
