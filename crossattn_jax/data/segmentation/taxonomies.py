"""What the numbers in the files of a data set mean: classes, their names and colours.

Source: Cityscapes, Cordts et al. 2016 (arXiv 1604.01685); ADE20K, Zhou et al. 2017.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
from typing import Literal

import ml_collections
import numpy as np

from crossattn_jax import config_errors
from crossattn_jax.data import sources
from crossattn_jax.data.scenes import shapes

# Of pixels without a class.
IGNORE_LABEL = 255
# Folders of images and masks whose classes are their owner's.
SEGMENTATION_FOLDER = 'segmentation_folder'

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


@dataclasses.dataclass(frozen=True, eq=False)
class Taxonomy:
  """The classes of a data set, and how its files say them.

  Attributes:
    class_names: in the order of the classes.
    palette: a colour of each, uint8 `[classes, 3]`.
    labels: the class of every label that files may hold, 255 for those that are no class.
    holds: what a pixel of a file holds: its label; that in the red of three bands; or a colour,
      whose label is 0xRRGGBB.
  """

  class_names: tuple[str, ...]
  palette: np.ndarray
  labels: Mapping[int, int]
  holds: Literal['label', 'red', 'color'] = 'label'

  @property
  def num_classes(self) -> int:
    """How many classes there are."""
    return len(self.class_names)

  def by_name(self, class_names: Sequence[str], where: str) -> 'Taxonomy':
    """The same files mapped to classes in another order, or to more of them, by their names.

    Raises:
      ValueError: a class is not among those; `where` says whose it is.
    """
    unknown = [name for name in self.class_names if name not in class_names]
    if unknown:
      raise sources.unknown_classes(where, unknown, class_names)
    places = [class_names.index(name) for name in self.class_names]
    palette = default_palette(len(class_names))
    palette[places] = self.palette
    labels = {
      label: index if index == IGNORE_LABEL else places[index]
      for label, index in self.labels.items()
    }
    return Taxonomy(tuple(class_names), palette, labels, self.holds)

  def to_classes(self, labels: np.ndarray) -> np.ndarray:
    """Maps labels as files have them to classes and 255, uint8.

    Raises:
      ValueError: a label is not among `labels`; the message says what is expected.
    """
    classes = self._classes_of_bytes[labels] if labels.dtype == np.uint8 else self._look_up(labels)
    if classes.size and classes.min() < 0:
      unknown = labels[classes < 0]
      raise ValueError(
        f'holds {self._shown(np.unique(unknown).tolist())} in {unknown.size / labels.size:.2%} of '
        f'its pixels, which is no class; expected {self._shown(self.labels)}'
      )
    return classes.astype(np.uint8)

  def to_labels(self, classes: np.ndarray) -> np.ndarray:
    """The other way: a label of every class and of 255, uint8, or a larger type if need be."""
    table = np.zeros(IGNORE_LABEL + 1, np.int64)
    for label, index in reversed(self.labels.items()):
      table[index] = max(label, 0)
    return table.astype(np.min_scalar_type(table.max()))[classes]

  @functools.cached_property
  def _classes_of_bytes(self) -> np.ndarray:
    return self._look_up(np.arange(256))

  def _look_up(self, labels: np.ndarray) -> np.ndarray:
    """Classes, 255, or -1 for labels that are not known."""
    known = np.array(sorted(self.labels))
    classes = np.array([self.labels[label] for label in known.tolist()], np.int16)
    place = np.minimum(np.searchsorted(known, labels), len(known) - 1)
    return np.where(known[place] == labels, classes[place], np.int16(-1))

  def _shown(self, labels: Iterable[int], most: int = 8) -> str:
    """Labels with the names of their classes, for a message."""
    labels = list(labels)
    texts = []
    for label in labels[:most]:
      text = f'#{label:06x}' if self.holds == 'color' else f'{label}'
      index = self.labels.get(label, IGNORE_LABEL)
      texts.append(text if index == IGNORE_LABEL else f'{text} {self.class_names[index]!r}')
    rest = [f'{len(labels) - most} more'] if len(labels) > most else []
    return ', '.join(texts + rest)


def _counted(first: int, count: int) -> dict[int, int]:
  """Labels that count the classes from `first` on."""
  return {first + index: index for index in range(count)}


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


def default_palette(num_classes: int) -> np.ndarray:
  """Colours of classes that have none of their own: VOC's without black."""
  return voc_palette(num_classes + 1)[1:]


def check_number(num_classes: int, where: str) -> None:
  """Refuses more classes than label maps of bytes hold; `where` says whose they are."""
  if num_classes > IGNORE_LABEL:
    raise ValueError(f'{where} has {num_classes} classes; at most {IGNORE_LABEL} are possible')


CITYSCAPES = Taxonomy(
  tuple(name for name, _, _ in _CITYSCAPES),
  np.array([color for _, _, color in _CITYSCAPES], np.uint8),
  # Ids that are not evaluated are no class; the test server calls those unlabelled. License plates
  # have the id -1, which files hold as 255.
  dict.fromkeys([*range(34), 255], IGNORE_LABEL)
  | {label_id: index for index, (_, label_id, _) in enumerate(_CITYSCAPES)},
)
ADE20K = Taxonomy(
  tuple(name.strip() for name in _ADE20K.split(',')),
  voc_palette(151)[1:],
  {0: IGNORE_LABEL} | _counted(1, 150),
)
# The things of ADE20K's instance segmentation, which TFDS's `scene_parse150` holds.
ADE20K_THINGS = Taxonomy(
  tuple(f'thing {number}' for number in range(1, 101)),
  voc_palette(101)[1:],
  {0: IGNORE_LABEL} | _counted(1, 100),
  holds='red',
)
SHAPE_SCENES = Taxonomy(shapes.CLASS_NAMES, shapes.PALETTE, _counted(0, len(shapes.CLASS_NAMES)))

# By the name of the data set.
TAXONOMIES = {
  'cityscapes': CITYSCAPES,
  'scene_parse150': ADE20K_THINGS,
  'shape_scenes': SHAPE_SCENES,
  'cityscapes_folder': CITYSCAPES,
  'ade20k_folder': ADE20K,
}


def find_taxonomy(name: str) -> Taxonomy:
  """The classes of a released data set; needs no files.

  Raises:
    ValueError: there is no such data set.
  """
  found = TAXONOMIES.get(sources.bare_name(name))
  if found is None:
    raise sources.unknown_dataset(name, [*TAXONOMIES, SEGMENTATION_FOLDER], 'segmentation')
  return found


def of_run(config: ml_collections.ConfigDict) -> Taxonomy:
  """The classes that a network learns; needs no files.

  Args:
    config: `config.dataset`. Without `class_names` they are those of the data set.

  Raises:
    ValueError: they are not known, or `palette` and `class_values` are not theirs.
  """
  names = tuple(config.class_names)
  if config.name == SEGMENTATION_FOLDER and not names:
    raise config_errors.MissingFromData(
      f'the classes of a {config.name!r} are not known before its table of classes is read: set '
      'dataset.class_names, or call tasks.complete_config(config)'
    )
  if config.name != SEGMENTATION_FOLDER:
    released = find_taxonomy(config.name)
    if names in ((), released.class_names):
      return released
  check_number(len(names), 'dataset.class_names')
  for key in ('palette', 'class_values'):
    if len(config[key]) not in (0, len(names)):
      raise ValueError(
        f'dataset.{key} has {len(config[key])} entries, dataset.class_names {len(names)}'
      )
  palette = np.array(config.palette or default_palette(len(names)), np.uint8)
  labels = {label: index for index, label in enumerate(config.class_values or range(len(names)))}
  return Taxonomy(names, palette, labels)
