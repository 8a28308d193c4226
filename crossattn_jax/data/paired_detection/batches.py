"""The input pipeline of paired detection: RGB and thermal images with their objects, in batches."""

from collections.abc import Mapping, Sequence
import dataclasses
import io
import os
from typing import Any

from etils import epath
import jax
import ml_collections
from ml_collections import config_dict
import numpy as np
from PIL import Image

from crossattn_jax.data import decoding, image_ops, levels, pairing, pipeline
from crossattn_jax.data import sources as common
from crossattn_jax.data.detection import annotations
from crossattn_jax.data.paired_detection import augmentation, placement, sources

MODALITIES = ('rgb', 'thermal')
# Sides of arrays of images are multiples of it: the stride of the deepest features.
SIDE_MULTIPLE = 32


def default_config() -> ml_collections.ConfigDict:
  """Returns `config.dataset`: a folder of pairs, with the augmentation of YOLOv5 and ICAFusion."""
  config = ml_collections.ConfigDict()
  # 'pair_folder', a folder of pairs and their objects; or 'shape_scenes', which is made.
  config.name = sources.FOLDER
  # Folder of the data set, or of TFDS datasets (TFDS's own default if None).
  config.data_dir = config_dict.placeholder(str)
  # Images that are trained on. None: as the data set calls them.
  config.train_split = config_dict.placeholder(str)
  # Images that are evaluated. None: as the data set calls them; a tenth is held out of a folder
  # without.
  config.eval_split = config_dict.placeholder(str)
  # Names of the classes. They are the data set's, filled in at the start, so that a run keeps them.
  config.class_names = ()
  # The numbers by which results call the classes, likewise.
  config.category_ids = ()
  # Of objects of other classes: 'error', or 'skip', where `class_names` says some of the data set's
  # classes: these alone are learnt and evaluated.
  config.other_classes = 'error'
  # (height, width) of the arrays that hold images, multiples of 32. Images are resized, keeping
  # their proportions, until they just fit.
  config.image_size = (640, 640)
  # Rows for the objects of a training example. Of more, training draws as many at random each time.
  config.max_boxes = 300
  levels.add_options(config)
  # Subtracted from levels 0..255, one value per colour.
  config.mean = (0.0, 0.0, 0.0)
  # What the rest is divided by.
  config.std = (255.0, 255.0, 255.0)
  pipeline.add_options(config)
  image_ops.add_options(config)

  # All but the colours is the same for both images.
  config.augmentation = ml_collections.ConfigDict()
  # Probability of showing parts of four pairs, then warped. Others are shown whole, not warped.
  config.augmentation.mosaic = 1.0
  # The warp: at most so much perspective, in either direction, per pixel from the centre.
  config.augmentation.perspective = 0.0
  # It turns by at most so many degrees.
  config.augmentation.degrees = 0.0
  # It multiplies sides by 1 - scale to 1 + scale.
  config.augmentation.scale = 0.5
  # It shears by at most so many degrees, x and y.
  config.augmentation.shear = 0.0
  # It moves by at most such a share of the image's sides.
  config.augmentation.translate = 0.1
  # Colours of each image: hue is multiplied by 1 - gain to 1 + gain.
  config.augmentation.hue = 0.015
  # The same of saturation.
  config.augmentation.saturation = 0.7
  # The same of brightness.
  config.augmentation.value = 0.4
  # Probability of a mirror image, left to right.
  config.augmentation.flip = 0.5
  # The same, top to bottom.
  config.augmentation.flip_vertical = 0.0

  config.evaluation = ml_collections.ConfigDict()
  # Whether images are in arrays of their own proportions, which are 16 to 47 pixels higher and
  # wider: 544 x 672 for images of 512 x 640. Each shape compiles a program. Otherwise all are in
  # arrays of `image_size`.
  config.evaluation.rectangular = True
  return config


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
  """Two aligned images as files have them.

  Attributes:
    rgb: uint8 `[height, width, 3]`.
    thermal: likewise; of grey images all three channels are equal.
  """

  rgb: np.ndarray
  thermal: np.ndarray

  @property
  def size(self) -> tuple[int, int]:
    """(height, width) of both."""
    return self.rgb.shape[:2]


def batch_spec(
  config: ml_collections.ConfigDict, batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of a training batch; see `Examples`."""
  count = config.max_boxes
  shapes = {
    **dict.fromkeys(MODALITIES, ((*config.image_size, 3), np.float32)),
    'boxes': ((count, 4), np.float32),
    'labels': ((count,), np.int32),
    'index': ((), np.int32),
  }
  return {
    name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
    for name, (shape, dtype) in shapes.items()
  }


def read_pair(
  rgb: str | os.PathLike[str], thermal: str | os.PathLike[str], config: ml_collections.ConfigDict
) -> tuple[dict[str, np.ndarray], Pair]:
  """Reads two image files to predict for.

  Returns:
    What `prepare_pair` makes of the images, and these.

  Raises:
    ValueError: one is no readable image, or they differ in size; the message names both.
  """
  paths = dict(zip(MODALITIES, (rgb, thermal), strict=True))
  files = {name: epath.Path(path).read_bytes() for name, path in paths.items()}
  keys = {f'{name}_key': os.fspath(path) for name, path in paths.items()}
  pair = _decode(files | keys, image_ops.decoding_of(config, photos=True))
  return prepare_pair(pair, config), pair


def prepare_pair(pair: Pair, config: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
  """Resizes, pads and normalises a pair in an array of `image_size`, as exported models take it.

  Returns:
    A batch of one, as evaluation has it that is not `rectangular`, but for `mask` and `skipped`.
  """
  example = _eval_example(pair, -1, tuple(config.image_size), config)
  return {name: value[None] for name, value in example.items()}


def describe_preprocessing(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What makes inputs of fixed size of a pair, as JSON can hold it; see docs/export.md."""
  return {
    'mode': 'RGB',
    'decoding': image_ops.decoding_of(config, photos=True),
    'resize': {
      # That the image just fits.
      'size': list(config.image_size),
      'keep_proportions': True,
      # Between the four nearest pixels where enlarged, the mean of all where shrunk.
      'interpolation': 'area',
    },
    # On all sides alike, before normalisation.
    'pad_to': list(config.image_size),
    'pad_with': placement.FILL[0],
    **levels.describe(config),
  }


def _decode(
  example: Mapping[str, Any], options: Mapping[str, Any], channels: int | None = 3
) -> Pair:
  """Decodes both images; see `pairing.decode`.

  Raises:
    UnreadableError: as there, or an image is deep, and nothing says which levels count.
  """
  pair = Pair(*pairing.decode(example, MODALITIES, options, channels))
  for name in MODALITIES:
    if options['levels'] is None and Image.open(io.BytesIO(example[name])).mode.startswith('I'):
      raise pipeline.UnreadableError(
        f'{example[f"{name}_key"]!r} has 16 bits, of which thermal cameras use few: set '
        'dataset.decoding.levels=(low, high), the levels that are to be black and white, such as '
        '(0, 65535) for all'
      )
  return pair


def _eval_shape(size: Sequence[int], config: ml_collections.ConfigDict) -> tuple[int, int]:
  """(height, width) of the array that holds a pair in evaluation."""
  if not config.evaluation.rectangular:
    return tuple(config.image_size)
  shown = placement.Letterbox(size, config.image_size).shown
  half = SIDE_MULTIPLE // 2
  return tuple(-(-(side + half) // SIDE_MULTIPLE) * SIDE_MULTIPLE for side in shown)


def _eval_example(
  pair: Pair, index: int, shape: Sequence[int], config: ml_collections.ConfigDict
) -> dict[str, np.ndarray]:
  fitted = placement.Letterbox(pair.size, config.image_size)
  placed = placement.Letterbox(fitted.shown, tuple(shape), enlarge=False)

  def prepared(image: np.ndarray) -> np.ndarray:
    image = placement.resized(image, fitted.shown, area=True)
    return _normalized(placed.image(image), config)

  return {
    'rgb': prepared(pair.rgb),
    'thermal': prepared(pair.thermal),
    'original_size': np.array(pair.size, np.int32),
    'scale': np.float32(fitted.scale),
    'offset': np.array(placed.offset, np.int32),
    'index': np.int32(index),
  }


def _normalized(image: np.ndarray, config: ml_collections.ConfigDict) -> np.ndarray:
  return levels.normalize(np.broadcast_to(image, (*image.shape[:2], 3)), config)


def _reduced(image: np.ndarray) -> np.ndarray:
  """An image with one channel, if it is grey, which costs a third of the time."""
  grey = image[..., :1]
  if image.shape == grey.shape:
    return image
  some = image[::16, ::16]
  is_grey = (some == some[..., :1]).all() and all(
    np.array_equal(image[..., channel], image[..., 0]) for channel in (1, 2)
  )
  return np.ascontiguousarray(grey) if is_grey else image


class Examples(pipeline.Examples):
  """The pairs of a split with their objects.

  Rows of training batches, `(height, width)` being `image_size`:
    `rgb`, `thermal`: float32 `[height, width, 3]`, normalised (0 to 1 by default).
    `boxes`: float32 `[max_boxes, 4]`, corners in pixels of the images, 0 in rows without an object.
    `labels`: int32 `[max_boxes]`, -1 in rows without an object.
    `index`: number of the pair in the split, int32; of a mosaic, that of the first one.
  Rows of evaluation batches have no objects, which are `source.annotations(index)`, and
  `(height, width)` is that of the bucket. A pixel of the file is
  `(pixel of the array - offset) / scale`:
    `original_size`: (height, width) of the files, upright, int32 `[2]`.
    `scale`: pixels of the array per pixel of the files, float32.
    `offset`: (top, left) of the images in the array, int32 `[2]`.
  `index` is -1 where there is no pair.
  """

  kind = 'pair'
  open_source = staticmethod(sources.open_source)

  def __init__(self, config: ml_collections.ConfigDict, split: str):
    super().__init__(config, split)
    self._decoding = image_ops.decoding_of(config, photos=config.name == sources.FOLDER)
    # Sources look at headers.
    decoding.allow(self._decoding['max_pixels'])

  @staticmethod
  def check(config: ml_collections.ConfigDict) -> None:
    """Refuses wrong values, naming the key."""
    require = pipeline.requirement(config)
    image_ops.check_options(config)
    levels.check_options(config)
    size, options = config.image_size, config.augmentation
    require(
      len(size) == 2 and min(size) > 0 and not any(side % SIDE_MULTIPLE for side in size),
      'image_size',
      f'(height, width), multiples of {SIDE_MULTIPLE} pixels',
    )
    require(config.max_boxes >= 1, 'max_boxes', 'at least 1')
    for name in ('mosaic', 'flip', 'flip_vertical'):
      require(0 <= options[name] <= 1, f'augmentation.{name}', 'a probability')
    for name in ('hue', 'saturation', 'value'):
      require(0 <= options[name] <= 1, f'augmentation.{name}', 'a gain, from 0 to 1')
    require(0 <= options.scale < 1, 'augmentation.scale', 'at least 0 and less than 1')
    require(0 <= options.translate <= 1, 'augmentation.translate', 'a share of the image, 0 to 1')
    require(0 <= options.degrees <= 180, 'augmentation.degrees', 'an angle from 0 to 180')
    require(0 <= options.shear < 90, 'augmentation.shear', 'an angle from 0 to less than 90')
    # From the centre of a mosaic to its edges, lines of sight must not turn around.
    most = 1 / sum(size)
    expected = f'from 0 to less than {most:.3g}'
    require(0 <= options.perspective < most, 'augmentation.perspective', expected)

  def describe(self, index: int) -> str:
    """The reason names the images."""
    return self.kind

  def buckets(self) -> list[tuple[int, int]]:
    """Shapes that hold each pair."""
    sizes = [self.source.image_size(index) for index in range(len(self.source))]
    return [_eval_shape(size, self.config) for size in sizes]

  def learnt_sizes(self) -> list[np.ndarray]:
    """Sizes `[n, 2]` of the objects of each pair, (width, height) in pixels of `image_size`."""
    sizes = []
    for index in range(len(self.source)):
      objects = self.source.annotations(index)
      boxes, _ = _learnable(objects)
      scale = placement.Letterbox(objects.size, tuple(self.config.image_size)).scale
      sizes.append(scale * (boxes[:, 2:] - boxes[:, :2]))
    return sizes

  def decode(self, index: int) -> tuple[Pair, annotations.Objects]:
    """The images, grey ones with one channel, and their objects.

    Raises:
      UnreadableError: an image cannot be decoded, or they differ in size.
      ValueError: the objects are not those of images of this size.
    """
    example = self.source[index]
    pair = _decode(example, self._decoding, channels=None)
    objects = self.source.annotations(index)
    annotations.check_size(objects, pair.size, example['key'])
    return Pair(_reduced(pair.rgb), _reduced(pair.thermal)), objects

  def train_example(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws a view of a pair, or of parts of four, and of the objects."""
    config, options = self.config, self.config.augmentation
    first = self.next_readable(index)
    _, found, skipped = first
    if rng.random() < options.mosaic:
      center = augmentation.draw_center(rng, config.image_size)
      drawn = [first, *map(self.next_readable, rng.integers(len(self.source), size=3).tolist())]
      skipped = sum(count for _, _, count in drawn)
      pair, boxes, labels = self._mosaic([shown for shown, _, _ in drawn], center, rng)
    else:
      pair, boxes, labels = self._whole(*first[0])
    images = {name: getattr(pair, name) for name in MODALITIES}
    for name in MODALITIES:
      gains = augmentation.draw_gains(rng, options)
      if (gains != 1).any():
        images[name] = augmentation.jitter_color(images[name], gains)
    height, width = config.image_size
    if rng.random() < options.flip:
      images = {name: image[:, ::-1] for name, image in images.items()}
      boxes = np.array([width, 0, width, 0]) + boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1)
    if rng.random() < options.flip_vertical:
      images = {name: image[::-1] for name, image in images.items()}
      boxes = np.array([0, height, 0, height]) + boxes[:, [0, 3, 2, 1]] * (1, -1, 1, -1)
    if len(boxes) > config.max_boxes:
      common.say_once(
        f'views of {self._described()} have more than dataset.max_boxes={config.max_boxes} '
        f'objects: each time, {config.max_boxes} of them are drawn at random'
      )
      chosen = np.sort(rng.choice(len(boxes), config.max_boxes, replace=False))
      boxes, labels = boxes[chosen], labels[chosen]
    row = {
      **{name: _normalized(image, config) for name, image in images.items()},
      'boxes': np.zeros((config.max_boxes, 4), np.float32),
      'labels': np.full(config.max_boxes, -1, np.int32),
      'index': np.int32(found),
      'skipped': np.int32(skipped),
    }
    row['boxes'][: len(boxes)] = boxes
    row['labels'][: len(labels)] = labels
    return row

  def _whole(self, pair: Pair, objects: annotations.Objects) -> tuple[Pair, np.ndarray, np.ndarray]:
    """A pair in the middle of the array, and the boxes and labels of what is learnt there."""
    letterbox = placement.Letterbox(pair.size, tuple(self.config.image_size))
    boxes, labels = _learnable(objects)
    shown = Pair(letterbox.image(pair.rgb), letterbox.image(pair.thermal))
    return shown, letterbox.boxes(boxes), labels

  def _mosaic(
    self,
    drawn: Sequence[tuple[Pair, annotations.Objects]],
    center: tuple[int, int],
    rng: np.random.Generator,
  ) -> tuple[Pair, np.ndarray, np.ndarray]:
    """Four pairs around a point, warped, and the boxes and labels of what is learnt there."""
    canvas = tuple(self.config.image_size)
    sizes = [placement.Letterbox(pair.size, canvas).shown for pair, _ in drawn]
    mosaic = augmentation.Mosaic(sizes, center, tuple(2 * side for side in canvas))
    warp = augmentation.draw_warp(rng, mosaic.canvas, canvas, self.config.augmentation)

    def shown(images: Sequence[np.ndarray]) -> np.ndarray:
      tiles = [placement.resized(*each) for each in zip(images, sizes, strict=True)]
      return warp.image(mosaic.image(tiles))

    learnt = [_learnable(objects) for _, objects in drawn]
    boxes, kept = warp.boxes(
      mosaic.boxes(
        [
          boxes * np.tile(np.divide(size, pair.size)[::-1], 2)
          for (boxes, _), size, (pair, _) in zip(learnt, sizes, drawn, strict=True)
        ]
      )
    )
    labels = np.concatenate([labels for _, labels in learnt])
    pair = Pair(shown([pair.rgb for pair, _ in drawn]), shown([pair.thermal for pair, _ in drawn]))
    return pair, boxes[kept], labels[kept]

  def eval_example(
    self,
    decoded: tuple[Pair, annotations.Objects] | None,
    index: int,
    bucket: tuple[int, int],
  ) -> dict[str, np.ndarray]:
    """Resizes, pads and normalises a pair."""
    if decoded is not None:
      return _eval_example(decoded[0], index, bucket, self.config)
    # One pixel: a size that every operation on sizes can take.
    image = np.zeros((*bucket, 3), np.float32)
    return {
      'rgb': image,
      'thermal': image,
      'original_size': np.ones(2, np.int32),
      'scale': np.float32(1),
      'offset': np.zeros(2, np.int32),
      'index': np.int32(-1),
    }


def _learnable(objects: annotations.Objects) -> tuple[np.ndarray, np.ndarray]:
  """Boxes, within their image, and labels of the objects that are learnt from."""
  boxes = np.clip(objects.boxes, 0, np.tile(objects.size[::-1], 2))
  return boxes[objects.learnable], objects.labels[objects.learnable]
