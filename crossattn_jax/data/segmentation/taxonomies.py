"""What the numbers in the files of a data set mean: classes, their names and colours.

Source: Cityscapes, Cordts et al. 2016 (arXiv 1604.01685); ADE20K, Zhou et al. 2017.
"""

from collections.abc import Callable
import dataclasses
import functools

import numpy as np

from crossattn_jax.data import sources
from crossattn_jax.data.scenes import shapes

# Of pixels without a class.
IGNORE_LABEL = 255

# name, label id, colour; in the order of the train ids.
_CITYSCAPES = (
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

# Scene parsing, in the order of the labels 1 to 150; 0 is everything else.
_ADE20K = """
  wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
  person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf,
  house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub,
  railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, sink,
  skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
  screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill,
  bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar,
  arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth,
  television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman,
  bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
  swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food,
  step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket,
  sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
  monitor, bulletin board, shower, radiator, glass, clock, flag
"""


@dataclasses.dataclass(frozen=True)
class Taxonomy:
  """The classes of a data set.

  Attributes:
    class_names: in the order of the classes.
    palette: a colour of each, uint8 `[classes, 3]`.
    to_classes: maps labels as the files have them, uint8, to classes and 255.
    to_labels: the other way.
  """

  class_names: tuple[str, ...]
  palette: np.ndarray
  to_classes: Callable[[np.ndarray], np.ndarray]
  to_labels: Callable[[np.ndarray], np.ndarray]

  @property
  def num_classes(self) -> int:
    """How many classes there are."""
    return len(self.class_names)


def _look_up(table: dict[int, int], default: int) -> Callable[[np.ndarray], np.ndarray]:
  """Maps uint8 by a table of what differs from a default."""
  values = np.full(256, default, np.uint8)
  values[list(table)] = list(table.values())
  return functools.partial(np.take, values)


def _from_one(labels: np.ndarray) -> np.ndarray:
  """Labels that count classes from 1 become classes: 0 becomes 255, others go down by one."""
  return labels.astype(np.uint8) - np.uint8(1)


def _to_one(classes: np.ndarray) -> np.ndarray:
  return classes.astype(np.uint8) + np.uint8(1)


def _as_they_are(labels: np.ndarray) -> np.ndarray:
  return labels


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


_LABEL_IDS = [label_id for _, label_id, _ in _CITYSCAPES]
CITYSCAPES = Taxonomy(
  class_names=tuple(name for name, _, _ in _CITYSCAPES),
  palette=np.array([colour for _, _, colour in _CITYSCAPES], np.uint8),
  # Ids that are not evaluated are no class; the test server calls those unlabelled.
  to_classes=_look_up({label_id: index for index, label_id in enumerate(_LABEL_IDS)}, IGNORE_LABEL),
  to_labels=_look_up(dict(enumerate(_LABEL_IDS)), 0),
)
ADE20K = Taxonomy(
  tuple(name.strip() for name in _ADE20K.split(',')), voc_palette(151)[1:], _from_one, _to_one
)
# The things of ADE20K's instance segmentation, which TFDS's `scene_parse150` holds.
ADE20K_THINGS = Taxonomy(
  tuple(f'thing {number}' for number in range(1, 101)), voc_palette(101)[1:], _from_one, _to_one
)
SHAPE_SCENES = Taxonomy(shapes.CLASS_NAMES, shapes.PALETTE, _as_they_are, _as_they_are)

# By the name of the data set.
TAXONOMIES = {
  'cityscapes': CITYSCAPES,
  'scene_parse150': ADE20K_THINGS,
  'shape_scenes': SHAPE_SCENES,
  'cityscapes_folder': CITYSCAPES,
  'ade20k_folder': ADE20K,
}


def find_taxonomy(name: str) -> Taxonomy:
  """The classes of a data set; needs no files.

  Raises:
    ValueError: there is no such data set.
  """
  found = TAXONOMIES.get(sources.bare_name(name))
  if found is None:
    raise sources.unknown_dataset(name, TAXONOMIES, 'segmentation')
  return found
