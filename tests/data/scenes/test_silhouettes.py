import numpy as np
import pytest

from crossattn_jax.data.scenes import silhouettes


@pytest.mark.parametrize('shape', silhouettes.NAMES)
def test_shapes_lie_within_their_radius_and_distances_change_at_most_as_fast_as_places(shape):
  side = np.linspace(-1.5, 1.5, 301)
  values = silhouettes.distance(shape, side[None], side[:, None])
  assert (values[np.hypot(side[None], side[:, None]) > 1.001] > 0).mean() > 0.999
  assert (values < 0).mean() > 0.05
  for axis in (0, 1):
    assert np.abs(np.diff(values, axis=axis)).max() <= 0.01 + 1e-6


def test_polygons_are_as_far_as_their_nearest_edge():
  house = silhouettes.distance('house', np.array([0.0, 0.0, 2.0]), np.array([0.5, 1.0, 0.5]))
  np.testing.assert_allclose(house, [-0.3, 0.2, np.hypot(1.15, 0.7)], atol=1e-6)


def test_an_unknown_shape_is_refused():
  with pytest.raises(ValueError, match="unknown shape 'disk'; known: disc, square"):
    silhouettes.distance('disk', np.zeros(1), np.zeros(1))
