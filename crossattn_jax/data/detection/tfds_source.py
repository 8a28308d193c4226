"""Detection data sets of TFDS, such as `coco/2017` and `voc/2007`: images and boxes, no masks."""

from collections.abc import Mapping, Sequence
import functools
import io
import os
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from crossattn_jax.data import image_ops, sources
from crossattn_jax.data.detection import annotations, classes

# COCO numbers its 80 classes up to 90.
_COCO_NUMBERS = tuple(sorted({*range(1, 91)} - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}))
# What marks objects that are neither to be found nor to be missed: of COCO, and of Pascal VOC.
_CROWD = ('is_crowd', 'is_difficult')


class TfdsSource:
  """A split of a TFDS dataset prepared as ArrayRecord: a `sources.Source`, images left encoded.

  Its objects are the one sequence that has boxes and labels. Difficult objects of Pascal VOC count
  as crowds: they are not learnt from, and nobody needs to find them.

  Attributes:
    class_names: names of the classes in the order of the labels.
    category_ids: of each class, in result files: COCO's own numbers, or else from 1 on.
    masks_missing: why there are no masks, for messages.
  """

  def __init__(
    self,
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] = (),
    other_classes: str = 'error',
  ):
    self._where = f'{name}/{split}'
    self.masks_missing = f'TFDS has the boxes of {name!r} alone'
    features, self._examples = sources.open_tfds(name, split, data_dir)
    self._objects = _objects_feature(name, features)
    self._size = features['image'].shape[:2]
    self._has_id, self._has_name = 'image/id' in features, 'image/filename' in features
    own = features[self._objects].feature['label'].names
    is_coco = sources.bare_name(name) == 'coco' and len(own) == len(_COCO_NUMBERS)
    numbers = dict(zip(own, _COCO_NUMBERS if is_coco else range(1, 1 + len(own)), strict=True))
    mapped = classes.by_name(numbers, own, class_names, f'dataset {name!r}', other_classes)
    self.class_names, self.category_ids = mapped.names, mapped.numbers
    self._labels = mapped.labels

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> dict[str, Any]:
    example, key = self._examples[index], f'{self._where}[{index}]'
    if self._has_name:
      key += f' ({example["image/filename"].decode()})'
    return {'image': example['image'], 'key': key}

  @property
  def image_ids(self) -> tuple[int, ...]:
    """See `sources.Source`."""
    return self._table[0] if self._has_id else tuple(range(1, 1 + len(self)))

  @property
  def num_objects(self) -> np.ndarray:
    """See `sources.Source`."""
    return self._table[1]

  def image_size(self, index: int) -> tuple[int, int]:
    """See `sources.Source`."""
    return self._size if None not in self._size else self._table[2][index]

  @functools.cached_property
  def _table(self) -> tuple[tuple[int, ...], np.ndarray, Sequence[tuple[int, int]]]:
    """Number, objects and size of each image. All examples are read, with their images: once."""
    ids, labels, sizes = [], [], []
    for example in self._examples:
      ids.append(int(example.get('image/id', 0)))
      labels.append(self._labels[np.asarray(example[self._objects]['label'], np.int64)])
      sizes.append(self._size_of(example))
    classes.say_left_out(np.concatenate([*labels, []]), self._where)
    return tuple(ids), np.array([np.sum(each >= 0) for each in labels]), sizes

  def _size_of(self, example: Mapping[str, Any]) -> tuple[int, int]:
    if None not in self._size:
      return self._size
    return image_ops.size_in_header(io.BytesIO(example['image']))

  def annotations(self, index: int) -> annotations.Objects:
    """See `sources.Source`."""
    example = self._examples[index]
    objects, size = example[self._objects], self._size_of(example)
    labels = self._labels[np.asarray(objects['label'], np.int64)]
    kept = labels >= 0
    # Stored as top, left, bottom, right in shares of the size.
    boxes = np.asarray(objects['bbox'], np.float64).reshape(-1, 4) * np.tile(size, 2)
    boxes = boxes[:, [1, 0, 3, 2]]
    marks = [np.asarray(objects[name], bool) for name in _CROWD if name in objects]
    area = objects.get('area', np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    return annotations.Objects(
      size=size,
      boxes=boxes[kept],
      labels=labels[kept],
      crowd=np.any([np.zeros(len(labels), bool), *marks], axis=0)[kept],
      area=np.asarray(area, np.float64)[kept],
      ids=np.asarray(objects.get('id', 1 + np.arange(len(labels))), np.int64)[kept],
    )


def _objects_feature(name: str, features: tfds.features.FeaturesDict) -> str:
  """Name of the sequence that has boxes and labels."""
  kinds = {'bbox': tfds.features.BBoxFeature, 'label': tfds.features.ClassLabel}
  for key, feature in features.items():
    inner = getattr(feature, 'feature', None)
    if not isinstance(inner, tfds.features.FeaturesDict) or 'image' not in features:
      continue
    if all(name in inner and isinstance(inner[name], kind) for name, kind in kinds.items()):
      return key
  raise ValueError(
    f"dataset {name!r} is not for detection: expected 'image' and a sequence of 'bbox' and 'label',"
    f' found {", ".join(features)}'
  )
