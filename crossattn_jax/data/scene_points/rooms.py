"""Procedural rooms as a data set of point clouds with photographs."""

import os

import numpy as np
from PIL import Image

from crossattn_jax.data import sources
from crossattn_jax.data.scene_points import sources as point_sources
from crossattn_jax.data.scenes import room_dataset


class RoomSource:
  """A split of `room_scenes`, written on first use; see `sources.PointSource`.

  Attributes:
    class_names: what rooms hold.
    keys: names of the rooms.
  """

  def __init__(self, name: str, split: str, data_dir: str | os.PathLike[str] | None = None):
    """Opens a split, and writes the data set before if need be.

    Raises:
      ValueError: there is no such data set or split.
    """
    room_dataset.prepare(name, data_dir)
    features, self._examples = sources.open_tfds(name, split, data_dir)
    self.class_names = tuple(features['tags'].feature.names)
    self.keys = tuple(example['id'].decode() for example in self._examples)
    self._views = features['views'].shape[0]

  def __len__(self) -> int:
    return len(self.keys)

  def scene(self, index: int) -> point_sources.Scene:
    """The points of a room."""
    example = self._examples[index]
    return point_sources.Scene(
      points=example['points'].astype(np.float32) / np.float32(1000),
      colors=example['colors'],
      labels=example['labels'].astype(np.int32),
      supervoxels=example['supervoxels'].astype(np.int32),
    )

  def views(self, index: int) -> int:
    """Number of photographs of a room, which is that of all rooms."""
    del index
    return self._views

  def view(self, index: int, number: int) -> Image.Image:
    """A photograph of a room."""
    return Image.fromarray(self._examples[index]['views'][number])

  def tags(self, index: int) -> np.ndarray:
    """What is in a room: bool `[classes]`."""
    return np.isin(np.arange(len(self.class_names)), self._examples[index]['tags'])
