import numpy as np
import pytest

from crossattn_jax.data.scenes import regions, shapes, silhouettes


def test_region_features_tell_colours_and_shapes_apart():
  def region(shape, color):
    side = np.linspace(-1.2, 1.2, 40)
    inside = silhouettes.distance(shape, side[None], side[:, None]) < 0
    image = np.where(inside[..., None], shapes.COLORS[color], (0.5, 0.5, 0.5))
    return regions.region_features(
      np.rint(255 * image).astype(np.uint8), [(0.0, 0.0, 1.0, 1.0)], 256
    )[0]

  def similarity(x, y):
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)

  star = region('star', 'red')
  assert star.min() == 0
  assert similarity(star, region('star', 'red')) == pytest.approx(1)
  assert similarity(star, region('star', 'blue')) < 0.9
  assert similarity(star, region('square', 'red')) < 0.9
