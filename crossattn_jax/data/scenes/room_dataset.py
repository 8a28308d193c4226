"""Procedural rooms as a TFDS dataset, which is written on first use: nothing is downloaded."""

from collections.abc import Iterator
import dataclasses
import os

import numpy as np
import tensorflow_datasets as tfds

from crossattn_jax.data import sources, writing
from crossattn_jax.data.scenes import rooms

_SEED = 2024


@dataclasses.dataclass
class RoomScenesConfig(tfds.core.BuilderConfig):
  """A set of rooms.

  Attributes:
    train_examples: rooms for training.
    validation_examples: rooms for evaluation.
    views: photographs of each.
    image_size: their height and width in pixels.
    side: see `rooms.make_room`.
    pieces: see `rooms.make_room`.
    per_area: see `rooms.scan`.
  """

  train_examples: int = 320
  validation_examples: int = 80
  views: int = 8
  image_size: tuple[int, int] = (48, 64)
  side: tuple[float, float] = (2.0, 3.2)
  pieces: tuple[int, int] = (2, 5)
  per_area: float = 400.0


class RoomScenes(tfds.core.GeneratorBasedBuilder):
  """Writes rooms as ArrayRecord; see `rooms.Scan`. Points are in millimetres."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First version.'}
  BUILDER_CONFIGS = [
    RoomScenesConfig(name='rooms', description='Rooms of 2 to 3.2 m on a side with 2 to 5 pieces.'),
    RoomScenesConfig(
      name='tiny',
      description='A few rooms of one or two pieces, for tests.',
      train_examples=8,
      validation_examples=4,
      views=3,
      image_size=(24, 32),
      side=(1.2, 1.7),
      pieces=(1, 2),
      per_area=100.0,
    ),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    size = self.builder_config.image_size

    def packed(dtype: type, *shape: int | None) -> tfds.features.Tensor:
      return tfds.features.Tensor(shape=shape, dtype=dtype, encoding='zlib')

    return tfds.core.DatasetInfo(
      builder=self,
      description='Procedural rooms: coloured points, what they belong to, and photographs.',
      features=tfds.features.FeaturesDict(
        {
          'points': packed(np.int16, None, 3),
          'colors': packed(np.uint8, None, 3),
          'labels': packed(np.int8, None),
          'supervoxels': packed(np.int16, None),
          'tags': tfds.features.Sequence(tfds.features.ClassLabel(names=list(rooms.CLASS_NAMES))),
          'views': packed(np.uint8, self.builder_config.views, *size, 3),
          'id': tfds.features.Text(),
        }
      ),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    del dl_manager
    config = self.builder_config
    return {
      'train': self._generate_examples(_SEED, config.train_examples),
      'validation': self._generate_examples(_SEED + 1, config.validation_examples),
    }

  def _generate_examples(self, seed: int, count: int) -> Iterator[tuple[str, dict[str, object]]]:
    config = self.builder_config
    for index in range(count):
      room = rooms.make_room(seed, index, config.pieces, config.side)
      scan = rooms.scan(room, seed, index, config.per_area)
      views = [
        rooms.photograph(room, seed, index, view, config.image_size) for view in range(config.views)
      ]
      key = f'room_{seed}_{index:04d}'
      yield (
        key,
        {
          'points': np.rint(scan.points * 1000).astype(np.int16),
          'colors': scan.colors,
          'labels': scan.labels.astype(np.int8),
          'supervoxels': scan.supervoxels.astype(np.int16),
          'tags': np.unique(scan.labels[scan.labels >= 0]).tolist(),
          'views': np.stack(views),
          'id': key,
        },
      )


def prepare(name: str = 'room_scenes', data_dir: str | os.PathLike[str] | None = None) -> None:
  """Writes the dataset below `data_dir` unless it is there; see `writing.write_once`.

  Args:
    name: 'room_scenes' or with a configuration: 'room_scenes/tiny'.
    data_dir: folder of TFDS datasets; TFDS's own default (`~/tensorflow_datasets`) if None.

  Raises:
    ValueError: there is no such configuration.
  """
  known = {f'room_scenes/{config.name}': config.name for config in RoomScenes.BUILDER_CONFIGS}
  wanted = name.partition(':')[0]
  if wanted == 'room_scenes':
    wanted = next(iter(known))
  if wanted not in known:
    raise sources.unknown_dataset(name, known, 'rooms')
  writing.write_once(
    RoomScenes(config=known[wanted], data_dir=data_dir, file_format='array_record')
  )
