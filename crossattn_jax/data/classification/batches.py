"""The input pipeline of image classification: sources, augmentation and batches, by Grain.

The stream of training examples is a function of the seed alone. Global batch k holds positions
k * batch_size ... (k + 1) * batch_size of it, whatever the number of processes, workers and
threads; process p of P gets the p-th of P equal contiguous runs of its rows. An example's
augmentation depends on (seed, position) only.
"""

import dataclasses
import math
import os
from typing import Any

import grain
import ml_collections
import numpy as np
from PIL import Image

from crossattn_jax.data import image_ops, pipeline, sources
from crossattn_jax.data.classification import augmentation, rand_augment

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Up to this size the recipe neither crops nor resizes for evaluation, and trains on padded crops.
SMALL_IMAGE = 32
# With repeated augmentation an epoch is a multiple of this many samples.
_REPEATED_EPOCH_MULTIPLE = 256


def default_config() -> ml_collections.ConfigDict:
  """Returns `config.dataset`: ImageNet with the augmentation of the CrossViT/DeiT recipe."""
  config = ml_collections.ConfigDict()
  # 'digits', 'image_folder' or a TFDS dataset that has been prepared.
  config.name = 'imagenet2012'
  # Folder of TFDS datasets (TFDS's own default if None), or the image folder.
  config.data_dir = ml_collections.config_dict.placeholder(str)
  config.train_split = 'train'
  config.eval_split = 'validation'
  # (height, width) of the images in a batch.
  config.image_size = (240, 240)
  # Per channel, of values in [0, 1]. One value each makes grey images, three make RGB.
  config.mean = IMAGENET_MEAN
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

  config.augmentation = ml_collections.ConfigDict()
  # 'random_resized', 'padded', 'none', or 'auto': padded for images of at most 32 pixels.
  config.augmentation.crop = 'auto'
  config.augmentation.scale = (0.08, 1.0)
  config.augmentation.ratio = (3 / 4, 4 / 3)
  config.augmentation.padding = 4
  # Probability of a horizontal flip.
  config.augmentation.flip = 0.5
  config.augmentation.rand_augment = ml_collections.ConfigDict(
    # num_ops = 0 switches it off.
    {'num_ops': 2, 'magnitude': 9.0, 'magnitude_std': 0.5, 'probability': 0.5}
  )
  # Strength for brightness, contrast and saturation; used only without RandAugment, as in DeiT.
  config.augmentation.color_jitter = 0.4
  config.augmentation.random_erasing = ml_collections.ConfigDict(
    {'probability': 0.25, 'area': (0.02, 1 / 3), 'min_aspect': 0.3}
  )
  return config


def train_dataset(
  config: ml_collections.ConfigDict,
  *,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.IterDataset:
  """Returns the endless training batches of one process.

  Args:
    config: see `default_config`.
    batch_size: global, over all processes.
    seed: of order and augmentation.
    process_index: whose rows.
    process_count: number of processes, which divides `batch_size`.

  Returns:
    Batches of numpy arrays, b = batch_size / process_count: `image` float32
    `[b, height, width, channels]`, normalised; `label` int32 `[b]`; `skipped` int32 `[b]`, the
    number of unreadable images that this row stands in for. The iterator's `get_state` and
    `set_state` resume bit-exactly, for the same batch size and numbers of processes and workers.

  Raises:
    ValueError: a wrong value in the config, or a dataset that cannot be opened.
  """
  rows = pipeline.rows_per_process(batch_size, process_index, process_count)
  return pipeline.iterate(train_examples(config, seed), config, rows, process_index, process_count)


def train_examples(config: ml_collections.ConfigDict, seed: int) -> grain.MapDataset:
  """Returns the endless stream of augmented examples that `train_dataset` batches.

  Element i is computed when it is asked for, alone: `train_examples(config, seed)[i]`.

  Raises:
    ValueError: a wrong value in the config, or a dataset that cannot be opened.
  """
  _check(config)
  source = sources.create_source(config.name, config.train_split, config.data_dir)
  order_seed, augmentation_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
  examples = grain.MapDataset.range(len(source))
  if config.shuffle:
    examples = examples.shuffle(order_seed)
  if config.repeated_augmentation > 1:
    examples = _RepeatedAugmentation(
      examples, config.repeated_augmentation, _epoch_length(config, len(source))
    )
  return examples.repeat().random_map(_TrainExample(source, config), seed=augmentation_seed)


def eval_dataset(
  config: ml_collections.ConfigDict,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.IterDataset:
  """Returns one pass over the evaluation split for one process, in the order of the split.

  Every process gets ceil(N / batch_size) batches. Rows beyond the last example are black images of
  class 0 whose mask is False, so that a masked mean counts every example exactly once.

  Args:
    config: see `default_config`.
    batch_size: global, over all processes.
    process_index: whose rows.
    process_count: number of processes, which divides `batch_size`.

  Returns:
    Batches as those of `train_dataset`, and `mask`: bool `[b]`, False for padding and for
    unreadable images (`skipped` is 1 for the latter).

  Raises:
    ValueError: a wrong value in the config, or a dataset that cannot be opened.
  """
  _check(config)
  rows = pipeline.rows_per_process(batch_size, process_index, process_count)
  source = _eval_source(config)
  num_batches = math.ceil(len(source) / batch_size)
  examples = grain.MapDataset.range(num_batches * batch_size).map(_EvalExample(source, config))
  return pipeline.iterate(examples, config, rows, process_index, process_count)


def steps_per_epoch(config: ml_collections.ConfigDict, batch_size: int) -> int:
  """Number of whole global batches in an epoch of the training split, at least 1."""
  _check(config)
  source = sources.create_source(config.name, config.train_split, config.data_dir)
  return max(1, _epoch_length(config, len(source)) // batch_size)


def read_image(
  path: str | os.PathLike[str], config: ml_collections.ConfigDict
) -> tuple[np.ndarray, Image.Image]:
  """Reads an image file as evaluation would.

  Returns:
    The normalised float32 `[height, width, channels]` and the crop that it was made of, to draw on.

  Raises:
    ValueError: the file is no readable image.
  """
  with open(path, 'rb') as file:
    data = file.read()
  try:
    image = image_ops.decode(data, len(config.mean))
  except image_ops.UnreadableImageError as error:
    raise ValueError(f'cannot read image {os.fspath(path)!r}: {error}') from error
  image = _evaluation_image(image, config)
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


@dataclasses.dataclass
class _TrainExample:
  """Reads, augments and normalises one training example."""

  source: sources.Source
  config: ml_collections.ConfigDict

  def __post_init__(self):
    # Reading a ConfigDict costs more than a small image: plain values are read once.
    config, options = self.config, self.config.augmentation
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
    self._cache: dict[int, tuple[Image.Image, int, int]] | None = {} if config.cache else None

  def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    if self._cache is None:
      image, label, skipped = self._read(index)
    else:
      if index not in self._cache:
        self._cache[index] = self._read(index)
      image, label, skipped = self._cache[index]
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
    return {'image': pixels, 'label': np.int32(label), 'skipped': np.int32(skipped)}

  def _read(self, index: int) -> tuple[Image.Image, int, int]:
    """Returns the image at an index, or else the next readable one, and how many were not."""
    config = self.config
    described = f'images of {config.name!r}, split {config.train_split!r},'
    image, example, skipped = pipeline.next_readable(
      self.source, index, lambda x: _decode(x, config, config.train_split), described
    )
    return image, example['label'], skipped

  def _cropped(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
    if self._crop == 'random_resized':
      box = augmentation.random_resized_crop(*image.size, rng, self._scale, self._ratio)
      # Cropped first: `Image.resize(box=...)` would let pixels beyond the crop bleed in.
      return image_ops.resize(image.crop(box), self._size, self._interpolation)
    image = image_ops.resize(image, self._size, self._interpolation)
    if self._crop == 'padded':
      image = augmentation.random_padded_crop(image, rng, self._padding)
    return image


@dataclasses.dataclass
class _EvalExample:
  """Reads and normalises one evaluation example; indices beyond the last are padding."""

  source: sources.Source
  config: ml_collections.ConfigDict

  def __call__(self, index: int) -> dict[str, np.ndarray]:
    config = self.config
    label, image = 0, None
    if index < len(self.source):
      example = self.source[index]
      label = example['label']
      image = _decode(example, config, config.eval_split)
    if image is None:
      pixels = np.zeros((*config.image_size, len(config.mean)), np.float32)
    else:
      pixels = image_ops.normalize(_evaluation_image(image, config), config.mean, config.std)
    return {
      'image': pixels,
      'label': np.int32(label),
      'mask': np.bool_(image is not None),
      'skipped': np.int32(image is None and index < len(self.source)),
    }


def _decode(
  example: sources.Example, config: ml_collections.ConfigDict, split: str
) -> Image.Image | None:
  """Decodes an example's image; None if it cannot be read and `config.unreadable` is 'skip'."""
  try:
    return image_ops.decode(example['image'], len(config.mean))
  except image_ops.UnreadableImageError as error:
    message = (
      f'unreadable image {example["key"]!r} of dataset {config.name!r}, split {split!r}: {error}'
    )
    pipeline.refuse_or_skip(message, error, config)
    return None


def _evaluation_image(image: Image.Image, config: ml_collections.ConfigDict) -> Image.Image:
  size = tuple(config.image_size)
  if max(size) <= SMALL_IMAGE:
    return image_ops.resize(image, size, config.interpolation)
  return image_ops.evaluation_crop(image, size, config.crop_fraction, config.interpolation)


def _eval_source(config: ml_collections.ConfigDict) -> sources.Source:
  class_names = None
  if config.name == sources.IMAGE_FOLDER and config.data_dir is not None:
    # Folders are numbered by name: without the training classes a missing one would shift labels.
    class_names = sources.class_folders(config.data_dir, config.train_split)
  return sources.create_source(
    config.name, config.eval_split, config.data_dir, class_names=class_names
  )


def _epoch_length(config: ml_collections.ConfigDict, num_examples: int) -> int:
  if config.repeated_augmentation == 1:
    return num_examples
  length = num_examples // _REPEATED_EPOCH_MULTIPLE * _REPEATED_EPOCH_MULTIPLE
  if not length:
    raise ValueError(
      f'dataset.repeated_augmentation needs at least {_REPEATED_EPOCH_MULTIPLE} examples, '
      f'{config.name!r} has {num_examples}; set it to 1'
    )
  return length


def _check(config: ml_collections.ConfigDict) -> None:
  """Refuses wrong values, naming the key."""
  options = config.augmentation

  pipeline.check_options(config)
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
    is_probability(erasing.probability), 'augmentation.random_erasing.probability', 'a probability'
  )
  require(
    is_range(erasing.area) and erasing.area[1] <= 1,
    'augmentation.random_erasing.area',
    'shares of the area (low, high) in (0, 1]',
  )
  require(0 < erasing.min_aspect <= 1, 'augmentation.random_erasing.min_aspect', 'in (0, 1]')
