import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.geometry import mask_pasting
from crossattn_jax.geometry import masks as mask_ops


@pytest.fixture
def objects():
  """Three masks of 12 x 16: the left half, the lower half, a chequerboard of 2 x 2 blocks."""
  y, x = np.mgrid[:12, :16]
  return np.stack([x < 8, y >= 6, (x // 2 + y // 2) % 2 == 0])


BOXES = np.array(
  [
    [4, 2, 12, 10],  # One pixel a cell.
    [0, 0, 16, 16],  # Clipped to 12 rows: a cell is a block of 1.5 x 2 pixels.
    [-8, 4, 8, 12],  # Clipped to the left border.
    [6, 0, 10, 12],
    [3, 3, 3, 3],  # Without extent.
  ],
  np.float32,
)


def test_a_target_is_the_objects_mask_in_the_box(objects):
  index = np.array([2, 0, 0, 0, 0])
  targets = np.asarray(mask_ops.mask_targets(objects, BOXES, index, 8))
  np.testing.assert_array_equal(targets[0], objects[2][2:10, 4:12])
  np.testing.assert_array_equal(targets[1], np.arange(8) < 4 + np.zeros((8, 1)))
  assert targets[2].all()
  np.testing.assert_array_equal(targets[3], np.arange(8) < 4 + np.zeros((8, 1)))
  assert not targets[4].any()


def test_packed_masks_have_the_same_targets(objects):
  index = np.array([0, 1, 2, -1, 1])
  packed = np.packbits(objects, axis=-1)
  expected = np.array(mask_ops.mask_targets(objects, BOXES, index, 5))
  assert not expected[3].any()
  np.testing.assert_array_equal(mask_ops.mask_targets(packed, BOXES, index, 5), expected)
  batch = jax.vmap(mask_ops.mask_targets, in_axes=(0, 0, 0, None))
  both = jax.jit(batch, static_argnums=3)(
    jnp.stack([packed, packed[::-1]]),
    jnp.stack([BOXES, BOXES]),
    jnp.stack([index, np.where(index < 0, -1, 2 - index)]),
    5,
  )
  np.testing.assert_array_equal(both, np.stack([expected, expected]))


def test_half_a_cell_is_enough():
  """A cell of 2 x 2 pixels of which 2 belong to the object."""
  mask = np.zeros((1, 4, 4), bool)
  mask[0, :, ::2] = True
  targets = mask_ops.mask_targets(mask, np.array([[0.0, 0, 4, 4]]), np.zeros(1, int), 2)
  assert np.asarray(targets).all()


def test_a_pasted_mask_of_a_pixel_a_cell_is_copied():
  probabilities = np.random.default_rng(0).random((2, 3, 4), np.float32)
  boxes = np.array([[2, 1, 6, 4], [-2, -1, 2, 2]])
  pasted = mask_pasting.paste_masks(probabilities, boxes, (6, 7), threshold=None)
  expected = np.zeros((2, 6, 7))
  expected[0, 1:4, 2:6] = probabilities[0]
  expected[1, :2, :2] = probabilities[1, 1:, 2:]
  np.testing.assert_allclose(pasted, expected, atol=1e-6)
  masks = mask_pasting.paste_masks(probabilities, boxes, (6, 7), threshold=0.3)
  assert masks.dtype == bool
  np.testing.assert_array_equal(masks, pasted >= 0.3)


def test_pasted_probabilities_are_interpolated_and_fade_to_zero_around_the_box():
  """Two cells a side of 4 pixels each: centres at 2 and 6 of the box."""
  pasted = mask_pasting.paste_masks(np.ones((1, 2, 2)), np.array([[4, 4, 12, 12]]), (20, 20), None)
  line = np.zeros(20)
  line[3:13] = [0.375, 0.625, 0.875, 1, 1, 1, 1, 0.875, 0.625, 0.375]
  np.testing.assert_allclose(pasted[0], np.outer(line, line), atol=1e-6)


def test_boxes_without_area_or_outside_of_the_image_have_empty_masks():
  boxes = np.array([[3, 3, 3, 5], [4, 4, 2, 6], [30, 30, 40, 40], [-9, 0, -5, 4]])
  assert not mask_pasting.paste_masks(np.ones((4, 7, 7)), boxes, (8, 9)).any()
