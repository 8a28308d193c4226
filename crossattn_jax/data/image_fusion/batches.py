"""The input pipeline of image fusion: pairs of luma images, crops and batches."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

from etils import epath
import ml_collections
import numpy as np

from crossattn_jax.data import decoding, image_ops, pairing, pipeline
from crossattn_jax.data.image_fusion import colors, sources

# What models pad images to.
_STRIDE = 4


def default_config() -> ml_collections.ConfigDict:
  """Returns `config.dataset`: MSRS as ATFuse is trained on it."""
  config = ml_collections.ConfigDict()
  # 'pair_folder', a folder of one's own; 'msrs', 'llvip', 'roadscene', 'tno' or 'm3fd', as they are
  # released; or 'shape_scenes', which is made.
  config.name = 'msrs'
  # Folder of the data set, or of TFDS datasets (TFDS's own default if None).
  config.data_dir = ml_collections.config_dict.placeholder(str)
  # Pairs that are trained on: a folder of the data set, or a file in `data_dir` that lists names.
  config.train_split = 'train'
  # Pairs that are evaluated, likewise.
  config.eval_split = 'test'
  # (height, width) of the training crops, at the same place of both images.
  config.image_size = (128, 128)
  # How often an epoch has a crop of each pair.
  config.crops_per_pair = 20
  pipeline.add_options(config)
  image_ops.add_options(config)

  config.evaluation = ml_collections.ConfigDict()
  # Images are padded to multiples of this size: the more, the fewer programs are compiled. Results
  # are those of the images alone. A multiple of 4.
  config.evaluation.bucket_step = 64
  return config


@dataclasses.dataclass(frozen=True)
class Pair:
  """A pair of images as files have it.

  Attributes:
    visible: uint8 RGB `[height, width, 3]`.
    infrared: likewise.
  """

  visible: np.ndarray
  infrared: np.ndarray


def read_pair(
  visible: str | os.PathLike[str],
  infrared: str | os.PathLike[str],
  config: ml_collections.ConfigDict,
) -> Pair:
  """Reads two image files.

  Raises:
    ValueError: one is no readable image, or they differ in size; the message names both.
  """
  paths = {'visible': visible, 'infrared': infrared}
  example = {kind: epath.Path(path).read_bytes() for kind, path in paths.items()}
  keys = {f'{kind}_key': os.fspath(path) for kind, path in paths.items()}
  try:
    return _decode({**example, **keys}, image_ops.decoding_of(config, photos=True))
  except pipeline.UnreadableError as error:
    raise ValueError(f'cannot fuse: {error}') from error


def prepare_pair(pair: Pair, config: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
  """A batch of one, as evaluation has it but for the mask."""
  height, width = pair.visible.shape[:2]
  bucket = _rounded((height, width), config)
  return {
    'visible': _padded(colors.luma(pair.visible), bucket)[None],
    'infrared': _padded(colors.luma(pair.infrared), bucket)[None],
    'size': np.array([(height, width)], np.int32),
  }


def _rounded(size: Sequence[int], config: ml_collections.ConfigDict) -> tuple[int, int]:
  step = config.evaluation.bucket_step
  return tuple(-(-side // step) * step for side in size)


def _padded(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
  """Levels as the network takes them, float32 `[*size, 1]`."""
  margins = [(0, length - side) for length, side in zip(size, image.shape, strict=True)]
  return np.pad(image.astype(np.float32), margins)[..., None]


def _decode(
  example: Mapping[str, Any], decoding: Mapping[str, Any], channels: int | None = 3
) -> Pair:
  """Decodes both images; see `pairing.decode`."""
  return Pair(*pairing.decode(example, ('visible', 'infrared'), decoding, channels))


def describe_preprocessing(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What makes inputs of a pair of images, as JSON can hold it; see docs/export.md."""
  return {
    'mode': 'RGB',
    'decoding': image_ops.decoding_of(config, photos=True),
    'luma': {'weights': [4899, 9617, 1868], 'add': 8192, 'shift': 14},
    'padding': 'zeros below and to the right',
    'layout': 'HWC',
    'dtype': 'float32',
  }


class Examples(pipeline.Examples):
  """The pairs of a split.

  Rows of training batches are `visible` and `infrared`: luma in 0..255, float32 `[*image_size, 1]`.
  Evaluation sees whole images, padded so that few different shapes occur; its batches hold one
  shape each, 0 below and to the right of the images, whose (height, width) is `size`, int32 `[2]`.
  """

  kind = 'pair'

  def __init__(self, config: ml_collections.ConfigDict, split: str):
    super().__init__(config, split)
    self._decoding = image_ops.decoding_of(config, photos=False)

  @staticmethod
  def check(config: ml_collections.ConfigDict) -> None:
    """Refuses wrong values, naming the key."""
    require = pipeline.requirement(config)
    size = config.image_size
    image_ops.check_options(config)
    require(len(size) == 2 and min(size) > 0, 'image_size', '(height, width) in pixels')
    require(config.crops_per_pair >= 1, 'crops_per_pair', 'at least 1')
    step = config.evaluation.bucket_step
    require(
      step >= 1 and step % _STRIDE == 0,
      'evaluation.bucket_step',
      f'a positive multiple of {_STRIDE}',
    )

  @staticmethod
  def open_source(config: ml_collections.ConfigDict, split: str) -> sources.Source:
    """Opens a split."""
    return sources.create_source(config.name, split, config.data_dir)

  def describe(self, index: int) -> str:
    """The reason names the images."""
    return self.kind

  @property
  def epoch_length(self) -> int:
    """Crops in an epoch."""
    return len(self.source) * self.config.crops_per_pair

  def buckets(self) -> list[tuple[int, int]]:
    """Padded sizes of the pairs."""
    decoding.allow(self._decoding['max_pixels'])
    where = self.config.name, self.split, self.config.data_dir
    sizes = pipeline.image_sizes(sources.create_source, *where, self._decoding['upright'])
    return [_rounded(size, self.config) for size in sizes]

  def decode(self, index: int) -> Pair:
    """Both images; those of grey files `[height, width, 1]`."""
    return _decode(self.source[index], self._decoding, channels=None)

  def train_example(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Cuts out the same place of both images."""
    index %= len(self.source)
    pair, _, skipped = self.next_readable(index)
    size, crop = pair.visible.shape[:2], tuple(self.config.image_size)
    room = [side - part for side, part in zip(size, crop, strict=True)]
    if min(room) < 0:
      key = self.source[index]['visible_key']
      raise ValueError(
        f'{key!r} has {size[0]} x {size[1]} pixels, less than the crops: set '
        f'dataset.image_size, now {crop}'
      )
    top, left = (int(rng.integers(side + 1)) for side in room)
    place = slice(top, top + crop[0]), slice(left, left + crop[1])
    return {
      'visible': _padded(colors.luma(pair.visible[place]), crop),
      'infrared': _padded(colors.luma(pair.infrared[place]), crop),
      'skipped': np.int32(skipped),
    }

  def eval_example(
    self, decoded: Pair | None, index: int, bucket: tuple[int, int]
  ) -> dict[str, np.ndarray]:
    """Pads both images."""
    # One pixel: a size that every operation on sizes can take.
    pair = decoded or Pair(*(np.zeros((1, 1, 3), np.uint8),) * 2)
    visible, infrared = colors.luma(pair.visible), colors.luma(pair.infrared)
    return {
      'visible': _padded(visible, bucket),
      'infrared': _padded(infrared, bucket),
      'size': np.array(visible.shape, np.int32),
    }
