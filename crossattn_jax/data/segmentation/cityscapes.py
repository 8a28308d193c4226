"""The classes of Cityscapes, and palettes (Cordts et al. 2016, arXiv 1604.01685)."""

import numpy as np

# name, label id, colour; in the order of the train ids.
_CLASSES = (
  ('road', 7, (128, 64, 128)),
  ('sidewalk', 8, (244, 35, 232)),
  ('building', 11, (70, 70, 70)),
  ('wall', 12, (102, 102, 156)),
  ('fence', 13, (190, 153, 153)),
  ('pole', 17, (153, 153, 153)),
  ('traffic light', 19, (250, 170, 30)),
  ('traffic sign', 20, (220, 220, 0)),
  ('vegetation', 21, (107, 142, 35)),
  ('terrain', 22, (152, 251, 152)),
  ('sky', 23, (70, 130, 180)),
  ('person', 24, (220, 20, 60)),
  ('rider', 25, (255, 0, 0)),
  ('car', 26, (0, 0, 142)),
  ('truck', 27, (0, 0, 70)),
  ('bus', 28, (0, 60, 100)),
  ('train', 31, (0, 80, 100)),
  ('motorcycle', 32, (0, 0, 230)),
  ('bicycle', 33, (119, 11, 32)),
)

CLASS_NAMES = tuple(name for name, _, _ in _CLASSES)
LABEL_IDS = tuple(label_id for _, label_id, _ in _CLASSES)
PALETTE = np.array([colour for _, _, colour in _CLASSES], np.uint8)
IGNORE_LABEL = 255

_TRAIN_IDS = np.full(256, IGNORE_LABEL, np.uint8)
_TRAIN_IDS[list(LABEL_IDS)] = np.arange(len(LABEL_IDS))


def to_train_ids(label_ids: np.ndarray) -> np.ndarray:
  """Maps label ids, as the files have them, to classes; ids that are not evaluated to 255."""
  return _TRAIN_IDS[label_ids]


def to_label_ids(train_ids: np.ndarray) -> np.ndarray:
  """Maps classes to label ids, as the test server wants them; 255 to 0, unlabelled."""
  table = np.zeros(256, np.uint8)
  table[: len(LABEL_IDS)] = LABEL_IDS
  return table[train_ids]


def voc_palette(size: int = 256) -> np.ndarray:
  """The colours of Pascal VOC, uint8 `[size, 3]`: the bits of the index, spread over the colours.

  Bits 3k, 3k + 1 and 3k + 2 of the index become bit 7 - k of red, green and blue.
  """
  index = np.arange(size)
  palette = np.zeros((size, 3), np.uint8)
  for k in range(8):
    for band in range(3):
      palette[:, band] |= ((index >> (3 * k + band) & 1) << (7 - k)).astype(np.uint8)
  return palette
