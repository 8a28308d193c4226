"""Losses of the second stage, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.geometry.assignment import BACKGROUND, IGNORED
from crossattn_jax.heads.detection import types
from crossattn_jax.tasks.detection import region_losses


@pytest.fixture
def made_by_hand():
  """Outputs of two images with four regions of two classes, and the truths."""
  rng = np.random.default_rng(0)
  assigned = np.array([[1, 0, BACKGROUND, BACKGROUND], [0, BACKGROUND, IGNORED, IGNORED]], np.int32)
  boxes = np.array([[[0, 0, 8, 8], [8, 0, 16, 16]], [[4, 4, 12, 12], [0, 0, 0, 0]]], np.float32)
  labels = np.array([[0, 1], [1, -1]], np.int32)
  masks = np.zeros((2, 2, 16, 2), np.uint8)
  masks[0, 1, :, 1] = 255  # The right half: all of the first image's second object.
  proposals = np.tile(np.array([8, 0, 16, 16], np.float32), (2, 4, 1))
  outputs = {
    'proposals': proposals,
    'assigned': assigned,
    'class_logits': rng.normal(size=(2, 4, 3)).astype(np.float32),
    'box_deltas': rng.normal(size=(2, 4, 2, 4)).astype(np.float32),
    'mask_logits': rng.normal(size=(2, 2, 4, 4, 2)).astype(np.float32),
  }
  return outputs, types.Truths(boxes, labels, masks)


# Of every sampled region: image, row, truth, class; 2 is the background.
SAMPLED = [
  (0, 0, 1, 1),
  (0, 1, 0, 0),
  (0, 2, None, 2),
  (0, 3, None, 2),
  (1, 0, 0, 1),
  (1, 1, None, 2),
]


def test_losses_are_means_over_the_regions_of_all_images(made_by_hand):
  outputs, truths = made_by_hand
  found = jax.jit(region_losses.region_losses)(outputs, truths)
  classes, boxes, masks, right = [], [], [], []
  for image, row, truth, label in SAMPLED:
    logits = outputs['class_logits'][image, row].astype(np.float64)
    classes.append(np.log(np.exp(logits).sum()) - logits[label])
    right.append(np.argmax(logits) == label)
    if truth is None:
      continue
    x_min, y_min, x_max, y_max = truths.boxes[image, truth]
    center, size = [(x_min + x_max) / 2, (y_min + y_max) / 2], [x_max - x_min, y_max - y_min]
    deltas = [(center[0] - 12) / 8, (center[1] - 8) / 16, np.log(size[0] / 8), np.log(size[1] / 16)]
    target = np.array(deltas) / [0.1, 0.1, 0.2, 0.2]
    boxes.append(np.abs(outputs['box_deltas'][image, row, label] - target).sum())
    logits = outputs['mask_logits'][image, row, :, :, label].astype(np.float64)
    inside = 1 if (image, truth) == (0, 1) else 0
    masks.append(np.mean(np.log1p(np.exp(logits)) - logits * inside))
  assert found['class_loss'] == pytest.approx(np.sum(classes) / 6, rel=1e-5)
  assert found['box_loss'] == pytest.approx(np.sum(boxes) / 6, rel=1e-5)
  assert found['mask_loss'] == pytest.approx(np.mean(masks), rel=1e-5)
  assert found['region_accuracy'] == pytest.approx(np.mean(right))


def test_only_the_class_of_an_object_has_a_gradient(made_by_hand):
  outputs, truths = made_by_hand

  def loss(deltas, masks):
    given = {**outputs, 'box_deltas': deltas, 'mask_logits': masks}
    found = region_losses.region_losses(given, truths)
    return found['box_loss'] + found['mask_loss']

  gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
  boxes, masks = gradient(outputs['box_deltas'], outputs['mask_logits'])
  learns = np.zeros((2, 4, 2), bool)
  for image, row, truth, label in SAMPLED:
    learns[image, row, label % 2] |= truth is not None
  np.testing.assert_array_equal(np.any(boxes != 0, axis=-1), learns)
  np.testing.assert_array_equal(jnp.any(masks != 0, axis=(2, 3)), learns[:, :2])
