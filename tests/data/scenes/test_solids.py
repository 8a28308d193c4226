import numpy as np
import pytest

from crossattn_jax.data.scenes import solids

# Turned by 90 degrees about z: its x extent is along y.
CENTER, HALF, YAW = (1.0, 2.0, 3.0), (0.5, 0.25, 1.0), np.pi / 2


@pytest.mark.parametrize('kind', solids.KINDS)
def test_rays_enter_where_the_surface_is(kind):
  solid = solids.Solid(kind, CENTER, HALF, YAW)
  eye = np.array([1.0, 0.0, 3.0])
  along = np.array([[0, 1.0, 0], [0, 2.0, 0], [0, -1.0, 0], [1.0, 0, 0]])
  np.testing.assert_allclose(solid.hit(eye, along), [1.5, 0.75, np.inf, np.inf])
  above = solid.hit(np.array([1.0, 2.0, 9.0]), np.array([[0, 0, -1.0]]))
  np.testing.assert_allclose(above, [5.0])
  inside = solid.hit(np.array(CENTER), np.array([[0, 0, 1.0]]))
  np.testing.assert_allclose(inside, [np.inf])


@pytest.mark.parametrize(
  ('kind', 'area'),
  [
    ('box', 8 * (0.125 + 0.5 + 0.25)),
    ('cylinder', 2 * np.pi * 0.3 * (2 + 0.3)),
    ('ellipsoid', 4 * np.pi * 0.09),
  ],
)
def test_samples_cover_the_surface(kind, area):
  half = {'box': HALF, 'cylinder': (0.3, 0.3, 1.0), 'ellipsoid': (0.3, 0.3, 0.3)}[kind]
  solid = solids.Solid(kind, CENTER, half, 0.3)
  points = solid.sample(np.random.default_rng(0), 2000)
  np.testing.assert_allclose(len(points), 2000 * area, rtol=0.05)
  assert solid.contains(points, 1e-6).all()
  assert not solid.contains(points, -1e-6).any()
  np.testing.assert_allclose(points.mean(axis=0), CENTER, atol=0.05)


def test_light_comes_from_above_and_patterns_change_where_they_say():
  rng = np.random.default_rng(0)
  box = solids.Solid('box', (0, 0, 0), (1, 1, 1), color=(0.5, 0.5, 0.5))
  top, side, bottom = box.shade(np.array([[0, 0, 1.0], [1.0, 0, 0], [0, 0, -1.0]]), rng)[:, 0]
  assert top > side > bottom
  tiled = solids.Solid('box', (0, 0, 0), (1, 1, 1), second=(0, 0, 0), period=(0.5, 0.5))
  at = np.array([[0.1, 0.1, 1], [0.6, 0.1, 1], [0.6, 0.6, 1], [-0.1, 0.1, 1]])
  np.testing.assert_array_equal(tiled.shade(at, rng)[:, 0] > 0, [True, False, True, False])
