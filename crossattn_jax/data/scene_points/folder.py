"""Scenes of one's own in a folder, as `prepare` writes them too.

  DIR/classes.txt             a name in each line: what labels 0, 1, ... are
  DIR/train/SCENE.ply         or .npz, see `point_files`; in folders of their own if wanted
  DIR/train/SCENE/images/*    photographs of it, in the order of their names
  DIR/val/...
  DIR/tags.csv                SCENE,chair,table: what scenes hold whose points have no labels;
                              or tags.json: {"SCENE": ["chair", "table"]}

In place of folders of splits, `DIR/train.txt` and `DIR/val.txt` may name scenes below DIR.
"""

from collections.abc import Sequence
import csv
import functools
import json
import os
import pathlib

import numpy as np
from PIL import Image

from crossattn_jax import config_errors
from crossattn_jax.data import image_ops, pipeline, splits
from crossattn_jax.data import sources as common
from crossattn_jax.data.scene_points import files, point_files, sources

CLASSES, TAGS, IMAGES = 'classes.txt', ('tags.json', 'tags.csv'), 'images'
EXTENSIONS = point_files.EXTENSIONS
# The label of no class, besides negative ones.
IGNORED = 255
# The split of all scenes, where there are no others.
WHOLE = '.'


class SceneFiles:
  """Scenes in a file each, with photographs inside of it or in a folder beside it.

  Attributes:
    class_names: through which labels count.
    keys: names of the scenes.
  """

  def __init__(
    self,
    paths: Sequence[str | os.PathLike[str]],
    keys: Sequence[str],
    class_names: Sequence[str],
    tags: dict[str, Sequence[str]] | None = None,
    *,
    has_labels: bool = True,
  ):
    self.class_names, self.keys = tuple(class_names), tuple(keys)
    self._has_labels = has_labels
    self._paths, self._tags = tuple(map(pathlib.Path, paths)), tags or {}

  def __len__(self) -> int:
    return len(self.keys)

  def scene(self, index: int) -> sources.Scene:
    """See `PointSource`."""
    path, count = self._paths[index], len(self.class_names)
    scene = files.read(path)
    if scene.labels is None or not self._has_labels:
      return scene._replace(labels=None)
    is_class = (scene.labels >= 0) & (scene.labels != IGNORED)
    if (most := scene.labels.max(where=is_class, initial=-1)) >= count:
      raise pipeline.UnreadableError(
        f'{str(path)!r} has a label {most}, but labels of the {count} classes '
        f'({common.shown(self.class_names)}) count from 0; of none are {IGNORED} and below 0'
      )
    return scene._replace(labels=np.where(is_class, scene.labels, -1))

  def views(self, index: int) -> int:
    """See `PointSource`."""
    return len(self._images(index)) or self._frames(index)

  def view(self, index: int, number: int) -> Image.Image:
    """See `PointSource`."""
    if images := self._images(index):
      return read_image(images[number])
    data = files.view(self._paths[index], number)
    return image_ops.decode(data, 3)

  def tags(self, index: int) -> np.ndarray:
    """See `PointSource`; of a scene without labels, what the table of tags says of it."""
    names = self._tags.get(self.keys[index])
    if names is not None:
      return np.isin(self.class_names, names)
    labels = self.scene(index).labels
    if labels is None:
      raise ValueError(
        f'scene {self.keys[index]!r} ({str(self._paths[index])!r}) has neither labels of points '
        f'nor a row in {" or ".join(TAGS)}: say what it holds'
      )
    return sources.present(labels, len(self.class_names))

  @functools.lru_cache(4096)  # noqa: B019  (a source lives as long as its run)
  def _images(self, index: int) -> tuple[str, ...]:
    folder = self._paths[index].with_suffix('') / IMAGES
    return tuple(common.find_files(folder)[0]) if folder.is_dir() else ()

  @functools.lru_cache(4096)  # noqa: B019
  def _frames(self, index: int) -> int:
    path = self._paths[index]
    return files.views(path) if path.suffix.lower() == '.npz' else 0


def read_image(path: str | os.PathLike[str]) -> Image.Image:
  """Decodes a photograph, upright; raises `UnreadableError`, which names the file."""
  try:
    return image_ops.decode(pathlib.Path(path).read_bytes(), 3, upright=True)
  except (OSError, pipeline.UnreadableError) as error:
    raise pipeline.UnreadableError(f'{os.fspath(path)!r}: {error}') from error


def open_file(path: str | os.PathLike[str], class_names: Sequence[str]) -> sources.PointSource:
  """A file alone, to predict for: its labels, which may be of other classes, are left out."""
  path = pathlib.Path(path)
  return SceneFiles([path], [path.stem], class_names, {path.stem: ()}, has_labels=False)


def open_split(data_dir: str | os.PathLike[str], split: str) -> SceneFiles:
  """Opens a split of a folder.

  Args:
    data_dir: the folder.
    split: the name of a folder or list in it, `WHOLE`, or a share of one; see `splits.FolderSplit`.

  Raises:
    ValueError: there is no such split, or it is empty; scenes that are listed are missing; there is
      no table of classes, or tags are none of them.
  """
  root = pathlib.Path(data_dir)
  names = class_names(root)
  share = splits.FolderSplit.parse(split)
  found = _listed(root, share.name) or _inside(root, share.name)
  if not found:
    there = find_splits(root)
    raise config_errors.UnknownName(
      f'{str(root)!r} has no split {share.name!r}, but {common.shown(there) or "none"}; expected '
      f'a folder {str(root / share.name)!r} with scenes ({", ".join(EXTENSIONS)}), or a list of '
      f'them, {str(root / share.name)!r}.txt',
      share.name,
      there,
    )
  chosen = {key: path for key, path in found.items() if share.has(key)}
  if not chosen:
    raise splits.empty_share(split, root, len(found), 'scenes')
  return SceneFiles(list(chosen.values()), list(chosen), names, _read_tags(root, names))


def find_splits(root: pathlib.Path) -> list[str]:
  """Names of the folders and lists that may be splits."""
  lists = [path.stem for path in root.glob('*.txt') if path.name != CLASSES]
  folders = [path.name for path in root.iterdir() if path.is_dir() and _inside(root, path.name)]
  return sorted({*lists, *folders})


def class_names(root: pathlib.Path) -> tuple[str, ...]:
  """What `classes.txt` says.

  Raises:
    ValueError: there is none, it is empty, or names are there twice.
  """
  path = root / CLASSES
  if not path.is_file():
    raise ValueError(
      f'{str(path)!r} does not exist: write a name for each label 0, 1, ... in a line of its own'
    )
  names = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
  if not names or len(set(names)) < len(names):
    raise ValueError(
      f'{str(path)!r} must name each class once, got {common.shown(names) or "none"}'
    )
  return names


def _inside(root: pathlib.Path, name: str) -> dict[str, str]:
  """Scenes in a folder, by their paths in it."""
  folder = root / name
  if not folder.is_dir():
    return {}
  found = common.by_stem(common.find_files(folder, EXTENSIONS)[0], folder)
  return {key.replace(os.sep, '/'): path for key, path in found.items()}


def _listed(root: pathlib.Path, name: str) -> dict[str, pathlib.Path]:
  """Scenes that a list names."""
  listing = root / f'{name}.txt'
  if name == WHOLE or not listing.is_file():
    return {}
  found = {}
  for key in filter(None, map(str.strip, listing.read_text().splitlines())):
    paths = [root / f'{key}{extension}' for extension in EXTENSIONS]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
      raise ValueError(f'{str(listing)!r} names {key!r}, but there is no {str(paths[0])!r} or .npz')
    found[key] = path
  return found


def _read_tags(root: pathlib.Path, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
  """What scenes hold by their names; raises ValueError where that is no class."""
  path = next((path for path in (root / name for name in TAGS) if path.is_file()), None)
  if path is None:
    return {}
  text = common.read_text(path)
  if path.suffix == '.json':
    rows = list(json.loads(text).items())
  else:
    rows = [
      (row[0], row[1:]) for row in csv.reader(text.splitlines(), skipinitialspace=True) if row
    ]
  tags = {key: tuple(filter(None, map(str.strip, held))) for key, held in rows}
  for key, held in tags.items():
    for name in held:
      if name not in names:
        raise config_errors.UnknownName(
          f'{str(path)!r}: scene {key!r} has a tag {name!r}, which is no class of '
          f'{str(root / CLASSES)!r}; {config_errors.near_names(name, names)}they are '
          f'{common.shown(names)}',
          name,
          names,
        )
  return tags
