"""Photos with objects, of each of which one category is searched for by drawings of it."""

from collections.abc import Sequence
import dataclasses

import ml_collections
import numpy as np

from crossattn_jax import config_errors
from crossattn_jax.data import image_ops
from crossattn_jax.data import sources as common
from crossattn_jax.data.detection import annotations
from crossattn_jax.data.detection import sources as photo_sources
from crossattn_jax.data.sketch_localization import classes, drawings

# The one class of what is found.
MATCH = 'match'
QUERIES = ('one', 'all')
# Of the queries of evaluation, which are the same for everybody; the release's.
SEED = 14


class QuerySource:
  """The queries of a split: a detection `Source` of one class, what the drawings show.

  Photos in which there is nothing to ask for are left out. In training there is one query for each
  other photo, whose category is drawn anew each time among `choices`, which are seen ones. In
  evaluation there is one for each photo, or for each category of each photo, unseen ones too.

  Attributes:
    categories: what can be asked for, in the order of `dataset.class_names`.
    seen: bool `[categories]`, which of them are learnt.
    sketches: their drawings.
    photo: int64 `[queries]`, number of the photo in the split.
    image_ids: numbers of the photos in results.
    num_objects: int64 `[queries]`, objects of all categories that can be asked for.
  """

  class_names = (MATCH,)
  category_ids = (1,)
  masks_missing = 'it has boxes alone'

  def __init__(
    self,
    photos: photo_sources.Source,
    sketches: drawings.SketchSource,
    seen: Sequence[bool],
    *,
    training: bool,
    queries: str = 'one',
  ):
    """Looks at the objects of all photos.

    Args:
      photos: whose labels count through `sketches.class_names`.
      sketches: drawings of the same part.
      seen: of each category.
      training: whether unseen categories are left out.
      queries: of evaluation: for each photo 'one' category, or 'all' that it shows.

    Raises:
      ValueError: no photo shows anything to ask for.
    """
    self.categories, self.sketches = tuple(sketches.class_names), sketches
    self.seen = np.array(seen, bool)
    self._photos = photos
    asked = self.seen if training else np.ones_like(self.seen)
    shown = np.zeros((len(photos), len(asked)), bool)
    count = np.zeros(len(photos), np.int64)
    for photo in range(len(photos)):
      objects = photos.annotations(photo)
      labels = objects.labels[_countable(objects) & asked[objects.labels]]
      shown[photo, labels], count[photo] = True, len(labels)
    if not shown.any():
      raise ValueError(
        f'no photo shows any of {common.shown(np.array(self.categories)[asked].tolist())}'
      )
    self._category = None
    if queries == 'all' and not training:
      self.photo, self._category = np.nonzero(shown)
    else:
      self.photo = np.flatnonzero(count)
    self._shown, self.num_objects = shown[self.photo], count[self.photo]
    ids = photos.image_ids
    self.image_ids = tuple(ids[photo] for photo in self.photo.tolist())

  def __len__(self) -> int:
    return len(self.photo)

  def __getitem__(self, index: int) -> photo_sources.Example:
    return self._photos[int(self.photo[index])]

  def image_size(self, index: int) -> tuple[int, int]:
    """See `detection.sources.Source`."""
    return self._photos.image_size(int(self.photo[index]))

  def choices(self, index: int) -> np.ndarray:
    """The categories of which a photo shows objects, and which may be asked for here."""
    return np.flatnonzero(self._shown[index])

  def category(self, index: int) -> int:
    """What is asked for in evaluation: of one query per photo, a function of its number alone."""
    if self._category is not None:
      return int(self._category[index])
    rng = np.random.default_rng((SEED, int(self.photo[index])))
    return int(rng.choice(self.choices(index)))

  def sketch_numbers(self, index: int, count: int) -> np.ndarray:
    """Numbers of the drawings by which evaluation asks, with replacement."""
    category = self.category(index)
    rng = np.random.default_rng((SEED, int(self.photo[index]), category))
    return rng.integers(self.sketches.counts[category], size=count)

  def all_annotations(self, index: int) -> annotations.Objects:
    """The objects of all categories that may be asked for here, through which labels count."""
    objects = self._photos.annotations(int(self.photo[index]))
    return _only(objects, _countable(objects) & self._shown[index][objects.labels])

  def annotations(self, index: int) -> annotations.Objects:
    """The objects of the category that is asked for, label 0."""
    return matching(self.all_annotations(index), self.category(index))


def matching(objects: annotations.Objects, category: int) -> annotations.Objects:
  """The objects of one category, as those of the only class."""
  found = _only(objects, objects.labels == category)
  return dataclasses.replace(found, labels=np.zeros_like(found.labels))


def _countable(objects: annotations.Objects) -> np.ndarray:
  """Which objects can be found: no crowds, and no empty boxes."""
  return ~objects.crowd & (objects.boxes[:, 2:] > objects.boxes[:, :2]).all(1)


def _only(objects: annotations.Objects, kept: np.ndarray) -> annotations.Objects:
  """Some of the objects, without their masks."""
  names = ('boxes', 'labels', 'crowd', 'area', 'ids')
  return dataclasses.replace(
    objects, segmentations=None, **{name: getattr(objects, name)[kept] for name in names}
  )


def open_source(config: ml_collections.ConfigDict, split: str) -> QuerySource:
  """Opens a split of `config.dataset`: seen categories are learnt in its training split alone.

  Raises:
    ValueError: there are no such photos or drawings.
  """
  if not config.class_names:
    raise ValueError(
      'dataset.class_names is empty: name them, or let tasks.complete_config(config) find them'
    )
  training = split == config.train_split
  seen = [name not in (config.unseen_classes or ()) for name in config.class_names]
  if training and not any(seen):
    raise ValueError(
      f'dataset.unseen_classes are all of dataset.class_names={tuple(config.class_names)}; '
      'leave some to learn'
    )
  part = drawings.TRAINING if training else config.sketches.eval_split
  sketches = drawings.open_source(config.sketches, part, config.class_names)
  photos = _open_photos(config, split, config.class_names)
  return QuerySource(photos, sketches, seen, training=training, queries=config.evaluation.queries)


def _open_photos(
  config: ml_collections.ConfigDict, split: str, class_names: Sequence[str]
) -> photo_sources.Source:
  return photo_sources.create_source(
    config.name,
    split,
    config.data_dir,
    class_names=class_names,
    image_dir=config.image_dir,
    other_classes='skip',
    upright=image_ops.decoding_of(config, config.name in photo_sources.FOLDERS)['upright'],
  )


def complete(config: ml_collections.ConfigDict) -> list[str]:
  """Sets the splits and classes that `config.dataset` leaves open.

  The classes are those that photos and drawings share; where photos have all that are published for
  a collection of drawings, as COCO's do, these alone.

  Returns:
    What was chosen, for the person at the terminal.

  Raises:
    ValueError: the data do not say it, or photos and drawings share no class.
  """
  notes = []
  if None in (config.train_split, config.eval_split):
    notes += photo_sources.complete_splits(config)
  if not config.class_names or not config.category_ids:
    photos = _open_photos(config, config.train_split, config.class_names)
    own = dict(zip(photos.class_names, photos.category_ids, strict=True))
    if not config.class_names:
      notes += _complete_classes(config, tuple(own))
    config.category_ids = tuple(own[name] for name in config.class_names)
  if config.unseen_classes is None:
    config.unseen_classes = ()
  return notes


def _complete_classes(config: ml_collections.ConfigDict, shown: Sequence[str]) -> list[str]:
  """Sets the classes, of those that photos show, and of them those that are not learnt."""
  drawn = drawings.find_classes(config.sketches)
  published, unseen = classes.PUBLISHED.get(config.sketches.name, ((), ()))
  wanted = published if published and set(published) <= set(shown) else shown
  names = tuple(name for name in wanted if classes.plain(name) in drawn)
  if not names:
    raise ValueError(
      f'photos and drawings share no class: photos show {common.shown(shown)}, drawings '
      f'{common.shown(drawn)}; call them alike'
    )
  config.class_names = names
  if config.unseen_classes is None:
    config.unseen_classes = tuple(name for name in names if wanted == published and name in unseen)
  notes = [f'{len(names)} classes: {common.shown(names)}']
  if missing := [name for name in wanted if name not in names]:
    notes.append(f'left out, as there are no drawings of them: {common.shown(missing)}')
  if config.unseen_classes:
    notes.append(f'never learnt, but asked for: {common.shown(config.unseen_classes)}')
  return notes


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses unseen classes that are none, naming the key."""
  for name in config.unseen_classes or ():
    if config.class_names and name not in config.class_names:
      raise config_errors.UnknownName(
        f'dataset.unseen_classes has {name!r}, which is none of dataset.class_names; '
        f'{config_errors.near_names(name, config.class_names)}they are '
        f'{common.shown(config.class_names)}',
        name,
        config.class_names,
      )
