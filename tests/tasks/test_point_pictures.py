"""Clouds are drawn as they are seen, and can be turned."""

import re

from etils import epath
import numpy as np
import pytest

from crossattn_jax.tasks import point_pictures

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def _plane(count=30, z=0.0):
  grid = np.stack(np.meshgrid(*[np.linspace(0, 2, count)] * 2), axis=-1).reshape(-1, 2)
  return np.append(grid, np.full((len(grid), 1), z), axis=1)


def test_what_is_above_hides_what_is_below():
  floor, box = _plane(), _plane(15, 0.0) / 2 + [0, 0, 0.4]
  points = np.concatenate([box, floor])
  colors = np.repeat(np.uint8([RED, BLUE]), [len(box), len(floor)], axis=0)
  picture = point_pictures.render(points, colors, point_pictures.SIDES['from above'], 200)
  height, width, _ = picture.shape
  # Seen with x to the right and y upwards: the box is at the lower left.
  assert picture[3 * height // 4, width // 4].tolist() == [255, 0, 0]
  assert picture[height // 4, 3 * width // 4].tolist() == [0, 0, 255]
  assert picture[0, 0].tolist() == [255, 255, 255]


def test_ceilings_and_walls_in_front_are_left_out():
  floor, ceiling = _plane(), _plane(z=2.0)
  front, back = floor[:, [0, 2, 1]], floor[:, [0, 2, 1]] + [0, 2, 0]
  parts = {RED: floor, (0, 255, 0): ceiling, BLUE: front, (9, 9, 9): back}
  points = np.concatenate(list(parts.values()))
  colors = np.repeat(np.uint8(list(parts)), len(floor), axis=0)
  picture = point_pictures.render(points, colors, (-90.0, 45.0), 100).reshape(-1, 3).astype(int)
  for color, is_seen in ((RED, True), ((0, 255, 0), False), (BLUE, False), ((9, 9, 9), True)):
    assert bool((picture == color).all(axis=1).mean() > 0.2) == is_seen


@pytest.mark.parametrize('count', [1, 2, 6])
def test_few_points_are_drawn(count):
  points = np.random.default_rng(0).uniform(size=(count, 3))
  for side in point_pictures.SIDES.values():
    picture = point_pictures.render(points, np.full((count, 3), 99, np.uint8), side)
    assert (picture != 255).any()


def test_a_page_needs_nothing_else_and_says_what_it_shows(tmp_path, monkeypatch):
  pytest.importorskip('plotly')
  monkeypatch.setattr(point_pictures, 'MOST_POINTS', 40)
  points = _plane(10)
  classes = np.arange(100) % 3 - 1
  colors = np.full((100, 3), 77, np.uint8)
  path = epath.Path(tmp_path / 'a.html')
  point_pictures.page(path, points, colors, classes, ('a', '<b>'), 'room & more')
  text = path.read_text()
  assert '<title>room &amp; more: 100 points, of which 40 are shown</title>' in text
  assert not re.search(r'<(script|link)[^>]+(src|href)=', text)
  assert len(re.findall('"#4d4d4d"', text)) == 40
  assert '"name":"no class"' in text
  assert len(text) < 7e6
