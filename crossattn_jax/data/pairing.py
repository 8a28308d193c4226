"""Aligned visible and infrared images: folders of them, which belong together, decoding."""

from collections.abc import Iterable, Mapping, Sequence
import os
import pathlib
from typing import Any

import numpy as np

from crossattn_jax.data import image_ops, pipeline, sources

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
  example: Mapping[str, Any], kinds: Sequence[str], options: Mapping[str, Any]
) -> list[np.ndarray]:
  """Decodes both images of a pair.

  Args:
    example: of each kind the file's bytes, `KIND`, and its name for messages, `KIND_key`.
    kinds: of both images.
    options: see `decoding.decode`.

  Returns:
    uint8 `[height, width, 3]` of each.

  Raises:
    UnreadableError: one cannot be decoded, or they differ in size; the message names both.
  """
  keys, images = [example[f'{kind}_key'] for kind in kinds], []
  for kind, key, partner in zip(kinds, keys, reversed(keys), strict=True):
    try:
      images.append(np.asarray(image_ops.decode(example[kind], 3, **options)))
    except pipeline.UnreadableError as error:
      raise pipeline.UnreadableError(f'{key!r}, the partner of {partner!r}: {error}') from error
  sizes = [image.shape[:2] for image in images]
  if sizes[0] != sizes[1]:
    raise pipeline.UnreadableError(
      f'{keys[0]!r} has {sizes[0][0]} x {sizes[0][1]} pixels, {keys[1]!r} '
      f'{sizes[1][0]} x {sizes[1][1]}; pairs must be aligned'
    )
  return images
