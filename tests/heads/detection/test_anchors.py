import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.heads import style
from crossattn_jax.heads.detection import anchors

RETINANET = anchors.Anchors((8, 16), scales=(4.0, 5.0))


def test_levels_stand_in_a_row_cell_by_cell():
  grid = RETINANET.of_input((30, 40))
  assert grid.map_sizes == ((4, 5), (2, 3))
  assert grid.counts == (4 * 5 * 6, 2 * 3 * 6)
  corners = np.asarray(jax.jit(grid.corners)())
  assert corners.shape == (156, 4)
  assert [corners[rows].shape[0] for rows in grid.levels] == [120, 36]
  # Row 1, column 2 of the second level; the second scale of the square, centred on the corner.
  anchor = corners[grid.levels[1]][(1 * 3 + 2) * 6 + 3]
  np.testing.assert_allclose(anchor, [32 - 40, 16 - 40, 32 + 40, 16 + 40])


def test_anchors_may_stand_in_the_middle_of_their_cells():
  spec = anchors.Anchors((8,), (1.0,), (1.0,), boxes=style.Boxes(center_offset=0.5))
  np.testing.assert_allclose(spec.of_input((8, 16)).corners(), [[0, 0, 8, 8], [8, 0, 16, 8]])


def test_an_image_has_the_anchors_of_the_size_that_it_is_padded_to():
  grid = anchors.Anchors((8, 16), (4.0,), (1.0,)).of_input((96, 128))
  valid = np.asarray(jax.jit(grid.valid)(jnp.array([[96, 128], [33, 100], [32, 97]])))
  assert valid[0].all()
  for row, (height, width) in ((1, (64, 128)), (2, (32, 128))):
    fine, coarse = valid[row][grid.levels[0]], valid[row][grid.levels[1]]
    expected = np.zeros((12, 16), bool)
    expected[: height // 8, : width // 8] = True
    np.testing.assert_array_equal(fine.reshape(12, 16), expected)
    assert coarse.sum() == height // 16 * (width // 16)


@pytest.mark.parametrize('dtype', [None, jnp.float16])
def test_anchors_come_in_the_type_that_is_asked_for(dtype):
  corners = RETINANET.of_input((16, 16)).corners(dtype)
  assert corners.dtype == (dtype or jnp.float32)


@pytest.mark.parametrize(('scales', 'ratios'), [((), (1.0,)), ((4.0,), ()), ((4.0,), (1.0, 0.0))])
def test_anchors_have_scales_and_ratios_above_0(scales, ratios):
  with pytest.raises(ValueError, match='at least one of each, above 0: see anchor_scale'):
    anchors.Anchors((8,), scales, ratios)


def test_anchors_of_given_sizes_stand_in_the_middle_of_their_cells():
  spec = anchors.SizedAnchors((8, 16), (((4, 2), (6, 6)), ((20, 8), (30, 40))))
  grid = spec.of_input((16, 32))
  assert grid.counts == (2 * 4 * 2, 1 * 2 * 2)
  corners = np.asarray(grid.corners(jnp.float32))
  assert corners.dtype == np.float32
  np.testing.assert_array_equal(corners[2], [12 - 2, 4 - 1, 12 + 2, 4 + 1])  # Row 0, column 1.
  np.testing.assert_array_equal(corners[-1], [24 - 15, 8 - 20, 24 + 15, 8 + 20])


@pytest.mark.parametrize('sizes', [(), ((), ()), (((4, 2),),), (((4, 2),), ()), (((4, 0),),) * 2])
def test_anchors_of_given_sizes_are_as_many_on_every_level(sizes):
  with pytest.raises(ValueError, match='as many anchors on each of the 2 levels'):
    anchors.SizedAnchors((8, 16), sizes)
