"""The input pipeline of image classification: augmentation and batches."""

import os
from typing import Any

import grain
import ml_collections
import numpy as np
from PIL import Image

from crossattn_jax.data import image_ops, pipeline
from crossattn_jax.data.classification import augmentation, rand_augment, sources

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Up to this size the recipe neither crops nor resizes for evaluation, and trains on padded crops.
SMALL_IMAGE = 32
# With repeated augmentation an epoch is a multiple of this many samples.
_REPEATED_EPOCH_MULTIPLE = 256


def default_config() -> ml_collections.ConfigDict:
  """Returns `config.dataset`: ImageNet with the augmentation of the CrossViT/DeiT recipe."""
  config = ml_collections.ConfigDict()
  # 'digits', 'image_folder', 'image_table' or a TFDS dataset that has been prepared.
  config.name = 'imagenet2012'
  # Folder of TFDS datasets (TFDS's own default if None), or the image folder.
  config.data_dir = ml_collections.config_dict.placeholder(str)
  # Images that are trained on. None: as the data set calls them.
  config.train_split = ml_collections.config_dict.FieldReference('train')
  # Images that are evaluated. None: as the data set calls them; a tenth is held out of a folder
  # without.
  config.eval_split = ml_collections.config_dict.FieldReference('validation')
  # Names of the classes in the order of the labels: those of the data set, filled in at the start,
  # so that a run keeps them. A folder is mapped to them by name.
  config.class_names = ()
  # Whether images have any number of classes, of an 'image_table'. None: as the table says.
  config.multi_label = ml_collections.config_dict.placeholder(bool)
  # (height, width) of the images in a batch.
  config.image_size = (240, 240)
  # Subtracted from values in [0, 1], per channel. One value makes grey images, three make RGB.
  config.mean = IMAGENET_MEAN
  # What the rest is divided by, as many values.
  config.std = IMAGENET_STD
  # Evaluation resizes to image_size / crop_fraction and cuts out the centre; 1 cuts only what is
  # not square. Images of at most 32 pixels are resized to image_size without a crop.
  config.crop_fraction = 224 / 256
  # Of every resize and of RandAugment: 'bilinear', 'bicubic' or 'lanczos'.
  config.interpolation = 'bicubic'
  # Copies of an image, differently augmented, that follow one another; an epoch then is
  # floor(N / 256) * 256 samples. 1 switches it off.
  config.repeated_augmentation = 1
  pipeline.add_options(config)
  image_ops.add_options(config)

  config.augmentation = ml_collections.ConfigDict()
  # 'random_resized', 'padded', 'none', or 'auto': padded for images of at most 32 pixels.
  config.augmentation.crop = 'auto'
  # Of 'random_resized': (least, most) share of the image's area.
  config.augmentation.scale = (0.08, 1.0)
  # Of 'random_resized': (least, most) width by height.
  config.augmentation.ratio = (3 / 4, 4 / 3)
  # Of 'padded': pixels of black around the image, which is then cut out anew.
  config.augmentation.padding = 4
  # Probability of a horizontal flip.
  config.augmentation.flip = 0.5
  # RandAugment: `num_ops` operations (0 switches it off), each with the probability, of a magnitude
  # up to 10 with the standard deviation.
  config.augmentation.rand_augment = ml_collections.ConfigDict(
    {'num_ops': 2, 'magnitude': 9.0, 'magnitude_std': 0.5, 'probability': 0.5}
  )
  # Strength for brightness, contrast and saturation; used only without RandAugment, as in DeiT.
  config.augmentation.color_jitter = 0.4
  # Random erasing: the probability that a rectangle becomes noise, the (least, most) share of the
  # image that it covers, and the least height by width; the most is its inverse.
  config.augmentation.random_erasing = ml_collections.ConfigDict(
    {'probability': 0.25, 'area': (0.02, 1 / 3), 'min_aspect': 0.3}
  )
  return config


def read_image(
  path: str | os.PathLike[str], config: ml_collections.ConfigDict
) -> tuple[np.ndarray, Image.Image]:
  """Reads an image file as evaluation would.

  Returns:
    The normalised float32 `[height, width, channels]` and the crop that it was made of, to draw on.

  Raises:
    ValueError: the file is no readable image.
  """
  options = image_ops.decoding_of(config, photos=True)
  image = _evaluation_image(image_ops.read(path, len(config.mean), **options), config)
  return image_ops.normalize(image, config.mean, config.std), image


def describe_preprocessing(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What `read_image` does, as JSON can hold it, for programs without this library.

  Returns:
    The steps in their order; docs/export.md documents each key.
  """
  size = tuple(config.image_size)
  small = max(size) <= SMALL_IMAGE
  cover = size if small else image_ops.cover_size(size, config.crop_fraction)
  return {
    'mode': 'RGB' if len(config.mean) == 3 else 'L',
    'decoding': image_ops.decoding_of(config, photos=True),
    'resize': {
      'size': list(cover),
      'keep_proportions': not small,
      'interpolation': config.interpolation,
      'library': 'Pillow',
    },
    'crop': {'size': list(size), 'position': 'center'},
    'divide_by': 255,
    'mean': list(config.mean),
    'std': list(config.std),
    'layout': 'HWC',
    'dtype': 'float32',
  }


def denormalize(image: np.ndarray, config: ml_collections.ConfigDict) -> np.ndarray:
  """Turns images of a batch into uint8 `[..., height, width, channels]` to look at."""
  return image_ops.denormalize(image, config.mean, config.std)


class Examples(pipeline.Examples):
  """The images of a split.

  Rows of batches are `image`, float32 `[height, width, channels]`, normalised, and `label`, int32,
  or float32 `[classes]` of 0 and 1 where images have any number of classes. Without repeated
  augmentation an epoch has every image once. Padding is black, of class 0, or none.
  """

  kind = 'image'

  def __init__(self, config: ml_collections.ConfigDict, split: str):
    super().__init__(config, split)
    # Reading a ConfigDict costs more than a small image: plain values are read once.
    options = config.augmentation
    photos = config.name in (sources.IMAGE_FOLDER, sources.IMAGE_TABLE)
    self._decoding = image_ops.decoding_of(config, photos)
    self._no_label = np.zeros((), np.int32)
    if config.multi_label:
      self._no_label = np.zeros(len(self.source.class_names), np.float32)
    self._size = tuple(config.image_size)
    self._mean, self._std = tuple(config.mean), tuple(config.std)
    self._interpolation = config.interpolation
    self._crop = options.crop
    if self._crop == 'auto':
      self._crop = 'padded' if max(self._size) <= SMALL_IMAGE else 'random_resized'
    self._scale, self._ratio = tuple(options.scale), tuple(options.ratio)
    self._padding, self._flip = options.padding, options.flip
    self._rand_augment = {
      **options.rand_augment,
      'fill': tuple(min(255, round(255 * value)) for value in self._mean),
      'resample': image_ops.INTERPOLATIONS[self._interpolation],
    }
    self._color_jitter = options.color_jitter
    self._random_erasing = dict(options.random_erasing)

  @staticmethod
  def check(config: ml_collections.ConfigDict) -> None:
    """Refuses wrong values, naming the key."""
    image_ops.check_options(config)
    options = config.augmentation
    require = pipeline.requirement(config)

    def is_probability(value: float) -> bool:
      return 0 <= value <= 1

    def is_range(value: tuple[float, ...]) -> bool:
      return len(value) == 2 and 0 < value[0] <= value[1]

    size = config.image_size
    require(len(size) == 2 and min(size) > 0, 'image_size', '(height, width) in pixels')
    require(len(config.mean) in (1, 3), 'mean', '3 values (RGB) or 1 (grey)')
    require(
      len(config.std) == len(config.mean) and min(config.std) > 0,
      'std',
      f'{len(config.mean)} positive values, as dataset.mean',
    )
    require(0 < config.crop_fraction <= 1, 'crop_fraction', 'in (0, 1]')
    filters = ', '.join(map(repr, image_ops.INTERPOLATIONS))
    require(config.interpolation in image_ops.INTERPOLATIONS, 'interpolation', f'one of {filters}')
    require(config.repeated_augmentation >= 1, 'repeated_augmentation', 'at least 1 copy')
    crops = ('auto', 'random_resized', 'padded', 'none')
    require(options.crop in crops, 'augmentation.crop', f'one of {", ".join(map(repr, crops))}')
    require(
      is_range(options.scale) and options.scale[1] <= 1,
      'augmentation.scale',
      'shares of the area (low, high) in (0, 1]',
    )
    require(is_range(options.ratio), 'augmentation.ratio', 'width / height (low, high)')
    require(options.padding >= 0, 'augmentation.padding', 'at least 0 pixels')
    require(is_probability(options.flip), 'augmentation.flip', 'a probability')
    random = options.rand_augment
    require(random.num_ops >= 0, 'augmentation.rand_augment.num_ops', 'at least 0')
    require(
      0 <= random.magnitude <= rand_augment.MAX_MAGNITUDE,
      'augmentation.rand_augment.magnitude',
      f'in [0, {rand_augment.MAX_MAGNITUDE:g}]',
    )
    require(random.magnitude_std >= 0, 'augmentation.rand_augment.magnitude_std', 'at least 0')
    require(
      is_probability(random.probability), 'augmentation.rand_augment.probability', 'a probability'
    )
    require(options.color_jitter >= 0, 'augmentation.color_jitter', 'at least 0')
    erasing = options.random_erasing
    require(
      is_probability(erasing.probability),
      'augmentation.random_erasing.probability',
      'a probability',
    )
    require(
      is_range(erasing.area) and erasing.area[1] <= 1,
      'augmentation.random_erasing.area',
      'shares of the area (low, high) in (0, 1]',
    )
    require(0 < erasing.min_aspect <= 1, 'augmentation.random_erasing.min_aspect', 'in (0, 1]')

  @staticmethod
  def open_source(config: ml_collections.ConfigDict, split: str) -> sources.Source:
    """Opens a split, whose labels count through the config's classes, or the training split's."""
    multi_label = bool(config.multi_label)
    names = config.class_names or None
    # Classes are numbered by name: without those of the training split a missing one would shift.
    if names is None and config.name == sources.IMAGE_FOLDER and config.data_dir is not None:
      names = sources.class_folders(config.data_dir, config.train_split)
    if names is None and config.name == sources.IMAGE_TABLE and split != config.train_split:
      names = Examples.open_source(config, config.train_split).class_names
    return sources.create_source(
      config.name, split, config.data_dir, class_names=names, multi_label=multi_label
    )

  @property
  def epoch_length(self) -> int:
    """Images in an epoch, copies included."""
    count = len(self.source)
    if self.config.repeated_augmentation == 1:
      return count
    length = count // _REPEATED_EPOCH_MULTIPLE * _REPEATED_EPOCH_MULTIPLE
    if not length:
      raise ValueError(
        f'dataset.repeated_augmentation needs at least {_REPEATED_EPOCH_MULTIPLE} examples, '
        f'{self.config.name!r} has {count}; set it to 1'
      )
    return length

  def epoch(self, seed: int) -> grain.MapDataset:
    """The indices of an epoch; copies follow one another."""
    images, copies = self.shuffled(len(self.source), seed), self.config.repeated_augmentation
    return images if copies == 1 else _RepeatedAugmentation(images, copies, self.epoch_length)

  def decode(self, index: int) -> tuple[Image.Image, np.ndarray]:
    """The image and its class, or classes."""
    example = self.source[index]
    image = image_ops.decode(example['image'], len(self._mean), **self._decoding)
    return image, np.asarray(example['label'], self._no_label.dtype)

  def train_example(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Augments and normalises an image."""
    (image, label), _, skipped = self.next_readable(index)
    image = self._cropped(image, rng)
    if self._flip:
      image = augmentation.random_flip(image, rng, self._flip)
    if self._rand_augment['num_ops']:
      image = rand_augment.rand_augment(image, rng, **self._rand_augment)
    elif self._color_jitter:
      image = augmentation.color_jitter(image, rng, self._color_jitter)
    pixels = image_ops.normalize(image, self._mean, self._std)
    if self._random_erasing['probability']:
      pixels = augmentation.random_erasing(pixels, rng, **self._random_erasing)
    return {'image': pixels, 'label': label, 'skipped': np.int32(skipped)}

  def _cropped(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
    if self._crop == 'random_resized':
      box = augmentation.random_resized_crop(*image.size, rng, self._scale, self._ratio)
      # Cropped first: `Image.resize(box=...)` would let pixels beyond the crop bleed in.
      return image_ops.resize(image.crop(box), self._size, self._interpolation)
    image = image_ops.resize(image, self._size, self._interpolation)
    if self._crop == 'padded':
      image = augmentation.random_padded_crop(image, rng, self._padding)
    return image

  def eval_example(
    self, decoded: tuple[Image.Image, np.ndarray] | None, index: int, bucket: None
  ) -> dict[str, np.ndarray]:
    """Cuts out the centre of an image and normalises it."""
    if decoded is None:
      pixels, label = np.zeros((*self._size, len(self._mean)), np.float32), self._no_label
    else:
      image, label = decoded
      image = _evaluation_image(image, self.config)
      pixels = image_ops.normalize(image, self._mean, self._std)
    return {'image': pixels, 'label': label}


class _RepeatedAugmentation(grain.MapDataset):
  """Lets every example follow itself: position p of an epoch is the parent's p // copies.

  An epoch ends after `length` positions; the parent's remaining examples are left out of it.
  """

  def __init__(self, parent: grain.MapDataset, copies: int, length: int):
    super().__init__(parent)
    self._source = parent
    self._copies = copies
    self._length = length

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    epoch, position = divmod(index, self._length)
    return self._source[epoch * len(self._source) + position // self._copies]


def _evaluation_image(image: Image.Image, config: ml_collections.ConfigDict) -> Image.Image:
  size = tuple(config.image_size)
  if max(size) <= SMALL_IMAGE:
    return image_ops.resize(image, size, config.interpolation)
  return image_ops.evaluation_crop(image, size, config.crop_fraction, config.interpolation)
