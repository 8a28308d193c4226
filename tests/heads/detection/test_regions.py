"""Regions that the second stage learns from, and detections by the plain definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.geometry.assignment import BACKGROUND, IGNORED
from crossattn_jax.heads.detection import regions, types

draw = jax.jit(functools.partial(regions.sample, number=12))

PROPOSALS = np.array(
  [
    [0, 0, 10, 10],  # The first object, well.
    [0, 0, 10, 18],  # The first object, badly: IoU 0.56.
    [0, 0, 4, 10],  # IoU 0.4: background.
    [50, 50, 60, 60],
    [30, 30, 42, 42],  # The second object.
    [0, 0, 0, 0],  # Padding.
  ],
  np.float32,
)
TRUTHS = types.Truths(
  boxes=np.array([[[0, 0, 10, 10], [30, 30, 40, 42], [0, 0, 0, 0]]], np.float32),
  labels=np.array([[3, 1, -1]], np.int32),
)


def test_regions_with_an_object_come_first_and_padding_is_never_drawn():
  boxes, assigned = draw(jax.random.key(0), PROPOSALS[None], TRUTHS)
  assert (boxes.shape, assigned.shape) == ((1, 12, 4), (1, 12))
  # Of three proposals and two objects with an object 12 / 4 are drawn, and the background.
  drawn = np.asarray(assigned[0])
  assert np.all(drawn[:3] >= 0)
  np.testing.assert_array_equal(drawn[3:], [BACKGROUND] * 2 + [IGNORED] * 7)
  np.testing.assert_array_equal(boxes[0, 5:], 0)
  np.testing.assert_array_equal(np.sort(boxes[0, 3:5, 0]), [0, 50])
  for box, truth in zip(boxes[0, :3], drawn[:3], strict=True):
    assert box[0] == TRUTHS.boxes[0, truth, 0]


def test_without_objects_everything_is_background():
  nothing = types.Truths(TRUTHS.boxes, np.full_like(TRUTHS.labels, -1))
  _, assigned = draw(jax.random.key(0), PROPOSALS[None], nothing)
  np.testing.assert_array_equal(assigned[0], [BACKGROUND] * 5 + [IGNORED] * 7)


def test_a_draw_depends_on_the_place_in_the_batch_and_not_on_padding():
  rng = np.random.default_rng(0)
  corner = rng.uniform(0, 50, (2, 40, 2))
  proposals = np.concatenate([corner, corner + rng.uniform(5, 50, corner.shape)], -1)
  truths = types.Truths(proposals[:, :3] + 1, np.array([[0, 1, 2], [0, 1, -1]], np.int32))
  key = jax.random.key(1)
  expected = draw(key, proposals, truths)
  others = draw(
    key, np.stack([proposals[1], proposals[1]]), jax.tree.map(lambda x: x[[1, 1]], truths)
  )
  np.testing.assert_array_equal(expected[0][1], others[0][1])
  assert np.any(others[0][0] != others[0][1])
  padded = types.Truths(
    np.pad(truths.boxes, ((0, 0), (0, 4), (0, 0))),
    np.pad(truths.labels, ((0, 0), (0, 4)), constant_values=-1),
  )
  for x, y in zip(expected, draw(key, proposals, padded), strict=True):
    np.testing.assert_array_equal(x, y)


def plain_detections(logits, deltas, boxes, size, threshold, iou_threshold, most):
  """Softmax, decoding, and greedy suppression, one pair of region and class after the other."""
  scores = np.exp(logits - logits.max(-1, keepdims=True))
  scores = (scores / scores.sum(-1, keepdims=True))[:, :-1]
  found = []
  for region, label in zip(*np.nonzero(scores > threshold), strict=True):
    x_min, y_min, x_max, y_max = boxes[region]
    width, height = x_max - x_min, y_max - y_min
    if width * height == 0:
      continue
    dx, dy, dw, dh = deltas[region, label] * regions.STDS
    x, y = (x_min + x_max) / 2 + dx * width, (y_min + y_max) / 2 + dy * height
    half = np.array([width * np.exp(dw) / 2, height * np.exp(dh) / 2])
    box = np.clip([x - half[0], y - half[1], x + half[0], y + half[1]], 0, [*size[::-1]] * 2)
    found.append((scores[region, label], label, box))
  found.sort(key=lambda x: -x[0])
  kept = []
  for score, label, box in found:
    if all(other != label or iou(box, b) <= iou_threshold for _, other, b in kept):
      kept.append((score, label, box))
  return kept[:most]


def iou(a, b):
  width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
  shared = max(width, 0) * max(height, 0)
  return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


@pytest.mark.parametrize('threshold', [0.05, 0.3, 0.0])
def test_detections_are_those_of_the_plain_definition(threshold):
  rng = np.random.default_rng(0)
  size = np.array([[60, 80], [50, 70]])
  corner = rng.uniform(0, 40, (2, 24, 2))
  boxes = np.concatenate([corner, corner + rng.uniform(10, 30, corner.shape)], -1)
  boxes[:, -3:] = 0
  logits, deltas = rng.normal(0, 1.5, (2, 24, 31)), rng.normal(0, 1, (2, 24, 30, 4))
  decode = jax.jit(
    lambda *args: regions.decode(*args, score_threshold=threshold, iou_threshold=0.4, max_boxes=50)
  )
  detections = decode(*(jnp.asarray(x, jnp.float32) for x in (logits, deltas, boxes, size)))
  assert detections.masks is None
  for image in range(2):
    plain = plain_detections(
      logits[image], deltas[image], boxes[image], size[image], threshold, 0.4, 50
    )
    count = len(plain)
    assert count == 50 if threshold == 0 else count > 1
    scores, labels, expected = (np.stack(x) for x in zip(*plain, strict=True))
    np.testing.assert_allclose(detections.scores[image, :count], scores, rtol=1e-5)
    np.testing.assert_array_equal(detections.labels[image, :count], labels)
    np.testing.assert_allclose(detections.boxes[image, :count], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(detections.scores[image, count:], 0)
    np.testing.assert_array_equal(detections.labels[image, count:], -1)
    np.testing.assert_array_equal(detections.boxes[image, count:], 0)
