"""Pages can be read at the width of a README, and say what they show."""

from etils import epath
import numpy as np
from PIL import Image
import pytest

from crossattn_jax.tasks import attention_maps, drawing
from crossattn_jax.tasks.segmentation import pictures


@pytest.mark.parametrize('caption', ['', 'A sentence that says what is shown. ' * 8])
def test_a_caption_and_a_legend_are_below_the_page(tmp_path, caption):
  page, axes = drawing.columns(8, 1)
  for panel in axes.ravel():
    drawing.show_image(panel, np.zeros((8, 8), np.uint8))
  drawing.legend(page, {'ground': (0, 0, 0), 'sky': (0, 0.5, 1)})
  path = epath.Path(tmp_path / 'page.png')
  drawing.save(page, path, caption)
  width, height = Image.open(path).size
  assert width == drawing.WIDTH * 120
  pixels = np.asarray(Image.open(path).convert('RGB')).min(axis=-1)
  below = np.flatnonzero((pixels < 128).any(axis=1))
  # The legend and three lines of text, none of them clipped.
  last = round(page.get_size_inches()[1] * 120)
  assert below.max() > last + (60 if caption else 20)
  assert height - 25 < below.max() < height - 2
  assert not (pixels[last:, -3:] < 128).any()


def test_headings_do_not_push_panels_aside(tmp_path):
  page, axes = drawing.columns(4, 2, most=4)
  for panel in axes.ravel():
    drawing.show_image(panel, np.zeros((8, 8), np.uint8))
    panel.set_title('two\nlines')
  drawing.name_panels(axes, ['a heading that is far wider than its panel' * 2, 'short'], most=4)
  drawing.save(page, epath.Path(tmp_path / 'page.png'))
  widths = [panel.get_position().width for panel in axes.ravel()]
  np.testing.assert_allclose(widths, widths[0], rtol=1e-3)
  assert widths[0] > 0.2


def test_the_bar_of_a_row_with_few_panels_pushes_none_aside(tmp_path):
  page, axes = drawing.columns(10, 1, bars=True)
  attention = attention_maps.Attention(np.linspace(0, 2, 16).reshape(4, 4))
  for panel in axes[:, 0]:
    shown = drawing.show_attention(panel, np.zeros((8, 8), np.uint8), attention)
  for panel in axes[::8, 0]:
    drawing.add_bar(page, shown, drawing.whole_row(panel), aspect=12)
  drawing.save(page, epath.Path(tmp_path / 'page.png'))
  lefts = [panel.get_position().x0 for panel in axes[:, 0]]
  np.testing.assert_allclose(np.diff(lefts[:8]), lefts[1] - lefts[0], rtol=1e-3)
  np.testing.assert_allclose(lefts[8:], lefts[:2])


def test_a_caption_speaks_of_twice_only_where_there_are_shades():
  frame = np.eye(2)
  chosen = attention_maps.Attention(np.array([[0.0, 2], [2, 0]]), frame)
  assert drawing.looking([]) == ''
  assert 'twice' not in drawing.looking([chosen])
  assert 'frame' in drawing.looking([chosen])
  shades = attention_maps.Attention(np.array([[0.0, 1], [2, 1]]))
  assert 'twice' in drawing.looking([chosen, shades])


def test_weights_are_shown_as_multiples_of_their_average():
  maps = attention_maps.of_example({'attention_maps/a': np.array([[1.0, 3.0]]) / 8})
  np.testing.assert_allclose(maps['a'].weights, [[0.5, 1.5]])
  zero = attention_maps.of_example({'attention_maps/a': np.zeros((2, 2))})
  np.testing.assert_array_equal(zero['a'].weights, np.zeros((2, 2)))


def test_a_legend_names_what_is_predicted_and_what_is_true(tmp_path, monkeypatch):
  named = {}
  monkeypatch.setattr(drawing, 'legend', lambda page, colors: named.update(colors))
  palette = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
  image = np.full((4, 4, 3), 128, np.uint8)
  true = np.array([[0, 2], [255, 1]]).repeat(2, 0).repeat(2, 1)
  sample = pictures.Sample(image, np.ones((4, 4), np.uint8), true, None, {})
  path = epath.Path(tmp_path / 'a.png')
  pictures.sheet(path, [sample], ['a', 'b', 'c', 'd'], palette)
  assert list(named) == ['a', 'b', 'c', 'no class (grey image)']
  # Over an image of that grey, pixels have just these colours.
  pixels = np.asarray(Image.open(path).convert('RGB')).reshape(-1, 3).astype(int)
  for name in 'abc':
    color = np.rint(named[name] * 255)
    assert (np.abs(pixels - color).max(axis=1) <= 1).sum() > 1000
