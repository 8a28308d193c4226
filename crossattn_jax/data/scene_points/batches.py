"""The input pipeline of point clouds: voxels and their neighbours, photographs, labels."""

import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
import concurrent.futures
import functools
import itertools
import math
import os
from typing import NamedTuple, TypeVar

from absl import logging
import grain
import jax
import ml_collections
from ml_collections import config_dict
import numpy as np
from PIL import Image

from crossattn_jax.data import grouping, levels, pipeline
from crossattn_jax.data.scene_points import augmentation, sources, tables, targets
from crossattn_jax.geometry import points as points_lib
from crossattn_jax.geometry import supervoxels

SCENE_LABELS, SEGMENTATION = KINDS = ('scene_labels', 'point_segmentation')
MOST_BUCKETS = 4

_T = TypeVar('_T')


class Voxelized(NamedTuple):
  """The points of a scene by the cell they are in.

  Attributes:
    cells: `[n, 3]` int32.
    first: `[n]`, the first point in each cell: its colour and label are the voxel's.
    inverse: `[points]` int32, the row of every point's cell.
    transform: `[3, 3]`, from metres to cells.
  """

  cells: np.ndarray
  first: np.ndarray
  inverse: np.ndarray
  transform: np.ndarray


def default_config() -> ml_collections.ConfigDict:
  """Returns `config.dataset`: ScanNet's scenes in voxels of 5 cm, turned and scaled at random."""
  config = ml_collections.ConfigDict()
  # 'point_folder', a folder of one's own; 'scannet' or 's3dis', as they are released; or
  # 'room_scenes', which are made.
  config.name = 'scannet'
  # Folder of the data set.
  config.data_dir = config_dict.placeholder(str)
  # Scenes that are trained on. None: as the data set calls them.
  config.train_split = config_dict.placeholder(str)
  # Scenes that are evaluated. None: as the data set calls them.
  config.eval_split = config_dict.placeholder(str)
  # Names of the classes: the data set's, filled in at the start, so that a run keeps them.
  config.class_names = ()
  # What files of labels call them, such as ScanNet's test server; (): 0, 1, ...
  config.class_values = ()
  # Folder of labels that another run made of the training scenes. None: those of the data set.
  config.labels_dir = config_dict.placeholder(str)
  # An epoch has every training scene as many times.
  config.repeat = 1
  # Side of a voxel in metres.
  config.voxel_size = 0.05
  # Resolutions that the network has, each half of the one before.
  config.num_levels = 5
  # Rows of each level, in at most four sizes, the largest last: the scenes of a batch are padded to
  # one of them. `python -m crossattn_jax.data.scene_points.buckets` recommends some.
  config.buckets = ((16384, 6144, 1664, 448, 128),)
  # Rows for the supervoxels of a scene. (For scene labels alone.)
  config.max_supervoxels = 512
  # Photographs of a scene; 0 for none. (For scene labels alone.)
  config.num_views = 16
  # Their (height, width).
  config.image_size = (240, 320)
  levels.add_options(config)
  pipeline.add_options(config)

  augmentation.add_options(config)

  config.evaluation = ml_collections.ConfigDict()
  # Whether scenes are turned and scaled as in training, each time and on every machine the same.
  config.evaluation.rotate = True
  # How often each scene is looked at, for point segmentation.
  config.evaluation.votes = 1
  return config


def batch_spec(
  config: ml_collections.ConfigDict, batch_size: int, kind: str
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of a training batch of the largest scenes; see `Examples`.

  Args:
    config: `config.dataset`.
    batch_size: number of scenes.
    kind: one of `KINDS`.
  """
  bucket = config.buckets[-1]
  shapes = tables.shapes(bucket) | {'index': ((), np.int32)}
  if kind == SEGMENTATION:
    shapes |= {'labels': ((bucket[0],), np.int32), 'vote': ((), np.int32)}
  else:
    shapes |= {
      'supervoxel': ((bucket[0],), np.int32),
      'num_tokens': ((), np.int32),
      'position': ((config.max_supervoxels, 3), np.float32),
      'tags': ((len(config.class_names),), np.float32),
    }
    if config.num_views:
      shapes['images'] = ((config.num_views, *config.image_size, 3), np.float32)
  return {
    name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
    for name, (shape, dtype) in shapes.items()
  }


def eval_transform(config: ml_collections.ConfigDict, index: int, vote: int) -> np.ndarray:
  """How evaluation looks at a scene: `[3, 3]`, from metres to voxels.

  Args:
    config: `config.dataset`.
    index: of the scene.
    vote: which look it is.
  """
  transform = np.eye(3)
  if config.evaluation.rotate:
    rng = np.random.default_rng([index, vote])
    transform = augmentation.random_transform(rng, config.augmentation, flip=False)
  return transform / config.voxel_size


class Examples(pipeline.Examples):
  """The scenes of a split.

  Rows of batches, all of one bucket `(N_0, N_1, ...)`, are those of `geometry.points.tables`, and
    `index`: number of the scene in the split, int32; -1 where there is none.
  """

  kind = 'scene'
  open_source = staticmethod(sources.open_source)

  @classmethod
  def check(cls, config: ml_collections.ConfigDict) -> None:
    """Refuses wrong values, naming the key."""
    require = pipeline.requirement(config)
    levels.check_options(config)
    augmentation.check_options(config)
    require(config.voxel_size > 0, 'voxel_size', 'a positive number of metres')
    require(config.num_levels >= 2, 'num_levels', 'at least 2')
    require(config.repeat >= 1, 'repeat', 'at least 1')
    buckets = config.buckets
    require(
      1 <= len(buckets) <= MOST_BUCKETS
      and all(len(bucket) == config.num_levels and min(bucket) > 0 for bucket in buckets)
      and all(itertools.starmap(tables.fits, itertools.pairwise(buckets))),
      'buckets',
      f'one to {MOST_BUCKETS} tuples of {config.num_levels} numbers of rows (dataset.num_levels), '
      'the largest last',
    )
    require(config.evaluation.votes >= 1, 'evaluation.votes', 'at least 1')
    require(
      len(config.class_values) in (0, len(config.class_names)),
      'class_values',
      f'one integer for each of the {len(config.class_names)} of dataset.class_names, or ()',
    )

  @classmethod
  def has_labels(cls, config: ml_collections.ConfigDict, split: str) -> bool:
    """Whether points of a split have labels, as those of its first scene."""
    try:
      return cls.open_source(config, split).scene(0).labels is not None
    except pipeline.UnreadableError:  # Which the first batch tells.
      return True

  @property
  def votes(self) -> int:
    """Evaluation examples of each scene."""
    return 1

  def describe(self, index: int) -> str:
    """A scene, for messages."""
    return f'{self.kind} {self.source.keys[index]!r}'

  def decode(self, index: int) -> sources.Scene:
    """Reads a scene."""
    return self.source.scene(index)

  def scene(self, index: int) -> sources.Scene:
    """The points of a scene as they are in its file; raises ValueError if they cannot be read."""
    scene = self.read(index)
    if scene is None:
      raise ValueError(f'{self.describe(index)} cannot be read')
    return scene

  def voxels(self, index: int, vote: int = 0, scene: sources.Scene | None = None) -> Voxelized:
    """The voxels of a scene in evaluation: a function of the config and these numbers alone.

    Args:
      index: of the scene.
      vote: which look at it.
      scene: what `scene(index)` returns, where it is there already.
    """
    return self._eval_voxels(self.scene(index) if scene is None else scene, index, vote)

  def _eval_voxels(self, scene: sources.Scene, index: int, vote: int) -> Voxelized:
    return _voxelized(scene.points, eval_transform(self.config, index, vote))

  # Training.

  @property
  def epoch_length(self) -> int:
    """Scenes in an epoch, with repetitions."""
    return len(self.source) * self.config.repeat

  def indices(self, seed: int, batch_size: int) -> grain.MapDataset:
    """The endless stream of indices, of scenes of one bucket within each batch."""
    groups = [np.flatnonzero(self._train_buckets == k) for k in range(len(self.config.buckets))]
    groups = [np.tile(group, self.config.repeat) for group in groups if len(group)]
    streams = [
      self.shuffled(len(group), seed ^ number).map(group.__getitem__).repeat()
      for number, group in enumerate(groups)
    ]
    return grouping.alternate(streams, [len(group) for group in groups], batch_size)

  @functools.cached_property
  def _train_buckets(self) -> np.ndarray:
    """Number of the bucket of each scene: the smallest that holds it however it is turned."""
    count = len(self.source)
    if len(self.config.buckets) == 1:
      return np.zeros(count, int)
    rows = in_threads(self.widest_rows, range(count))
    return np.array([0 if each is None else self._bucket_of(each) for each in rows])

  def widest_rows(self, index: int) -> tuple[int, ...] | None:
    """About the most voxels that a scene has at each level in training; None if it is unreadable.

    That is with walls oblique to the grid, at the largest scale.
    """
    scene, options = self.read(index), self.config.augmentation
    if scene is None:
      return None
    transform = points_lib.rotation(np.minimum(options.rotate, math.pi / 4)) * max(options.scale)
    cells = points_lib.voxelize(scene.points, transform / self.config.voxel_size).cells
    return points_lib.Pyramid.build(cells, self.config.num_levels).rows

  def _bucket_of(self, rows: Sequence[int]) -> int:
    """Number of the smallest bucket that holds so many rows, or of the largest."""
    fitting = (k for k, bucket in enumerate(self.config.buckets) if tables.fits(rows, bucket))
    return next(fitting, len(self.config.buckets) - 1)

  def train_example(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Changes a scene at random, and cuts a column out of one that is too large."""
    scene, found, skipped = self.next_readable(index)
    options, bucket = self.config.augmentation, self.config.buckets[self._train_buckets[index]]
    points = augmentation.random_distortion(scene.points, rng, options)
    transform = augmentation.random_transform(rng, options, flip=True)
    voxels = _voxelized(points, transform / self.config.voxel_size)
    cells, first = voxels.cells + (options.shift * rng.random(3)).astype(np.int32), voxels.first
    pyramid = points_lib.Pyramid.build(cells, self.config.num_levels)
    if not tables.fits(pyramid.rows, bucket):
      center = cells[rng.integers(len(cells)), :2]
      kept = tables.within(pyramid, bucket, center)
      first, pyramid = first[kept], points_lib.Pyramid.build(cells[kept], self.config.num_levels)
    colors = augmentation.random_colors(scene.colors[first], rng, options.color)
    return {
      **tables.tables(pyramid, colors, bucket),
      **self.targets(scene, found, pyramid.cells[0], first, bucket, rng),
      'index': np.int32(found),
      'skipped': np.int32(skipped),
    }

  @abc.abstractmethod
  def targets(
    self,
    scene: sources.Scene | None,
    index: int,
    cells: np.ndarray,
    first: np.ndarray,
    bucket: Sequence[int],
    rng: np.random.Generator | None,
  ) -> dict[str, np.ndarray]:
    """What a task has besides.

    Args:
      scene: None where there is none.
      index: of the scene.
      cells: `[n, 3]` of its voxels.
      first: `[n]`, the point that each shows.
      bucket: of the batch.
      rng: None in evaluation.
    """

  # Evaluation.

  def example_of(self, index: int) -> int:
    """The scene of an evaluation example."""
    return index // self.votes

  def buckets(self) -> list[tuple[int, ...]]:
    """Of each scene and vote: votes of a scene share batches."""
    return [bucket for bucket in self._eval_buckets for _ in range(self.votes)]

  @functools.cached_property
  def _eval_buckets(self) -> list[tuple[int, ...]]:
    """Of each scene; those that are larger than all buckets share another one.

    With `MOST_BUCKETS` already, those of the largest share it too.
    """
    known = [tuple(bucket) for bucket in self.config.buckets]

    def measure(index: int) -> tuple[int, ...]:
      scene = self.read(index)
      return known[0] if scene is None else self.eval_bucket(scene, index)

    found = list(in_threads(measure, range(len(self.source))))
    larger = [index for index, bucket in enumerate(found) if bucket not in known]
    if not larger:
      return found
    *smaller, largest = known
    known = smaller if len(known) == MOST_BUCKETS else known
    shared = tuple(map(max, zip(largest, *(found[index] for index in larger), strict=True)))
    logging.warning(
      '%d of %d scenes of %s, such as %s, have more voxels than the largest of dataset.buckets, '
      '%s; they are evaluated in one of %s',
      len(larger),
      len(found),
      self._described(),
      self.describe(larger[0]),
      largest,
      shared,
    )
    return [bucket if bucket in known else shared for bucket in found]

  def eval_bucket(self, scene: sources.Scene, index: int) -> tuple[int, ...]:
    """The smallest bucket that holds all votes of a scene, or one of its own if none does."""
    cells = (self._eval_voxels(scene, index, vote).cells for vote in range(self.votes))
    rows = [points_lib.Pyramid.build(x, self.config.num_levels).rows for x in cells]
    most = tuple(map(max, zip(*rows, strict=True)))
    fitting = (tuple(bucket) for bucket in self.config.buckets if tables.fits(most, bucket))
    return next(fitting, tables.rounded_up(most))

  def eval_example(
    self, decoded: sources.Scene | None, index: int, bucket: Sequence[int]
  ) -> dict[str, np.ndarray]:
    """A scene as `voxels` has it.

    Raises:
      ValueError: the bucket does not hold it; names the scene, its rows, and what to set.
    """
    number, vote = divmod(index, self.votes)
    if decoded is None:
      nothing = np.zeros((0, 3), np.int32), np.zeros(0, int)
      row = tables.empty(bucket) | self.targets(None, -1, *nothing, bucket, None)
      return row | {'index': np.int32(-1)} | self._vote(0)
    voxels = self._eval_voxels(decoded, number, vote)
    pyramid = points_lib.Pyramid.build(voxels.cells, self.config.num_levels)
    self._require_fit(pyramid.rows, bucket, number)
    return {
      **tables.tables(pyramid, decoded.colors[voxels.first], bucket),
      **self.targets(decoded, number, voxels.cells, voxels.first, bucket, None),
      'index': np.int32(number),
      **self._vote(vote),
    }

  def _vote(self, vote: int) -> dict[str, np.ndarray]:
    del vote
    return {}

  def _require_fit(self, rows: Sequence[int], bucket: Sequence[int], index: int) -> None:
    if not tables.fits(rows, bucket):
      enough = tuple(-(-max(pair) // 64) * 64 for pair in zip(rows, bucket, strict=True))
      raise ValueError(
        f'{self.describe(index)} of {self._described()} has {tuple(rows)} voxels at the levels of '
        f'the network, more than the largest of dataset.buckets, {tuple(bucket)}; let '
        f'{enough} be the last of dataset.buckets'
      )


class SegmentationExamples(Examples):
  """The scenes of a split with a class for each voxel.

  Rows are those of `Examples`, and
    `labels`: int32 `[N_0]`, -1 where a voxel has none that counts, and in padding.
    `vote`: which look at the scene it is, int32: 0 in training.
  """

  def __init__(
    self, config: ml_collections.ConfigDict, split: str, source: sources.PointSource | None = None
  ):
    super().__init__(config, split, source)
    self._pseudo_labels = None
    if config.labels_dir and split == config.train_split:
      self._pseudo_labels = targets.PseudoLabels(
        config.labels_dir, self.source.keys, self.source.class_names
      )

  @property
  def votes(self) -> int:
    """Evaluation examples of each scene."""
    return self.config.evaluation.votes

  def decode(self, index: int) -> sources.Scene:
    """Reads a scene; where nobody labelled its points, the labels of `labels_dir` are the truth."""
    scene = super().decode(index)
    if scene.labels is None and self._pseudo_labels:
      return scene._replace(labels=self._labels_to_learn(index, scene))
    return scene

  def _labels_to_learn(self, index: int, scene: sources.Scene) -> np.ndarray | None:
    if self._pseudo_labels:
      return self._pseudo_labels(self.source.keys[index], len(scene.points))
    return scene.labels

  def _vote(self, vote: int) -> dict[str, np.ndarray]:
    return {'vote': np.int32(vote)}

  def targets(self, scene, index, cells, first, bucket, rng) -> dict[str, np.ndarray]:
    """See `Examples.targets`."""
    del cells
    labels = np.full(bucket[0], -1, np.int32)
    known = None if scene is None else scene.labels
    if rng:
      known = self._labels_to_learn(index, scene)
    if known is not None:
      labels[: len(first)] = known[first]
    elif rng:
      raise ValueError(
        f'{self.describe(index)} of {self._described()} has no labels of points to learn from; set '
        'dataset.labels_dir to labels that another run made'
      )
    return {'labels': labels} | (self._vote(0) if rng else {})


class SceneLabelExamples(Examples):
  """The scenes of a split with photographs and the set of classes that each holds.

  Rows are those of `Examples`, and, S being `max_supervoxels` and V `num_views`,
    `supervoxel`: int32 `[N_0]`, ids; -1 in padding.
    `num_tokens`: the largest id plus 1, int32; ids below it without a voxel count too.
    `position`: float32 `[S, 3]`, mean cell of each supervoxel, 0 where it has none.
    `images`: float32 `[V, height, width, 3]`, normalised, in the order in which they were taken;
      where V is not 0.
    `tags`: float32 `[classes]`, 1 for what the whole scene holds.
  """

  @classmethod
  def check(cls, config: ml_collections.ConfigDict) -> None:
    """Refuses wrong values, naming the key."""
    super().check(config)
    require = pipeline.requirement(config)
    require(config.max_supervoxels >= 1, 'max_supervoxels', 'at least 1')
    require(config.num_views >= 0, 'num_views', 'at least 0')
    require(
      len(config.image_size) == 2 and min(config.image_size) > 0, 'image_size', '(height, width)'
    )

  def decode(self, index: int) -> sources.Scene:
    """Reads a scene; grows its supervoxels if it has none, once in each process."""
    scene = super().decode(index)
    if scene.supervoxels is not None:
      return scene
    if index not in self._grown:
      self._grown[index] = supervoxels.grow(scene.points, scene.colors)
    return scene._replace(supervoxels=self._grown[index])

  @functools.cached_property
  def _grown(self) -> dict[int, np.ndarray]:
    return {}

  def targets(self, scene, index, cells, first, bucket, rng) -> dict[str, np.ndarray]:
    """See `Examples.targets`."""
    config = self.config
    ids = np.zeros(0, np.int32) if scene is None else scene.supervoxels[first]
    if ids.min(initial=0) < 0:
      raise ValueError(
        f'{self.describe(index)} of {self._described()} has a supervoxel {ids.min()}; their ids '
        'count from 0, each point is in one'
      )
    if ids.max(initial=-1) >= config.max_supervoxels:
      raise ValueError(
        f'{self.describe(index)} of {self._described()} has {ids.max() + 1} supervoxels; set '
        f'dataset.max_supervoxels={config.max_supervoxels} to at least as many'
      )
    row = targets.supervoxels(ids, cells, bucket[0], config.max_supervoxels)
    row['tags'] = np.zeros(len(self.source.class_names), np.float32)
    if scene is not None and scene.labels is None:
      row['tags'][:] = self.source.tags(index)
    elif scene is not None:
      row['tags'][:] = sources.present(scene.labels, len(row['tags']))
    if config.num_views:
      row['images'] = targets.images(() if scene is None else self._views(index, rng), config)
    return row

  def _views(self, index: int, rng: np.random.Generator | None) -> Iterator[Image.Image]:
    """The photographs of a scene that are shown."""
    count = self.source.views(index)
    if not count:
      raise ValueError(
        f'{self.describe(index)} of {self._described()} has no photographs; set '
        'dataset.num_views=0 for a model of points alone'
      )
    for number in targets.choose_frames(count, self.config.num_views, rng).tolist():
      yield self._view(index, number, count)

  def _view(self, index: int, number: int, count: int) -> Image.Image:
    """A photograph, or else the next one that can be read."""
    for place in range(count):
      try:
        return self.source.view(index, (number + place) % count)
      except pipeline.UnreadableError as error:
        if self.config.unreadable == 'error':
          raise ValueError(
            f'unreadable photograph of {self.describe(index)} of {self._described()}: {error}; '
            "repair or remove it, or set dataset.unreadable = 'skip'"
          ) from error
        logging.warning('skipped a photograph of %s: %s', self.describe(index), error)
    raise ValueError(f'none of the {count} photographs of {self.describe(index)} can be read')


def _voxelized(points: np.ndarray, transform: np.ndarray) -> Voxelized:
  return Voxelized(*points_lib.voxelize(points, transform), transform)


def in_threads(function: Callable[[int], _T], numbers: Iterable[int]) -> Iterator[_T]:
  """What a function gives for numbers, in their order, by as many threads as there are cores."""
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    yield from pool.map(function, numbers)
