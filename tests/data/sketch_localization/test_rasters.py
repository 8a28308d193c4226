import pathlib

import numpy as np
import pytest

from crossattn_jax.data import levels
from crossattn_jax.data.sketch_localization import batches, rasters
from crossattn_jax.geometry import strokes

CASES = pathlib.Path(__file__).parents[2] / 'reference' / 'sketch_localizer'
# A line along the top, and one beyond the right.
CORNER = [np.array([[0, 0], [40, 0]]), np.array([[250, 0], [250, 255]])]


@pytest.fixture
def config():
  return batches.default_config()


@pytest.mark.parametrize(
  ('case', 'style', 'drawn'),
  [
    ('quickdraw_raster', 'release', 'out/white_pixels_row_col'),
    ('quickdraw_raster_stroke3', 'repaired', 'out/dark_pixels_row_col'),
  ],
)
def test_lines_are_those_of_both_originals(config, case, style, drawn):
  recorded = np.load(CASES / f'{case}.npz')
  if style == 'release':
    rows = recorded['input/stroke_x_y']
    drawing = [rows[rows[:, 0] == number, 1:] for number in range(rows[-1, 0] + 1)]
  else:
    drawing = strokes.from_stroke3(recorded['input/stroke3'])
  config.sketches.style = style
  pixels = rasters.raster(drawing, config.sketches)
  lit = np.argwhere(pixels == (255 if style == 'release' else 0))
  np.testing.assert_array_equal(lit, recorded[drawn])
  if style == 'release':
    mean = rasters.normalized(pixels, config).mean(axis=(0, 1), dtype=np.float64)
    np.testing.assert_allclose(mean, recorded['out/channel_mean_after_normalise'], rtol=1e-6)


def test_a_style_may_be_changed(config):
  options = config.sketches
  options.size = 32
  pixels = rasters.raster(CORNER, options)
  assert set(pixels[0]) == {255}
  assert not pixels[1:].any()  # The second line is cut off.
  options.invert = False
  np.testing.assert_array_equal(rasters.raster(CORNER, options), 255 - pixels)
  options.style, options.invert, options.line_width = 'repaired', None, 1
  rows, columns = np.nonzero(rasters.raster(CORNER, options) == 0)
  assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 22, 10, 21)


def test_pictures_are_resized_and_shown_as_lines_are(config):
  config.sketches.size = 64
  picture = np.full((128, 128), 255, np.uint8)
  picture[60:68] = 0
  shown = rasters.raster(picture, config.sketches)
  assert shown.shape == (64, 64)
  assert (set(shown[31]), set(shown[10])) == ({255}, {0})
  config.sketches.style = 'repaired'
  np.testing.assert_array_equal(rasters.raster(picture, config.sketches), 255 - shown)


@pytest.mark.parametrize(('style', 'background'), [('release', 0), ('repaired', 255)])
def test_blank_drawings_are_background(config, style, background):
  config.sketches.style, config.sketches.blank = style, True
  pixels = rasters.raster(CORNER, config.sketches)
  assert np.unique(pixels).tolist() == [background]
  image = rasters.normalized(pixels, config)
  assert (image.shape, image.dtype) == ((224, 224, 3), np.float32)
  assert np.unique(levels.denormalize(image, config)).tolist() == [background]


def test_a_style_is_described(config):
  config.sketches.line_width, config.sketches.count = 3, 2
  assert rasters.describe(config.sketches) == {
    'size': 224,
    'count': 2,
    'line_width': 3,
    'rescale': False,
    'invert': True,
    'padding': 10,
  }
