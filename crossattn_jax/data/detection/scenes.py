"""Procedural scenes as a detection data set: boxes and masks of the visible part of each shape."""

from collections.abc import Sequence
import functools
import io
import os
from typing import Any

from hotcoco import mask as coco_mask
import numpy as np
from PIL import Image

from crossattn_jax.data import sources
from crossattn_jax.data.detection import annotations
from crossattn_jax.data.scenes import dataset

# Of a scene: its map of instances has one byte per pixel.
_MOST_OBJECTS = 255


class SceneSource:
  """A split of `shape_scenes`, images left encoded; written on first use.

  Attributes:
    class_names: the shapes.
    category_ids: their numbers in results.
    image_ids: the scenes' numbers in results.
    num_objects: of each scene.
    masks_missing: nothing.
  """

  masks_missing = None

  def __init__(
    self,
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] = (),
  ):
    """Opens a split, and writes the data set before if need be.

    Raises:
      ValueError: there is no such data set, or classes are given that are not its own.
    """
    dataset.prepare(name, data_dir)
    self._where = f'{name}/{split}'
    features, self._examples = sources.open_tfds(name, split, data_dir)
    self.class_names = tuple(features['objects']['label'].names[1:])  # Behind the ground.
    if class_names and tuple(class_names) != self.class_names:
      raise ValueError(
        f'the classes of {name!r} are {sources.shown(self.class_names)}, got '
        f'dataset.class_names={tuple(class_names)}; leave dataset.class_names=()'
      )
    self.category_ids = tuple(range(1, len(self.class_names) + 1))
    self._size = features['image'].shape[:2]
    self.image_ids = tuple(range(len(self._examples)))

  @functools.cached_property
  def num_objects(self) -> np.ndarray:
    """See `sources.Source`; all scenes are read."""
    return np.array([len(example['objects']['label']) for example in self._examples])

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> dict[str, Any]:
    example = self._examples[index]
    key = f'{self._where}[{index}] ({example["id"].decode()})'
    return {'image': example['image'], 'key': key}

  def image_size(self, index: int) -> tuple[int, int]:
    """(height, width) of an image, without decoding it."""
    del index
    return self._size

  def annotations(self, index: int) -> annotations.Objects:
    """The objects of a scene, nearest first."""
    example = self._examples[index]
    labels = np.asarray(example['objects']['label'], np.int32) - 1  # 0 is the ground.
    instances = np.asarray(Image.open(io.BytesIO(example['instances'])))
    # Boxes are stored as top, left, bottom, right in shares of the size.
    boxes = np.asarray(example['objects']['bbox'], np.float64) * np.tile(self._size, 2)
    masks = instances[..., None] == 1 + np.arange(len(labels))
    return annotations.Objects(
      size=self._size,
      boxes=np.rint(boxes)[:, [1, 0, 3, 2]],
      labels=labels,
      crowd=np.zeros(len(labels), bool),
      area=masks.sum((0, 1), dtype=np.float64),
      ids=1 + index * _MOST_OBJECTS + np.arange(len(labels)),
      segmentations=coco_mask.encode(masks),
    )
