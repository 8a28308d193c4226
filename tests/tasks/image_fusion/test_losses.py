"""Segments and sizes; the published loss is replayed in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.tasks.image_fusion import losses


def _images(height=12, width=10, batch=1):
  rng = np.random.default_rng(0)
  return [rng.uniform(0, 255, (batch, height, width, 1)) for _ in range(3)]


@pytest.mark.extended
def test_the_loss_of_an_image_does_not_depend_on_the_array_that_holds_it():
  with jax.enable_x64(True):
    alone = _images()
    held = [np.full((1, 16, 16, 1), 33.0) for _ in alone]
    for array, image in zip(held, alone, strict=True):
      array[:, :12, :10] = image
    expected = losses.fusion_loss(*alone)
    found = losses.fusion_loss(*held, size=np.array([(12, 10)], np.int32))
    for a, b in zip(found, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-12)
    np.testing.assert_allclose(
      expected.total, 20 * (expected.gradient + expected.intensity), rtol=1e-12
    )


def test_segments_divide_the_image():
  _, visible, infrared = _images(20, 20)
  masks = losses.segment_masks(visible, infrared, (0.2, 0.5, 0.3))
  assert np.all(sum(mask.astype(int) for mask in masks) == 1)
  # Of each image 81 pixels: the threshold's own is among them.
  assert losses.salient(visible, 0.2).sum() == 400 - 320 + 1
  assert 81 <= masks[0].sum() <= 162


def test_every_segment_wants_its_target():
  with jax.enable_x64(True):
    _, visible, infrared = _images()
    only = {
      'maximum': np.maximum(visible, infrared),
      'minimum': np.minimum(visible, infrared),
      'visible': visible,
      'infrared': infrared,
    }
    for target, wanted in only.items():
      loss = losses.fusion_loss(wanted, visible, infrared, segments=((1.0, target),))
      assert float(loss.intensity[0]) == pytest.approx(0, abs=1e-12)
    average = losses.fusion_loss(visible, visible, infrared, segments=((1.0, 'average'),))
    assert float(average.intensity[0]) == pytest.approx(np.abs(visible - infrared).mean() / 2)


def test_sources_get_no_gradient():
  fused, visible, infrared = map(jnp.asarray, _images())
  gradient = jax.grad(lambda x: losses.fusion_loss(fused, x, infrared).total.sum())(visible)
  assert not np.any(gradient)
