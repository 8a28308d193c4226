"""The input pipeline of semantic segmentation: augmentation and batches."""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

from crossattn_jax.data import decoding, image_ops, levels, pipeline, resizing
from crossattn_jax.data.segmentation import (
  augmentation,
  label_maps,
  photometric,
  sources,
  taxonomies,
)

IGNORE_LABEL = taxonomies.IGNORE_LABEL

TRAIN_SIZES = ('scales', 'ratio')
EVAL_SIZES = ('native', 'fit')
_CROP_TRIALS = 10


def default_config() -> ml_collections.ConfigDict:
  """Returns `config.dataset`: Cityscapes with the augmentation of CCNet's recipe, but for colours.

  CCNet itself has `channels = 'bgr'` and another mean.
  """
  config = ml_collections.ConfigDict()
  # 'segmentation_folder', a folder of one's own; 'cityscapes_folder' or 'ade20k_folder', as they
  # are released; 'cityscapes' or 'scene_parse150' of TFDS; or 'shape_scenes', which is made.
  config.name = 'cityscapes'
  # Folder of TFDS datasets (TFDS's own default if None), or that of the images.
  config.data_dir = ml_collections.config_dict.placeholder(str)
  # Images that are trained on. None: as the data set calls them.
  config.train_split = ml_collections.config_dict.FieldReference('train')
  # Images that are evaluated. None: as the data set calls them; a tenth is held out of a folder
  # without.
  config.eval_split = ml_collections.config_dict.FieldReference('validation')
  # Names of the classes. They are the data set's, filled in at the start, so that a run keeps them.
  # Files of a data set are mapped to them by name.
  config.class_names = ()
  # The colour (red, green, blue) of each class in pictures, likewise.
  config.palette = ()
  # The value of each class in label maps, likewise.
  config.class_values = ()
  # (height, width) of the training crops.
  config.image_size = (769, 769)
  levels.add_options(config)
  pipeline.add_options(config)
  image_ops.add_options(config)

  config.augmentation = ml_collections.ConfigDict()
  # How images are resized: 'scales' (CCNet), by one of `scales`; or 'ratio' (mmsegmentation), until
  # they fit into `base_size` times a number drawn from `ratio`.
  config.augmentation.resize = 'scales'
  # Of 'scales': factors of the image's size, equally likely.
  config.augmentation.scales = tuple((7 + i) / 10 for i in range(15))
  # Of 'ratio': (long side, short side). None: (4 s, s) for crops whose shorter side is s.
  config.augmentation.base_size = (2048, 512)
  # Of 'ratio': (least, most), drawn uniformly.
  config.augmentation.ratio = (0.5, 2.0)
  # Of 'ratio': crops of which one class covers more are drawn again, up to ten times; 1 takes all.
  config.augmentation.max_class_share = 1.0
  # Probability of a mirror image.
  config.augmentation.flip = 0.5
  # Of 'ratio': whether brightness, contrast, saturation and hue change at random.
  config.augmentation.photometric = False

  config.evaluation = ml_collections.ConfigDict()
  # 'native' leaves images as they are; 'fit' brings them into `base_size`. Labels always keep their
  # size.
  config.evaluation.resize = 'native'
  # Of 'fit': as that of `augmentation`.
  config.evaluation.base_size = (2048, 512)
  # Of 'fit': each side then becomes the next multiple of it.
  config.evaluation.stretch_to = 1
  # Images are padded to multiples of this size with the mean colour, label maps with 255: the more,
  # the fewer programs are compiled. 1 pads nothing.
  config.evaluation.bucket_step = 1
  # The same of the label maps where images are resized, which costs little.
  config.evaluation.label_step = 512
  return config


def read_image(
  path: str | os.PathLike[str], config: ml_collections.ConfigDict
) -> tuple[dict[str, np.ndarray], Image.Image]:
  """Reads an image file as evaluation would.

  Returns:
    A batch of one, as evaluation has it but for the mask, whose label map has the file's size
    and no classes, and the image.

  Raises:
    ValueError: the file is no readable image.
  """
  image = image_ops.read(path, 3, **image_ops.decoding_of(config, photos=True))
  return prepare_image(np.asarray(image), config), image


def prepare_image(image: np.ndarray, config: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
  """Resizes, normalises and pads an image, uint8 `[height, width, 3]`, as evaluation does."""
  size = image.shape[:2]
  bucket = _bucket(size, config)
  pixels = levels.normalize(_fitted(image, config), config)
  return {
    'image': levels.pad(pixels, bucket.image)[None],
    'image_size': np.array([pixels.shape[:2]], np.int32),
    'label': np.full((1, *bucket.label), IGNORE_LABEL, np.int32),
    'label_size': np.array([size], np.int32),
  }


def describe_preprocessing(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What makes an input of fixed size of an image, as JSON can hold it; see docs/export.md."""
  return {
    'mode': 'RGB',
    'decoding': image_ops.decoding_of(config, photos=True),
    'resize': {
      'size': list(config.image_size),
      'keep_proportions': False,
      'interpolation': 'bilinear',
      'library': 'Pillow',
    },
    **levels.describe(config),
  }


@dataclasses.dataclass(frozen=True)
class _Bucket:
  """Shape of the arrays that hold an image and its label map."""

  image: tuple[int, int]
  label: tuple[int, int]


def _bucket(size: Sequence[int], config: ml_collections.ConfigDict) -> _Bucket:
  options = config.evaluation
  image_step = label_step = options.bucket_step
  if options.resize != 'native':
    label_step = options.label_step

  def rounded(size: Sequence[int], step: int) -> tuple[int, int]:
    return tuple(-(-side // step) * step for side in size)

  fitted = _fitted_size(size, config)[-1]
  return _Bucket(rounded(fitted, image_step), rounded(size, label_step))


def _fitted_size(size: Sequence[int], config: ml_collections.ConfigDict) -> list[tuple[int, int]]:
  """Sizes that evaluation resizes an image to, one after the other."""
  options = config.evaluation
  if options.resize == 'native':
    return [tuple(size)]
  size = resizing.fit(size, _base_size(options.base_size, config))
  step = options.stretch_to
  return [size, tuple(-(-side // step) * step for side in size)]


def _base_size(given: tuple[int, int] | None, config: ml_collections.ConfigDict) -> tuple[int, int]:
  side = min(config.image_size)
  return (4 * side, side) if given is None else given


def _fitted(image: np.ndarray, config: ml_collections.ConfigDict) -> np.ndarray:
  for size in _fitted_size(image.shape[:2], config):
    if size != image.shape[:2]:
      image = augmentation.resize(image, size)
  return image


class Examples(pipeline.Examples):
  """The images of a split with their label maps.

  Rows of training batches are `image`, float32 `[*image_size, 3]`, normalised, and `label`, int32
  `[*image_size]`. Evaluation sees whole images, padded so that few different shapes occur; its
  batches hold one shape each, and their rows are
    `image`: float32 `[height, width, 3]`, normalised, 0 below and to the right of the image.
    `image_size`: (height, width) of the image, int32 `[2]`.
    `label`: int32 `[rows, columns]`, 255 where there is no class and beyond the label map.
    `label_size`: (height, width) of the label map, int32 `[2]`.
  """

  kind = 'image'

  def __init__(self, config: ml_collections.ConfigDict, split: str):
    super().__init__(config, split)
    options = config.augmentation
    photos = config.name == taxonomies.SEGMENTATION_FOLDER
    self._decoding = image_ops.decoding_of(config, photos)
    self._taxonomy = sources.find_taxonomy(config)
    self._crop = tuple(config.image_size)
    # Of the pixels beyond the image, in RGB: 0 after normalisation.
    self._padding = levels.reordered(np.asarray(config.mean, np.float32), config)
    self._by_ratio = options.resize == 'ratio'
    self._scales = tuple(options.scales)

  @staticmethod
  def check(config: ml_collections.ConfigDict) -> None:
    """Refuses wrong values, naming the key."""
    require = pipeline.requirement(config)

    def is_choice(key: str, choices: Sequence[str], value: str) -> None:
      require(value in choices, key, f'one of {", ".join(map(repr, choices))}')

    def is_size(key: str, value: Sequence[int], expected: str) -> None:
      require(len(value) == 2 and min(value) > 0, key, expected)

    image_ops.check_options(config)
    levels.check_options(config)
    options, evaluation = config.augmentation, config.evaluation
    is_size('image_size', config.image_size, '(height, width) in pixels')
    is_choice('augmentation.resize', TRAIN_SIZES, options.resize)
    require(
      len(options.scales) > 0 and min(options.scales) > 0, 'augmentation.scales', 'positive factors'
    )
    if options.base_size is not None:
      is_size('augmentation.base_size', options.base_size, '(long side, short side) in pixels')
    require(
      len(options.ratio) == 2 and 0 < options.ratio[0] <= options.ratio[1],
      'augmentation.ratio',
      'positive factors (low, high)',
    )
    require(
      0 < options.max_class_share <= 1,
      'augmentation.max_class_share',
      'a share of a crop in (0, 1]',
    )
    require(0 <= options.flip <= 1, 'augmentation.flip', 'a probability')
    require(
      not options.photometric or options.resize == 'ratio',
      'augmentation.photometric',
      "False, or augmentation.resize 'ratio'",
    )
    is_choice('evaluation.resize', EVAL_SIZES, evaluation.resize)
    if evaluation.base_size is not None:
      is_size('evaluation.base_size', evaluation.base_size, '(long side, short side) in pixels')
    require(evaluation.stretch_to >= 1, 'evaluation.stretch_to', 'at least 1 pixel')
    require(evaluation.bucket_step >= 1, 'evaluation.bucket_step', 'at least 1 pixel')
    require(evaluation.label_step >= 1, 'evaluation.label_step', 'at least 1 pixel')

  @staticmethod
  def open_source(config: ml_collections.ConfigDict, split: str) -> sources.Source:
    """Opens a split."""
    return sources.create_source(config.name, split, config.data_dir)

  def buckets(self) -> list[_Bucket]:
    """Shapes that hold each example."""
    decoding.allow(self._decoding['max_pixels'])
    where = self.config.name, self.split, self.config.data_dir
    sizes = pipeline.image_sizes(sources.create_source, *where, self._decoding['upright'])
    return [_bucket(size, self.config) for size in sizes]

  def decode(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """The image and the classes of its pixels.

    Raises:
      UnreadableError: one of both cannot be decoded, or they differ in size.
      ValueError: the label map holds what is no class.
    """
    example = self.source[index]
    image = np.asarray(image_ops.decode(example['image'], 3, **self._decoding))
    name = f'label map {example["label_key"]!r}'
    try:
      label = self._taxonomy.to_classes(label_maps.decode(example['label'], self._taxonomy.holds))
    except pipeline.UnreadableError as error:
      raise pipeline.UnreadableError(f'{name}: {error}') from error
    except ValueError as error:
      raise ValueError(f'{name} of {self._described()} {error}; {self._advice}') from error
    if label.shape != image.shape[:2]:
      turned = '; dataset.decoding.upright says whether images are turned as their EXIF data says'
      raise pipeline.UnreadableError(
        f'{name} has {label.shape[0]} x {label.shape[1]} pixels, the image '
        f'{image.shape[0]} x {image.shape[1]}{turned if label.shape == image.shape[1::-1] else ""}'
      )
    return image, label

  @property
  def _advice(self) -> str:
    if self.config.name == taxonomies.SEGMENTATION_FOLDER:
      return (
        'give each value a row in classes.csv: VALUE,NAME, or VALUE, without a name where its '
        'pixels are not to count; leave out the column of values where masks hold colours'
      )
    return (
      f'correct it, or read masks of your own by dataset.name={taxonomies.SEGMENTATION_FOLDER!r} '
      'and a classes.csv that says what values mean'
    )

  def train_example(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Scales, crops, mirrors and normalises an image and its label map."""
    (image, label), _, skipped = self.next_readable(index)
    if self._by_ratio:
      pixels, label = self._ratio_crop(image, label, rng)
    else:
      flip = self.config.augmentation.flip
      choice = augmentation.draw(rng, label.shape, self._crop, self._scales, flip)
      pixels, label = augmentation.apply(
        image, label, choice, self._crop, padding=self._padding, ignore_label=IGNORE_LABEL
      )
      pixels = levels.normalize(pixels, self.config)
    return {'image': pixels, 'label': label.astype(np.int32), 'skipped': np.int32(skipped)}

  def _ratio_crop(
    self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray]:
    """As mmsegmentation: what lies beyond the image is padded last, at the bottom and the right."""
    options = self.config.augmentation
    ratio = rng.uniform(*options.ratio)
    base_size = _base_size(options.base_size, self.config)
    size = resizing.fit(label.shape, [int(side * ratio) for side in base_size])
    shown = tuple(map(min, size, self._crop))
    for trial in range(_CROP_TRIALS + 1):
      top, left = (
        int(rng.integers(length - part + 1)) for length, part in zip(size, shown, strict=True)
      )
      choice = augmentation.Draw(1.0, top, left, False, size)
      if options.max_class_share == 1 or trial == _CROP_TRIALS:
        break
      counts = np.bincount(augmentation.crop_label(label, choice, shown).ravel(), minlength=256)
      counts = np.delete(counts, IGNORE_LABEL)
      if (counts > 0).sum() > 1 and counts.max() < options.max_class_share * counts.sum():
        break
    mirrored = bool(rng.random() < options.flip)
    choice = dataclasses.replace(choice, mirrored=mirrored)
    pixels, label = augmentation.apply(image, label, choice, shown)
    if options.photometric:
      pixels = photometric.distort(pixels.astype(np.uint8), rng)
    pixels = levels.pad(levels.normalize(pixels, self.config), self._crop)
    return pixels, levels.pad(label, self._crop, IGNORE_LABEL)

  def eval_example(
    self, decoded: tuple[np.ndarray, np.ndarray] | None, index: int, bucket: _Bucket
  ) -> dict[str, np.ndarray]:
    """Resizes, normalises and pads an image; pads its label map."""
    if decoded is None:
      # One pixel: a size that every operation on sizes can take.
      image, label = np.zeros((1, 1, 3), np.float32), np.full((1, 1), IGNORE_LABEL)
    else:
      image, label = decoded
      image = levels.normalize(_fitted(image, self.config), self.config)
    return {
      'image': levels.pad(image, bucket.image),
      'image_size': np.array(image.shape[:2], np.int32),
      'label': levels.pad(label.astype(np.int32), bucket.label, IGNORE_LABEL),
      'label_size': np.array(label.shape, np.int32),
    }
