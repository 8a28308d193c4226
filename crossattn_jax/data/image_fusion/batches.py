"""The input pipeline of image fusion: pairs of luma images, crops and batches, by Grain.

The stream of training examples is a function of the seed alone, as in `classification`. Evaluation
sees whole images, padded so that few different shapes occur; batches hold one shape each.
"""

from collections.abc import Sequence
import dataclasses
import functools
import io
import os
from typing import Any

from etils import epath
import grain
import ml_collections
import numpy as np
from PIL import Image

from crossattn_jax.data import image_ops, pipeline
from crossattn_jax.data.image_fusion import sources

# What models pad images to.
_STRIDE = 4


def default_config() -> ml_collections.ConfigDict:
  """Returns `config.dataset`: MSRS as ATFuse is trained on it."""
  config = ml_collections.ConfigDict()
  # See `image_fusion_sources.create_source`.
  config.name = 'msrs'
  # Folder of the data set, or of TFDS datasets (TFDS's own default if None).
  config.data_dir = ml_collections.config_dict.placeholder(str)
  config.train_split = 'train'
  config.eval_split = 'test'
  # (height, width) of the training crops, at the same place of both images.
  config.image_size = (128, 128)
  # How often an epoch has a crop of each pair.
  config.crops_per_pair = 20
  pipeline.add_options(config)

  config.evaluation = ml_collections.ConfigDict()
  # Images are padded to multiples of this size: the more, the fewer programs are compiled. Results
  # are those of the images alone. A multiple of 4.
  config.evaluation.bucket_step = 64
  return config


def luma(image: np.ndarray) -> np.ndarray:
  """Y of 8-bit RGB, `[..., 3]` -> `[...]`, by OpenCV's integer arithmetic; grey stays as it is."""
  red, green, blue = np.moveaxis(image.astype(np.int32), -1, 0)
  return ((4899 * red + 9617 * green + 1868 * blue + 8192) >> 14).astype(np.uint8)


def is_grey(image: np.ndarray) -> bool:
  """Whether an RGB image `[height, width, 3]` has no colour."""
  return bool((image[..., :1] == image).all())


def recolor(fused: np.ndarray, image: np.ndarray) -> np.ndarray:
  """Gives a fused luma the chrominance of an image, by the 8-bit rules of YCrCb.

  Args:
    fused: uint8 `[height, width]`.
    image: uint8 RGB `[height, width, 3]`.

  Returns:
    uint8 RGB `[height, width, 3]`.
  """
  levels, own = image.astype(np.float64), luma(image).astype(np.float64)
  red_difference = _to_bytes(0.713 * (levels[..., 0] - own) + 128).astype(np.float64) - 128
  blue_difference = _to_bytes(0.564 * (levels[..., 2] - own) + 128).astype(np.float64) - 128
  colors = [
    fused + 1.403 * red_difference,
    fused - 0.714 * red_difference - 0.344 * blue_difference,
    fused + 1.773 * blue_difference,
  ]
  return _to_bytes(np.stack(colors, axis=-1))


def _to_bytes(values: np.ndarray) -> np.ndarray:
  return np.clip(np.rint(values), 0, 255).astype(np.uint8)


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
    seed: of order and crops.
    process_index: whose rows.
    process_count: number of processes, which divides `batch_size`.

  Returns:
    Batches of numpy arrays, b = batch_size / process_count: `visible` and `infrared`, luma in
    0..255, float32 `[b, *image_size, 1]`; `skipped` int32 `[b]`, the number of unreadable pairs
    that this row stands in for.

  Raises:
    ValueError: a wrong value in the config, or a data set that cannot be opened.
  """
  rows = pipeline.rows_per_process(batch_size, process_index, process_count)
  return pipeline.iterate(train_examples(config, seed), config, rows, process_index, process_count)


def train_examples(config: ml_collections.ConfigDict, seed: int) -> grain.MapDataset:
  """Returns the endless stream of crops that `train_dataset` batches.

  Element i is computed when it is asked for, alone: `train_examples(config, seed)[i]`.

  Raises:
    ValueError: a wrong value in the config, or a data set that cannot be opened.
  """
  _check(config)
  source = sources.create_source(config.name, config.train_split, config.data_dir)
  order_seed, crop_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
  examples = grain.MapDataset.range(len(source) * config.crops_per_pair)
  if config.shuffle:
    examples = examples.shuffle(order_seed)
  return examples.repeat().random_map(_TrainExample(source, config), seed=crop_seed)


def eval_dataset(
  config: ml_collections.ConfigDict,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.IterDataset:
  """Returns one pass over the evaluation split for one process.

  Pairs of the same padded size share batches, in the order of the split; the last batch of a size
  is filled up with rows whose mask is False. Every process gets the same shapes in the same order.

  Args:
    config: see `default_config`.
    batch_size: global, over all processes.
    process_index: whose rows.
    process_count: number of processes, which divides `batch_size`.

  Returns:
    Batches of numpy arrays:
      `visible`, `infrared`: luma in 0..255, float32 `[b, height, width, 1]`, 0 below and to the
        right of the images.
      `size`: (height, width) of each pair, int32 `[b, 2]`.
      `mask`: bool `[b]`, False for padding and for unreadable pairs.
      `skipped`: int32 `[b]`, 1 for the latter.

  Raises:
    ValueError: a wrong value in the config, or a data set that cannot be opened.
  """
  _check(config)
  rows = pipeline.rows_per_process(batch_size, process_index, process_count)
  source = sources.create_source(config.name, config.eval_split, config.data_dir)
  sizes = _image_sizes(config.name, config.eval_split, config.data_dir)
  slots = pipeline.bucket_slots((_rounded(size, config) for size in sizes), batch_size)
  examples = grain.MapDataset.range(len(slots)).map(_EvalExample(source, config, slots))
  return pipeline.iterate(examples, config, rows, process_index, process_count)


def steps_per_epoch(config: ml_collections.ConfigDict, batch_size: int) -> int:
  """Number of whole global batches in an epoch of the training split, at least 1."""
  _check(config)
  source = sources.create_source(config.name, config.train_split, config.data_dir)
  return max(1, len(source) * config.crops_per_pair // batch_size)


@dataclasses.dataclass(frozen=True)
class Pair:
  """A pair of images as files have it.

  Attributes:
    visible: uint8 RGB `[height, width, 3]`.
    infrared: likewise.
  """

  visible: np.ndarray
  infrared: np.ndarray


def read_pair(visible: str | os.PathLike[str], infrared: str | os.PathLike[str]) -> Pair:
  """Reads two image files.

  Raises:
    ValueError: one is no readable image, or they differ in size; the message names both.
  """
  paths = {'visible': visible, 'infrared': infrared}
  example = {kind: epath.Path(path).read_bytes() for kind, path in paths.items()}
  keys = {f'{kind}_key': os.fspath(path) for kind, path in paths.items()}
  try:
    return _decode({**example, **keys})
  except image_ops.UnreadableImageError as error:
    raise ValueError(f'cannot fuse: {error}') from error


def prepare_pair(pair: Pair, config: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
  """A batch of one, as `eval_dataset` has it but for the mask."""
  height, width = pair.visible.shape[:2]
  bucket = _rounded((height, width), config)
  return {
    'visible': _padded(luma(pair.visible), bucket)[None],
    'infrared': _padded(luma(pair.infrared), bucket)[None],
    'size': np.array([(height, width)], np.int32),
  }


def _rounded(size: Sequence[int], config: ml_collections.ConfigDict) -> tuple[int, int]:
  step = config.evaluation.bucket_step
  return tuple(-(-side // step) * step for side in size)


def _padded(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
  """Levels as the network takes them, float32 `[*size, 1]`."""
  margins = [(0, length - side) for length, side in zip(size, image.shape, strict=True)]
  return np.pad(image.astype(np.float32), margins)[..., None]


@functools.lru_cache
def _image_sizes(name: str, split: str, data_dir: str | None) -> tuple[tuple[int, int], ...]:
  """(height, width) of the visible images of a split; read once, however often it is evaluated."""
  source = sources.create_source(name, split, data_dir)
  return tuple(_image_size(source[index]['visible']) for index in range(len(source)))


def _image_size(data: bytes) -> tuple[int, int]:
  """From the header of the image; unreadable ones, which are masked, take little room."""
  try:
    width, height = Image.open(io.BytesIO(data)).size
  except OSError:
    return 1, 1
  return height, width


def _decode(example: sources.Example) -> Pair:
  """Decodes both images.

  Raises:
    UnreadableImageError: one cannot be decoded, or they differ in size.
  """
  images = {}
  for kind in ('visible', 'infrared'):
    try:
      images[kind] = np.asarray(image_ops.decode(example[kind], 3))
    except image_ops.UnreadableImageError as error:
      raise image_ops.UnreadableImageError(f'{example[f"{kind}_key"]!r}: {error}') from error
  sizes = [image.shape[:2] for image in images.values()]
  if sizes[0] != sizes[1]:
    raise image_ops.UnreadableImageError(
      f'{example["visible_key"]!r} has {sizes[0][0]} x {sizes[0][1]} pixels, '
      f'{example["infrared_key"]!r} {sizes[1][0]} x {sizes[1][1]}; pairs must be aligned'
    )
  return Pair(**images)


def _decode_luma(
  example: sources.Example, config: ml_collections.ConfigDict, split: str
) -> tuple[np.ndarray, np.ndarray] | None:
  """Both lumas, uint8; None if decoding fails and `config.unreadable` is 'skip'."""
  try:
    pair = _decode(example)
  except image_ops.UnreadableImageError as error:
    message = f'unreadable pair of dataset {config.name!r}, split {split!r}: {error}'
    pipeline.refuse_or_skip(message, error, config)
    return None
  return luma(pair.visible), luma(pair.infrared)


@dataclasses.dataclass
class _TrainExample:
  """Reads a pair and cuts out the same place of both images."""

  source: sources.Source
  config: ml_collections.ConfigDict

  def __post_init__(self):
    self._crop = tuple(self.config.image_size)
    self._cache: dict[int, tuple[np.ndarray, np.ndarray, int]] | None = (
      {} if self.config.cache else None
    )

  def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    index %= len(self.source)
    if self._cache is None:
      visible, infrared, skipped = self._read(index)
    else:
      if index not in self._cache:
        self._cache[index] = self._read(index)
      visible, infrared, skipped = self._cache[index]
    room = [side - part for side, part in zip(visible.shape, self._crop, strict=True)]
    if min(room) < 0:
      key = self.source[index]['visible_key']
      raise ValueError(
        f'{key!r} has {visible.shape[0]} x {visible.shape[1]} pixels, less than the crops: set '
        f'dataset.image_size, now {self._crop}'
      )
    top, left = (int(rng.integers(side + 1)) for side in room)
    place = slice(top, top + self._crop[0]), slice(left, left + self._crop[1])
    return {
      'visible': _padded(visible[place], self._crop),
      'infrared': _padded(infrared[place], self._crop),
      'skipped': np.int32(skipped),
    }

  def _read(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the pair at an index, or else the next readable one, and how many were not."""
    config = self.config
    described = f'pairs of {config.name!r}, split {config.train_split!r},'
    decoded, _, skipped = pipeline.next_readable(
      self.source,
      index,
      lambda example: _decode_luma(example, config, config.train_split),
      described,
    )
    return *decoded, skipped


@dataclasses.dataclass
class _EvalExample:
  """Reads one evaluation pair; index -1 is padding."""

  source: sources.Source
  config: ml_collections.ConfigDict
  slots: list[tuple[tuple[int, int], int]]

  def __call__(self, slot: int) -> dict[str, np.ndarray]:
    bucket, index = self.slots[slot]
    decoded = None
    if index >= 0:
      decoded = _decode_luma(self.source[index], self.config, self.config.eval_split)
    # One pixel: a size that every operation on sizes can take.
    visible, infrared = decoded or (np.zeros((1, 1), np.uint8),) * 2
    return {
      'visible': _padded(visible, bucket),
      'infrared': _padded(infrared, bucket),
      'size': np.array(visible.shape, np.int32),
      'mask': np.bool_(decoded is not None),
      'skipped': np.int32(decoded is None and index >= 0),
    }


def describe_preprocessing() -> dict[str, Any]:
  """What makes inputs of a pair of images, as JSON can hold it; see docs/export.md."""
  return {
    'mode': 'RGB',
    'luma': {'weights': [4899, 9617, 1868], 'add': 8192, 'shift': 14},
    'padding': 'zeros below and to the right',
    'layout': 'HWC',
    'dtype': 'float32',
  }


def _check(config: ml_collections.ConfigDict) -> None:
  """Refuses wrong values, naming the key."""
  pipeline.check_options(config)
  require = pipeline.requirement(config)
  size = config.image_size
  require(len(size) == 2 and min(size) > 0, 'image_size', '(height, width) in pixels')
  require(config.crops_per_pair >= 1, 'crops_per_pair', 'at least 1')
  step = config.evaluation.bucket_step
  require(
    step >= 1 and step % _STRIDE == 0, 'evaluation.bucket_step', f'a positive multiple of {_STRIDE}'
  )
