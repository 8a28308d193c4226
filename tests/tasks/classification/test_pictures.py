import numpy as np
from PIL import Image
import pytest

from crossattn_jax.tasks import attention_maps
from crossattn_jax.tasks.classification import pictures

CYAN = (0, 255, 255)


def _cyan(path):
  """Positions of the pixels of a frame."""
  pixels = np.asarray(Image.open(path).convert('RGB'), np.int32)
  return np.argwhere(np.abs(pixels - CYAN).max(axis=-1) < 40)


@pytest.mark.parametrize('framed', [False, True])
def test_what_looks_has_a_frame_where_it_is(tmp_path, framed):
  weights = np.zeros((4, 4))
  query = None
  if framed:
    query = np.zeros((8, 8))
    query[2:4, 6:8] = 1
  path = tmp_path / 'picture.png'
  image = np.full((32, 32, 3), 0.5)
  attention = {'stage 1': attention_maps.Attention(weights, query)}
  pictures.classified_image(path, pictures.Sample(image, [('cat', 0.75)], None, attention))
  frame = _cyan(path)
  assert (len(frame) > 0) == framed
  if framed:
    height, width = np.ptp(frame, axis=0)
    # A quarter of the map in both directions, above its middle.
    assert height == pytest.approx(width, abs=3)
    sheet_height = Image.open(path).height
    assert frame[:, 0].max() < sheet_height / 2


def test_a_sheet_frames_every_example(tmp_path):
  query = np.zeros((2, 2))
  query[0, 0] = 1
  samples = [
    pictures.Sample(
      np.full((8, 8, 1), 0.5),
      [('3', 0.9)],
      '3',
      {'stage 1': attention_maps.Attention(query, query)},
    )
  ] * 3
  path = tmp_path / 'sheet.png'
  pictures.sheet(path, samples)
  columns = np.unique(_cyan(path)[:, 1])
  assert np.count_nonzero(np.diff(columns) > 20) >= 2
