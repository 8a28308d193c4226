"""The input pipeline of detection: views of images with their objects, in batches of one shape."""

from collections.abc import Sequence
import functools
import math
import os
from typing import Any

import grain
from hotcoco import mask as coco_mask
import jax
import ml_collections
from ml_collections import config_dict
import numpy as np
from PIL import Image

from crossattn_jax.data import decoding, grouping, image_ops, levels, pipeline, resizing
from crossattn_jax.data import sources as common
from crossattn_jax.data.detection import annotations, augmentation, sources


def default_config() -> ml_collections.ConfigDict:
  """Returns `config.dataset`: COCO's boxes with the augmentation of mmdetection's 1x schedules."""
  config = ml_collections.ConfigDict()
  # 'detection_folder', a folder of one's own, or said to be a 'coco_folder', 'yolo_folder' or
  # 'voc_folder'; 'coco', as it is released; a data set of TFDS with boxes, such as 'coco/2017'; or
  # 'shape_scenes', which is made.
  config.name = 'coco/2017'
  # Folder of TFDS datasets (TFDS's own default if None), or that of the images.
  config.data_dir = config_dict.placeholder(str)
  # Of COCO files: the folder of their images, if it is not found.
  config.image_dir = config_dict.placeholder(str)
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
  # (height, width) of the arrays that hold images wider than high, multiples of 32; images higher
  # than wide are in arrays of (width, height), in batches of their own.
  config.image_size = (800, 1344)
  # Sides of resized images are nearest to their proportions, or multiples of it, rounded down, as
  # in ViDT, where it is 16.
  config.size_multiple = 1
  # Rows for the objects of an image. Of more, training draws as many at random each time.
  config.max_boxes = 100
  # Whether masks are learnt too.
  config.masks = False
  # Whether images without objects are left out of training.
  config.skip_empty = True
  levels.add_options(config)
  pipeline.add_options(config)
  image_ops.add_options(config)

  config.augmentation = ml_collections.ConfigDict()
  # (least, most): an image is resized, keeping its proportions, until its short side is as long, or
  # its long side `long_side`. None: what `image_size` holds.
  config.augmentation.short_side = config_dict.placeholder(tuple)
  # Every so many-th of those lengths is equally likely.
  config.augmentation.short_step = 1
  # Most of the long side. None: what `image_size` holds.
  config.augmentation.long_side = config_dict.placeholder(int)
  # Probability of a mirror image.
  config.augmentation.flip = 0.5
  # Probability of showing a part alone (DETR): the image is resized to one of these short sides,
  # then height and width of a part are drawn from `sides`, then this is resized as above.
  config.augmentation.crop = ml_collections.ConfigDict(
    {'probability': 0.0, 'short_side': (400, 600), 'short_step': 100, 'sides': (384, 600)}
  )

  config.evaluation = ml_collections.ConfigDict()
  # Images are resized as in training, to this short side. None: what `image_size` holds.
  config.evaluation.short_side = config_dict.placeholder(int)
  # Most of the long side, likewise.
  config.evaluation.long_side = config_dict.placeholder(int)
  # Images are padded to multiples of this size: 32 computes least, but compiles a program for each
  # shape. None: to `image_size`, or its transpose, for which there are two programs at most.
  config.evaluation.bucket_step = config_dict.placeholder(int)
  return config


def batch_spec(
  config: ml_collections.ConfigDict, batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of a training batch of images wider than high; see `Examples`."""
  height, width = config.image_size
  count = config.max_boxes
  shapes = {
    'image': ((height, width, 3), np.float32),
    'image_size': ((2,), np.int32),
    'original_size': ((2,), np.int32),
    'boxes': ((count, 4), np.float32),
    'labels': ((count,), np.int32),
    'index': ((), np.int32),
  }
  if config.get('masks'):
    shapes['masks'] = ((count, height, width // 8), np.uint8)
  return {
    name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
    for name, (shape, dtype) in shapes.items()
  }


def read_image(
  path: str | os.PathLike[str], config: ml_collections.ConfigDict
) -> tuple[dict[str, np.ndarray], Image.Image]:
  """Reads an image file as evaluation would.

  Returns:
    A batch of one, as evaluation has it but for the mask, and the image.

  Raises:
    ValueError: the file is no readable image.
  """
  image = image_ops.read(path, 3, **image_ops.decoding_of(config, photos=True))
  return prepare_image(image, config), image


def prepare_image(
  image: Image.Image | np.ndarray, config: ml_collections.ConfigDict
) -> dict[str, np.ndarray]:
  """Resizes, normalises and pads an RGB image, uint8 `[height, width, 3]`, as evaluation does."""
  image = image if isinstance(image, Image.Image) else Image.fromarray(image)
  example = _eval_example(image, -1, _eval_shape(image.size[::-1], config), config)
  return {name: value[None] for name, value in example.items()}


def describe_preprocessing(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What makes an input of fixed size of an image, as JSON can hold it; see docs/export.md."""
  long_side, short_side = _eval_box(config)
  return {
    'mode': 'RGB',
    'decoding': image_ops.decoding_of(config, photos=True),
    'resize': {
      # That the image does not exceed.
      'size': list(config.image_size),
      'long_side': long_side,
      'short_side': short_side,
      'keep_proportions': True,
      'multiple': config.size_multiple,
      'interpolation': 'bilinear',
      'library': 'Pillow',
    },
    # At the bottom and on the right, after normalisation.
    'pad_to': list(config.image_size),
    'pad_with': 0,
    **levels.describe(config),
  }


def _eval_box(config: ml_collections.ConfigDict) -> tuple[int, int]:
  """(long side, short side) into which evaluation brings images."""
  options, canvas = config.evaluation, config.image_size
  return (
    max(canvas) if options.long_side is None else options.long_side,
    min(canvas) if options.short_side is None else options.short_side,
  )


def _eval_size(size: Sequence[int], config: ml_collections.ConfigDict) -> tuple[int, int]:
  """(height, width) at which evaluation shows an image."""
  return resizing.fit(size, _eval_box(config), multiple=config.size_multiple)


def _canvas(size: Sequence[int], config: ml_collections.ConfigDict) -> tuple[int, int]:
  """(height, width) of the arrays that hold images of the orientation of (height, width)."""
  height, width = config.image_size
  return (width, height) if size[0] > size[1] else (height, width)


def _eval_shape(size: Sequence[int], config: ml_collections.ConfigDict) -> tuple[int, int]:
  """(height, width) of the array that holds an image in evaluation."""
  step = config.evaluation.bucket_step
  if step is None:
    return _canvas(size, config)
  return tuple(-(-side // step) * step for side in _eval_size(size, config))


def _eval_example(
  image: Image.Image, index: int, shape: Sequence[int], config: ml_collections.ConfigDict
) -> dict[str, np.ndarray]:
  size = image.size[::-1]
  view = augmentation.whole(size, _eval_size(size, config))
  return {
    'image': levels.pad(levels.normalize(view.image(image), config), shape),
    'image_size': np.array(view.size, np.int32),
    'original_size': np.array(size, np.int32),
    'index': np.int32(index),
  }


class Examples(pipeline.Examples):
  """The images of a split with their objects.

  Rows of training batches, whose images are all wider than high, `(height, width)` being
  `image_size`, or all higher than wide, `(height, width)` being its transpose:
    `image`: float32 `[height, width, 3]`, normalised, 0 below and to the right of the image.
    `image_size`: (height, width) of the image in it, int32 `[2]`.
    `original_size`: (height, width) of the file, upright, int32 `[2]`.
    `boxes`: float32 `[max_boxes, 4]`, corners in pixels of `image`, 0 in rows without an object.
    `labels`: int32 `[max_boxes]`, -1 in rows without an object.
    `masks`: uint8 `[max_boxes, height, width / 8]`, by `numpy.packbits`, if `config.masks`.
    `index`: number of the example in the split, int32.
  Rows of evaluation batches are the same without objects, which are `source.annotations(index)`;
  `index` is -1 where there is no image.

  Attributes:
    side_multiple: of sides of arrays of images: strides of pyramids, and bytes of masks.
  """

  kind = 'image'
  side_multiple = 32
  open_source = staticmethod(sources.open_source)

  def __init__(self, config: ml_collections.ConfigDict, split: str):
    super().__init__(config, split)
    self._decoding = image_ops.decoding_of(config, config.name in sources.FOLDERS)
    # Sources look at headers.
    decoding.allow(self._decoding['max_pixels'])

  @classmethod
  def check(cls, config: ml_collections.ConfigDict) -> None:
    """Refuses wrong values, naming the key."""
    require, multiple = pipeline.requirement(config), cls.side_multiple
    image_ops.check_options(config)
    levels.check_options(config)
    canvas, options, evaluation = config.image_size, config.augmentation, config.evaluation
    require(
      len(canvas) == 2
      and 0 < canvas[0] <= canvas[1]
      and not any(side % multiple for side in canvas),
      'image_size',
      f'(height, width) of images wider than high, multiples of {multiple} pixels',
    )
    require(config.size_multiple >= 1, 'size_multiple', 'at least 1 pixel')
    require(config.max_boxes >= 1, 'max_boxes', 'at least 1')

    def is_range(key: str, ends: Sequence[int], most: float = math.inf, expected: str = '') -> None:
      known = len(ends) == 2 and 0 < ends[0] <= ends[1] <= most
      require(known, key, f'(least, most) in pixels{expected}')

    def is_held(key: str, side: int, most: int) -> None:
      require(0 < side < most + config.size_multiple, key, f'a number of pixels{held}')

    held = f' that dataset.image_size={tuple(canvas)} holds'
    is_range('augmentation.short_side', augmentation.shortest(options, canvas), canvas[0], held)
    is_held('augmentation.long_side', augmentation.longest(options, canvas), canvas[1])
    require(options.short_step >= 1, 'augmentation.short_step', 'at least 1 pixel')
    require(0 <= options.flip <= 1, 'augmentation.flip', 'a probability')
    require(0 <= options.crop.probability <= 1, 'augmentation.crop.probability', 'a probability')
    is_range('augmentation.crop.short_side', options.crop.short_side)
    is_range('augmentation.crop.sides', options.crop.sides)
    require(options.crop.short_step >= 1, 'augmentation.crop.short_step', 'at least 1 pixel')
    step, (long_side, short_side) = evaluation.bucket_step, _eval_box(config)
    require(
      step is None or (step > 0 and step % multiple == 0),
      'evaluation.bucket_step',
      f'a multiple of {multiple} pixels, or None',
    )
    if step is None:
      is_held('evaluation.short_side', short_side, canvas[0])
      is_held('evaluation.long_side', long_side, canvas[1])

  @functools.cached_property
  def _sizes(self) -> list[tuple[int, int]]:
    """(height, width) of every image."""
    return [self.source.image_size(index) for index in range(len(self.source))]

  @functools.cached_property
  def _groups(self) -> list[np.ndarray]:
    """Indices of the examples that are learnt from, those whose batches have one shape together."""
    indices = np.arange(len(self.source))
    if self.config.get('skip_empty'):
      indices = np.flatnonzero(self.source.num_objects)
      if not len(indices):
        raise ValueError(
          f'no image of {self._described()} has an object: add annotations, or set '
          'dataset.train_split and dataset.eval_split to splits that have some'
        )
    if not any(self.source.annotations(index).learnable.any() for index in indices):
      raise ValueError(
        f'no object of {self._described()} can be learnt from: they are crowds, or less than a '
        'pixel wide or high; boxes are in pixels of their images, not in shares of them'
      )
    height, width = self.config.image_size
    if height == width:
      return [indices]
    sizes = np.asarray(self._sizes)[indices]
    upright = sizes[:, 0] > sizes[:, 1]
    return [group for group in (indices[~upright], indices[upright]) if len(group)]

  @property
  def epoch_length(self) -> int:
    """Images that are learnt from."""
    return sum(map(len, self._groups))

  def indices(self, seed: int, batch_size: int) -> grain.MapDataset:
    """The endless stream of indices, of one orientation within each batch."""
    streams = [
      self.shuffled(len(group), seed ^ number).map(group.__getitem__).repeat()
      for number, group in enumerate(self._groups)
    ]
    return grouping.alternate(streams, [len(group) for group in self._groups], batch_size)

  def buckets(self) -> list[tuple[int, int]]:
    """Shapes that hold each image."""
    return [_eval_shape(size, self.config) for size in self._sizes]

  def decode(self, index: int) -> tuple[Image.Image, annotations.Objects]:
    """The image and its objects.

    Raises:
      UnreadableError: the image cannot be decoded.
      ValueError: the objects are not those of an image of its size.
    """
    example = self.source[index]
    image = image_ops.decode(example['image'], 3, **self._decoding)
    objects = self.objects(index)
    annotations.check_size(objects, image.size[::-1], example['key'])
    return image, objects

  def objects(self, index: int) -> annotations.Objects:
    """What an image shows of what is learnt."""
    return self.source.annotations(index)

  def train_example(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws a view of an image and of its objects."""
    (image, objects), found, skipped = self.next_readable(index)
    numbers = {'index': np.int32(found), 'skipped': np.int32(skipped)}
    return self.view(index, image, objects, rng) | numbers

  def view(
    self, index: int, image: Image.Image, objects: annotations.Objects, rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    """Draws a view for the batch of an index of an image and of its objects."""
    size, config = image.size[::-1], self.config
    height, width = config.image_size
    # Of the batch, whichever image is shown.
    canvas = config.image_size if height == width else _canvas(self._sizes[index], config)
    view = augmentation.draw(rng, size, canvas, config.augmentation, config.size_multiple)
    boxes = view.boxes(objects.boxes)
    chosen = np.flatnonzero(objects.learnable & (boxes[:, 2:] - boxes[:, :2] >= 1).all(1))
    if len(chosen) > config.max_boxes:
      common.say_once(
        f'images of {self._described()} have more than dataset.max_boxes={config.max_boxes} '
        f'objects: each time, {config.max_boxes} of them are drawn at random'
      )
      chosen = np.sort(rng.choice(chosen, config.max_boxes, replace=False))
    row = {
      'image': levels.pad(levels.normalize(view.image(image), config), canvas),
      'image_size': np.array(view.size, np.int32),
      'original_size': np.array(size, np.int32),
      'boxes': np.zeros((config.max_boxes, 4), np.float32),
      'labels': np.full(config.max_boxes, -1, np.int32),
    }
    row['boxes'][: len(chosen)] = boxes[chosen]
    row['labels'][: len(chosen)] = objects.labels[chosen]
    if config.get('masks'):
      row['masks'] = _packed_masks(objects, chosen, view, (config.max_boxes, *canvas))
    return row

  def eval_example(
    self,
    decoded: tuple[Image.Image, annotations.Objects] | None,
    index: int,
    bucket: tuple[int, int],
  ) -> dict[str, np.ndarray]:
    """Resizes, normalises and pads an image."""
    if decoded is not None:
      return _eval_example(decoded[0], index, bucket, self.config)
    # One pixel: a size that every operation on sizes can take.
    one = np.ones(2, np.int32)
    image = np.zeros((*bucket, 3), np.float32)
    return {'image': image, 'image_size': one, 'original_size': one, 'index': np.int32(-1)}


def _packed_masks(
  objects: annotations.Objects,
  chosen: Sequence[int],
  view: augmentation.View,
  shape: tuple[int, int, int],
) -> np.ndarray:
  """Masks of chosen objects in a view, eight pixels a byte: uint8 `[count, height, width / 8]`."""
  count, height, width = shape
  packed = np.zeros((count, height, width // 8), np.uint8)
  for row, place in zip(packed, chosen, strict=False):
    encoded = annotations.run_lengths(objects.segmentations[place], objects.size)
    rows = np.packbits(view.mask(coco_mask.decode(encoded)), axis=-1)
    row[: rows.shape[0], : rows.shape[1]] = rows
  return packed
