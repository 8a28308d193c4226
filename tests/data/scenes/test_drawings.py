import numpy as np
import pytest

from crossattn_jax.data.scenes import drawings, silhouettes


def test_contours_are_closed_and_lie_on_the_edges():
  for shape, edges in (('square', 1), ('ring', 2), ('cup', 2)):
    contours = drawings.contours(shape)
    assert len(contours) == edges
    for line in contours:
      np.testing.assert_allclose(line[0], line[-1], atol=1e-9)
      assert np.abs(silhouettes.distance(shape, *line.T)).max() < 0.02


def test_a_drawing_depends_on_seed_shape_and_number_alone():
  first = drawings.drawing(1, 'star', 5)
  for each, again in zip(first, drawings.drawing(1, 'star', 5), strict=True):
    np.testing.assert_array_equal(each, again)
  others = [drawings.drawing(*which) for which in ((2, 'star', 5), (1, 'house', 5), (1, 'star', 6))]
  for other in others:
    assert len(other) != len(first) or any(
      x.shape != y.shape or (x != y).any() for x, y in zip(first, other, strict=True)
    )


@pytest.mark.parametrize('shape', silhouettes.NAMES)
def test_drawings_fill_their_extent_and_resemble_their_shape_in_every_style(shape):
  styles = set()
  for number in range(12):
    strokes = drawings.drawing(3, shape, number)
    points = np.concatenate(strokes)
    assert points.min(axis=0).tolist() == [0, 0]
    assert points.max() == drawings.EXTENT
    assert all(stroke.dtype == np.int16 and len(stroke) > 3 for stroke in strokes)
    styles.add(len(strokes))
    # Outlines, brought back to the silhouette's box, stay near its edge.
    low, high = (f(np.concatenate(drawings.contours(shape)), axis=0) for f in (np.min, np.max))
    back = low + points / points.max(axis=0) * (high - low)
    assert np.abs(silhouettes.distance(shape, *back.T)).mean() < 0.2
  assert len(styles) > 1
