"""Mixed batches are what the papers say: partner, weight, box, targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.data.classification import mixing

IMAGES = jnp.arange(6.0)[:, None, None, None] * jnp.ones((6, 16, 24, 3))
LABELS = jnp.array([0, 1, 2, 3, 4, 0])


def _mix(seed=0, **options):
  return mixing.mix_batch(IMAGES, LABELS, jax.random.key(seed), num_classes=5, **options)


def test_mixup_blends_every_image_and_its_target_with_the_mirror_image_in_the_batch():
  images, targets = _mix(mixup_alpha=0.8)
  # Image n is n everywhere, so the blend tells the weight: n + (1 - w) (5 - 2 n).
  weight = 1 - images[0, 0, 0, 0] / 5
  assert 0 < weight < 1
  n = np.arange(6)
  np.testing.assert_allclose(images[:, 3, 5, 1], n * weight + (5 - n) * (1 - weight), rtol=1e-5)
  one_hot = np.eye(5)[np.asarray(LABELS)]
  np.testing.assert_allclose(
    targets, one_hot * weight + one_hot[::-1] * (1 - weight), rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize('seed', range(5))
def test_cutmix_pastes_one_box_and_weighs_targets_by_its_true_area(seed):
  images, targets = _mix(seed, cutmix_alpha=1.0)
  pasted = np.asarray(images[1, :, :, 0] == 4)
  assert (np.asarray(images[1]) == np.where(pasted[..., None], 4, 1)).all()
  rows, columns = pasted.any(1), pasted.any(0)
  assert (pasted == np.outer(rows, columns)).all()
  np.testing.assert_allclose(targets[1, 1], 1 - pasted.mean(), rtol=1e-5)
  np.testing.assert_allclose(targets[1, 4], pasted.mean(), rtol=1e-5, atol=1e-6)


def test_both_switch_between_the_two_per_batch():
  boxes = 0
  for seed in range(40):
    images, targets = _mix(seed, mixup_alpha=0.8, cutmix_alpha=1.0, smoothing=0.1)
    boxes += set(np.unique(images[1])) <= {1.0, 4.0}
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-5)
    assert targets.min() >= 0.1 / 5 - 1e-6
  assert 8 < boxes < 32


def test_probability_zero_changes_nothing_but_smooths():
  images, targets = _mix(mixup_alpha=0.8, cutmix_alpha=1.0, probability=0.0, smoothing=0.1)
  np.testing.assert_array_equal(images, IMAGES)
  np.testing.assert_allclose(targets, mixing.smoothed_one_hot(LABELS, 5, 0.1), rtol=1e-6)
