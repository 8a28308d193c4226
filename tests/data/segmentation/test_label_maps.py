import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data import pipeline
from crossattn_jax.data.segmentation import label_maps

LABEL = np.tile(np.arange(3, dtype=np.uint8), (2, 1))
COLORS = np.array([[[128, 64, 128], [0, 0, 1], [0, 0, 0]]] * 2, np.uint8)


def with_palette(label):
  image = Image.fromarray(label)
  image.putpalette([7] * 768)
  return image


@pytest.mark.parametrize(
  'label',
  [
    LABEL,
    LABEL.astype(np.uint16),
    LABEL.astype(np.int32),
    LABEL.astype(np.float32),
    with_palette(LABEL),
    np.stack([LABEL] * 3, -1),
    np.stack([LABEL] * 3 + [LABEL + 9], -1),
    np.stack([LABEL, LABEL + 9], -1),
  ],
  ids=['uint8', 'uint16', 'int32', 'float', 'palette', 'grey RGB', 'grey RGBA', 'grey and opacity'],
)
def test_labels_are_read_from_every_kind_of_file(encoded_label, label):
  np.testing.assert_array_equal(label_maps.decode(encoded_label(label), 'label'), LABEL)


def test_labels_of_one_bit_of_red_and_of_colours(encoded_label):
  bits = label_maps.decode(encoded_label(LABEL == 1), 'label')
  np.testing.assert_array_equal(bits, LABEL == 1)
  np.testing.assert_array_equal(label_maps.decode(encoded_label(COLORS), 'red'), COLORS[..., 0])
  colors = label_maps.decode(encoded_label(COLORS), 'color')
  np.testing.assert_array_equal(colors, [[0x804080, 1, 0]] * 2)


def test_colours_are_no_labels_and_damaged_files_are_unreadable(encoded_label):
  with pytest.raises(label_maps.ColorsError, match=r'holds colours \(mode RGB\), not one label'):
    label_maps.decode(encoded_label(COLORS), 'label')
  with pytest.raises(pipeline.UnreadableError):
    label_maps.decode(encoded_label(COLORS)[:40], 'color')
