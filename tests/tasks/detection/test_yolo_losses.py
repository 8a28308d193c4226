import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import parallel
from crossattn_jax.geometry import boxes as box_ops
from crossattn_jax.heads.detection import anchors, types
from crossattn_jax.tasks.detection import losses, yolo_losses

SPEC = anchors.SizedAnchors((8, 16), (((6, 4), (12, 10)), ((20, 18), (40, 30))))
GRID = SPEC.of_input((32, 64))
GAINS = {'box_loss': 1.0, 'objectness_loss': 1.0, 'class_loss': 1.0}
# Centres and sides: off the middle, on a corner of cells, at the image's corner, and too large.
CENTERS = np.zeros((2, 5, 4), np.float32)
CENTERS[0, :4] = [[21, 13, 9, 8], [32, 16, 20, 20], [64, 32, 7, 5], [30, 15, 60, 1]]
CENTERS[1, :1] = [[3, 29, 6, 6]]
LABELS = np.array([[2, 0, 1, 1, -1], [1, -1, -1, -1, -1]], np.int32)


def outputs(batch=2):
  rng = np.random.RandomState(0)
  count = sum(GRID.counts)
  shapes = {'box_logits': (4,), 'objectness': (), 'logits': (3,)}
  return {
    name: rng.standard_normal((batch, count, *shape)).astype(np.float32)
    for name, shape in shapes.items()
  }


def truths(centers=CENTERS, labels=LABELS):
  return types.Truths(box_ops.from_center_size(jnp.asarray(centers)), jnp.asarray(labels))


@functools.partial(jax.jit, static_argnames=('balance', 'iou_share'))
def losses_and_gradients(out, objects, balance=(4.0, 1.0), iou_share=1.0):
  def total(out):
    positives = yolo_losses.assign(objects, GRID)
    losses = yolo_losses.yolo_losses(
      out, positives, GRID, gains=GAINS, balance=balance, iou_share=iou_share
    )
    return sum(losses.values()), losses

  gradients, losses = jax.grad(total, has_aux=True)(out)
  return losses, gradients


def plain_positives(level):
  """(image, object, anchor, column, row) of the definition, one after another."""
  stride, (height, width) = SPEC.strides[level], GRID.map_sizes[level]
  found = []
  for image, index in zip(*np.nonzero(LABELS >= 0), strict=True):
    x, y, w, h = CENTERS[image, index] / stride
    cells = [(x, y)]
    sides = x, y, width - x, height - y
    neighbors = (x - 0.5, y), (x, y - 0.5), (x + 0.5, y), (x, y + 0.5)
    cells += [n for n, side in zip(neighbors, sides, strict=True) if side % 1 < 0.5 and side > 1]
    for anchor, size in enumerate(SPEC.sizes[level]):
      ratios = [w * stride / size[0], h * stride / size[1]]
      if max(*ratios, *(1 / r for r in ratios)) < 4:
        for column, row in cells:
          cell = min(int(column), width - 1), min(int(row), height - 1)
          found.append((image, index, anchor, *cell))
  return found


def assert_close(found, expected):
  same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
  jax.tree.map(same, found, expected)


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def test_objects_are_learnt_by_similar_anchors_of_their_own_and_the_nearest_cells():
  assign = jax.jit(lambda centers: yolo_losses.assign_centers(centers, jnp.asarray(LABELS), GRID))
  levels = jax.device_get(assign(CENTERS))
  for index, level in enumerate(levels):
    found = []
    for image, step, anchor, thing in zip(*np.nonzero(level.found), strict=True):
      row, column = level.cells[image, step, anchor, thing]
      found.append((image, thing, anchor, column, row))
      center = CENTERS[image, thing] / SPEC.strides[index] - [column, row, 0, 0]
      np.testing.assert_allclose(level.boxes[image, step, anchor, thing], center, rtol=1e-6)
      assert level.labels[image, step, anchor, thing] == LABELS[image, thing]
    assert sorted(found) == sorted(plain_positives(index))
  # The corner of cells has two neighbours of four; the image's corner is in the last cell.
  assert {cell[3:] for cell in plain_positives(0) if cell[1] == 1} == {(4, 2), (3, 2), (4, 1)}
  assert {cell[3:] for cell in plain_positives(0) if cell[:2] == (0, 2)} == {(7, 3)}
  assert not [cell for cell in plain_positives(0) + plain_positives(1) if cell[1] == 3]


def test_losses_are_those_of_the_definition_over_the_whole_batch():
  out = outputs()
  found, _ = losses_and_gradients(out, truths(), iou_share=0.75)
  ciou = jax.jit(lambda *boxes: box_ops.ciou(*map(box_ops.from_center_size, boxes)))
  expected = dict.fromkeys(GAINS, 0.0)
  for level, balance in enumerate((4.0, 1.0)):
    positives, rows = plain_positives(level), GRID.levels[level]
    stride, (_, width) = SPEC.strides[level], GRID.map_sizes[level]
    wanted = np.zeros((2, rows.stop - rows.start))
    for image, index, anchor, column, row in positives:
      at = rows.start + (row * width + column) * 2 + anchor
      shift, scale = np.split(2 * sigmoid(out['box_logits'][image, at]), 2)
      size = scale**2 * np.array(SPEC.sizes[level][anchor]) / stride
      box = np.concatenate([shift - 0.5, size])
      target = CENTERS[image, index] / stride - [column, row, 0, 0]
      overlap = float(ciou(box, target))
      expected['box_loss'] += (1 - overlap) / len(positives)
      cell = image, at - rows.start
      wanted[cell] = max(wanted[cell], 0.25 + 0.75 * max(overlap, 0))
      p = sigmoid(out['logits'][image, at])
      true = np.arange(3) == LABELS[image, index]
      expected['class_loss'] -= np.log(np.where(true, p, 1 - p)).mean() / len(positives)
    p = sigmoid(out['objectness'][:, rows])
    entropy = -wanted * np.log(p) - (1 - wanted) * np.log(1 - p)
    expected['objectness_loss'] += balance * entropy.mean()
  for name, value in expected.items():
    assert found[name] == pytest.approx(value, rel=1e-5)


def test_nothing_depends_on_padding_on_boxes_without_area_or_on_the_order_of_objects():
  order = [4, 2, 0, 3, 1]
  centers, labels = CENTERS[:, order].copy(), LABELS[:, order].copy()
  centers[:, 0], labels[1, 0] = [20, 20, 0, 9], 1
  centers[1, 1], centers[1, 4] = [20, 20, 9, 9], np.nan
  expected = losses_and_gradients(outputs(), truths())
  assert_close(losses_and_gradients(outputs(), truths(centers, labels)), expected)


def test_without_objects_there_is_nothing_but_objectness():
  empty = truths(CENTERS[:, :0], LABELS[:, :0])
  found, gradients = losses_and_gradients(outputs(), empty)
  assert found['box_loss'] == found['class_loss'] == 0
  p = [sigmoid(outputs()['objectness'][:, rows]) for rows in GRID.levels]
  expected = -4 * np.log(1 - p[0]).mean() - np.log(1 - p[1]).mean()
  assert found['objectness_loss'] == pytest.approx(expected, rel=1e-5)
  assert not gradients['box_logits'].any()
  assert not gradients['logits'].any()


def test_a_single_class_is_not_learnt():
  out = outputs() | {'logits': outputs()['logits'][..., :1]}
  found, gradients = losses_and_gradients(out, truths(labels=np.minimum(LABELS, 0)))
  assert found['class_loss'] == 0
  assert not gradients['logits'].any()


@pytest.mark.extended
def test_losses_and_gradients_on_eight_devices_equal_those_of_one():
  out, objects = outputs(8), truths(np.tile(CENTERS, (4, 1, 1)), np.tile(LABELS, (4, 1)))
  expected = losses_and_gradients(out, objects)
  mesh = parallel.create_mesh(8, 1, 1)
  with jax.set_mesh(mesh):
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names[0]))
    found = losses_and_gradients(*jax.device_put((out, objects), sharding))
  assert_close(found, expected)


def test_cross_entropy_weighs_what_is_and_what_is_missing():
  logits, targets = np.array([2.0, -1.0, 0.3]), np.array([1.0, 0.0, 0.7])
  p = sigmoid(logits)
  plain = -1.3 * targets * np.log(p) - (1 - targets) * np.log(1 - p)
  found = losses.binary_cross_entropy(logits, targets, positive_weight=1.3)
  np.testing.assert_allclose(found, plain, rtol=1e-5)
  found = losses.binary_cross_entropy(logits, targets, positive_weight=1.3, gamma=1.5)
  missing = 1 - targets * p - (1 - targets) * (1 - p)
  alpha = 0.25 * targets + 0.75 * (1 - targets)
  np.testing.assert_allclose(found, alpha * missing**1.5 * plain, rtol=1e-5)


@pytest.mark.parametrize('gamma', [0.0, 0.5, 1.5])
def test_cross_entropy_and_its_gradient_are_finite_for_logits_of_any_size(gamma):
  total = lambda x: losses.binary_cross_entropy(x, jnp.array([1.0, 0, 1, 0]), gamma=gamma).sum()
  loss, gradient = jax.value_and_grad(total)(jnp.array([1e4, 1e4, -1e4, -1e4]))
  assert np.isfinite(loss)
  assert np.isfinite(gradient).all()


def test_gains_follow_classes_image_and_levels():
  gains = yolo_losses.scaled_gains(20, (320, 512), num_levels=4)
  assert gains == {
    'box_loss': pytest.approx(0.05 * 0.75),
    'objectness_loss': pytest.approx(0.64 * 0.75),
    'class_loss': pytest.approx(0.125 * 0.75),
  }
