"""Sources of detection examples: random access to encoded images and their objects by index."""

from collections.abc import Sequence
import os
from typing import Protocol, TypedDict

import ml_collections

from crossattn_jax.data import sources
from crossattn_jax.data.detection import annotations, scenes


class Example(TypedDict):
  """One example: an encoded image and its name for messages."""

  image: bytes
  key: str


# Names of the splits for training and for evaluation.
_SPLITS = {'shape_scenes': ('train', 'validation')}


class Source(Protocol):
  """Random access to the examples of one split; safe to read from threads, picklable.

  Attributes:
    class_names: through which labels count.
    category_ids: number of each class in results.
    image_ids: number of each image in results.
  """

  class_names: Sequence[str]
  category_ids: Sequence[int]
  image_ids: Sequence[int]

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...

  def annotations(self, index: int) -> annotations.Objects:
    """The objects of an image."""

  def image_size(self, index: int, upright: bool = False) -> tuple[int, int]:
    """(height, width) of an image, without decoding it; (1, 1) where that fails."""


def create_source(name: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> Source:
  """Opens one split of a data set.

  Args:
    name: `'shape_scenes'` (written on first use), with its configuration if wanted.
    split: a split of it, or a split expression (`'train[:90%]'`).
    data_dir: folder of TFDS datasets (TFDS's own default if None).

  Raises:
    ValueError: there is no such data set or split, or it is empty.
  """
  if sources.bare_name(name) == 'shape_scenes':
    return scenes.SceneSource(name, split, data_dir)
  raise sources.unknown_dataset(name, _SPLITS, 'detection')


def complete_splits(config: ml_collections.ConfigDict) -> list[str]:
  """Sets the splits that `config.dataset` leaves open; see `splits.complete`."""
  names = _SPLITS.get(sources.bare_name(config.name))
  if names is None:
    raise sources.unknown_dataset(config.name, _SPLITS, 'detection')
  for key, name in zip(('train_split', 'eval_split'), names, strict=True):
    if config[key] is None:
      config[key] = name
  return []
