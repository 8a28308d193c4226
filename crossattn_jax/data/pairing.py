"""Aligned visible and infrared images: folders of them, which belong together, decoding."""

from collections.abc import Iterable, Mapping, Sequence
import os
import pathlib
from typing import Any

import numpy as np

from crossattn_jax import config_errors
from crossattn_jax.data import image_ops, pipeline, sources

# The split of all pairs, where there are none.
WHOLE = '.'
# Names that folders of either kind of image have, in lower case.
VISIBLE_FOLDERS = ('vi', 'vis', 'visible', 'rgb', 'color', 'colour')
INFRARED_FOLDERS = ('ir', 'inf', 'infrared', 'thermal', 'lwir', 'tir')
# What images of a pair, and the file of its objects, may differ in: 'a_RGB.jpg', 'a_ir.png'. VEDAI
# ends in 'co' and 'ir', FLIR in 'RGB' and 'PreviewData'.
_KINDS = (*VISIBLE_FOLDERS, *INFRARED_FOLDERS, 'co', 'previewdata')
ENDING = rf'(?i)[-_]({"|".join(_KINDS)})$'


def find_folders(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path] | None:
  """The folders of visible and of infrared images in a folder; None where it has not one of each.

  Raises:
    ValueError: which ones are meant is not clear.
  """
  found = []
  for names in (VISIBLE_FOLDERS, INFRARED_FOLDERS):
    fitting = [
      path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower() in names
    ]
    if len(fitting) > 1:
      raise ValueError(
        f'{str(folder)!r} has {" and ".join(path.name for path in fitting)}, of which one is '
        'expected: name both folders'
      )
    found += fitting
  return tuple(found) if len(found) == 2 else None


def find_splits(root: pathlib.Path) -> list[str]:
  """Names of the splits of a folder: `visible/train`, or `train/visible`."""
  both = find_folders(root)
  if both is None:
    return [folder.name for folder in below(root) if find_folders(folder)]
  if any(path.name.lower().endswith(sources.IMAGE_EXTENSIONS) for path in both[0].iterdir()):
    return []
  return [folder.name for folder in below(both[0])]


def split_folders(
  root: pathlib.Path, split: str, layouts: str
) -> tuple[pathlib.Path, pathlib.Path]:
  """The folders of visible and of infrared images of a split.

  Args:
    root: of the data set.
    split: a name of `find_splits`, or `WHOLE`.
    layouts: what is expected, for messages.

  Raises:
    ValueError: there are none, or one is missing.
  """
  both = find_folders(root)
  if both is not None:
    both = both[0] / split, both[1] / split
  elif (root / split).is_dir():
    both = find_folders(root / split)
  if both is None or not both[0].is_dir():
    raise _no_pairs(root, split, layouts)
  if not both[1].is_dir():
    raise ValueError(f'{str(both[1])!r} is missing, the partner of {str(both[0])!r}')
  return both


def _no_pairs(root: pathlib.Path, split: str, layouts: str) -> config_errors.UnknownName:
  """Says that a folder has no pairs of a split, and what it has."""
  there = find_splits(root)
  of_split = '' if split == WHOLE else f' of split {split!r}'
  kind, names = ('splits', there) if there else ('folders', [x.name for x in below(root)])
  kinds = (*VISIBLE_FOLDERS, *INFRARED_FOLDERS)
  inside = next((x for x in (root, root.parent) if x.name.lower() in kinds), None)
  meant = f'Did you mean dataset.data_dir={str(inside.parent)!r}? ' if inside else ''
  return config_errors.UnknownName(
    f'{str(root)!r} has no pairs{of_split}; its {kind} are {sources.shown(names) or "none"}. '
    f'{meant}Expected {layouts}; folders of RGB images are called '
    f'{", ".join(VISIBLE_FOLDERS)}, of thermal ones {", ".join(INFRARED_FOLDERS)}',
    split,
    there,
  )


def below(parent: pathlib.Path) -> list[pathlib.Path]:
  """The folders in a folder, by name."""
  found = (path for path in parent.iterdir() if path.is_dir())
  return sorted(path for path in found if not sources.is_hidden(path.name))


def pair_files(
  visible: Iterable[str | os.PathLike[str]],
  infrared: Iterable[str | os.PathLike[str]],
  visible_folder: str | os.PathLike[str],
  infrared_folder: str | os.PathLike[str],
) -> list[tuple[pathlib.Path, pathlib.Path]]:
  """Pairs images whose paths below their folders are equal but for the extension and an `ENDING`.

  Args:
    visible: files.
    infrared: files.
    visible_folder: of the visible images, which may lie in folders of it.
    infrared_folder: of the infrared images.

  Returns:
    Pairs in the order of the visible images.

  Raises:
    ValueError: images have no partner; the message names one and where its partner would be, and
      counts the others.
  """
  first = sources.by_stem(map(pathlib.Path, visible), visible_folder, ENDING)
  second = sources.by_stem(map(pathlib.Path, infrared), infrared_folder, ENDING)
  lonely = [(name, infrared_folder) for name in first if name not in second]
  lonely += [(name, visible_folder) for name in second if name not in first]
  if lonely:
    name, folder = lonely[0]
    path = first.get(name) or second[name]
    others = len(lonely) - 1
    more = f'; {others} other image{"s have" if others > 1 else " has"} none' if others else ''
    raise ValueError(
      f'{str(path)!r} has no partner: expected {os.fspath(folder)!r} to have an image {name!r}, '
      f'such as {name + path.suffix!r}{more}'
    )
  return [(path, second[name]) for name, path in first.items()]


def decode(
  example: Mapping[str, Any],
  kinds: Sequence[str],
  options: Mapping[str, Any],
  channels: int | None = 3,
) -> list[np.ndarray]:
  """Decodes both images of a pair.

  Args:
    example: of each kind the file's bytes, `KIND`, and its name for messages, `KIND_key`.
    kinds: of both images.
    options: see `decoding.decode`.
    channels: 3, or None for one channel of a grey file, which is faster.

  Returns:
    uint8 `[height, width, channels]` of each.

  Raises:
    UnreadableError: one cannot be decoded, or they differ in size; the message names both.
  """
  keys, images = [example[f'{kind}_key'] for kind in kinds], []
  for kind, key, partner in zip(kinds, keys, reversed(keys), strict=True):
    try:
      images.append(np.asarray(image_ops.decode(example[kind], channels, **options)))
    except pipeline.UnreadableError as error:
      raise pipeline.UnreadableError(f'{key!r}, the partner of {partner!r}: {error}') from error
  sizes = [image.shape[:2] for image in images]
  if sizes[0] != sizes[1]:
    raise pipeline.UnreadableError(
      f'{keys[0]!r} has {sizes[0][0]} x {sizes[0][1]} pixels, {keys[1]!r} '
      f'{sizes[1][0]} x {sizes[1][1]}; pairs must be aligned'
    )
  return [image if image.ndim == 3 else image[..., None] for image in images]
