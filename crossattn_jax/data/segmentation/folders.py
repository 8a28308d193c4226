"""Images and masks of one's own in folders: which mask belongs to which image.

Either `DIR/images/SPLIT/**` and `DIR/masks/SPLIT/**`, or `DIR/SPLIT/images/**` and
`DIR/SPLIT/masks/**`; the folders of masks may also be called `annotations` or `labels`. Files
belong together whose paths there are equal but for the extension.
"""

from collections.abc import Iterable
import os
import pathlib

from crossattn_jax import config_errors
from crossattn_jax.data import sources, splits

IMAGES = 'images'
MASKS = ('masks', 'annotations', 'labels')
# The split of all images, where there are no folders of splits.
WHOLE = '.'

_JPEG = ('.jpg', '.jpeg')
_MASK_EXTENSIONS = tuple(end for end in sources.IMAGE_EXTENSIONS if end not in _JPEG)


def find_splits(root: pathlib.Path) -> list[str]:
  """Names of the folders that may be splits."""
  images = root / IMAGES
  if images.is_dir():
    return sorted(path.name for path in _folders(images))
  return sorted(path.name for path in _folders(root) if (path / IMAGES).is_dir())


def find_pairs(root: pathlib.Path, split: str) -> list[tuple[str, str]]:
  """Pairs images with their masks, in the order of the images.

  Args:
    root: `config.dataset.data_dir`.
    split: the name of a folder, or `WHOLE`, or a share of one; see `splits.FolderSplit`.

  Raises:
    ValueError: there is no such split, or it is empty, or images have no mask; the message names
      and counts them.
  """
  share = splits.FolderSplit.parse(split)
  images, masks = _split_folders(root, share.name)
  image_files, others = sources.find_files(images)
  if not image_files:
    raise ValueError(
      f'no images in {str(images)!r} ({", ".join(sources.IMAGE_EXTENSIONS)})'
      + (f'; it has {sources.counted(others)}' if others else '')
    )
  mask_files, others = sources.find_files(masks, _MASK_EXTENSIONS)
  if not mask_files and any(others[end] for end in _JPEG):
    raise ValueError(
      f'the masks in {str(masks)!r} are JPEG files, which do not keep values: save them as PNG'
    )
  by_stem = sources.by_stem(mask_files, masks)
  pairs = sources.by_stem(image_files, images)
  missing = [path for stem, path in pairs.items() if stem not in by_stem]
  if missing:
    stem = os.path.splitext(os.path.relpath(missing[0], images))[0]
    raise ValueError(
      f'{len(missing)} of the {len(image_files)} images in {str(images)!r} have no mask: '
      f'{missing[0]!r} needs {str(masks / stem)!r}.png; add the masks or remove the images'
    )
  extra = [path for stem, path in by_stem.items() if stem not in pairs]
  if extra:
    sources.say_once(
      f'{len(extra)} of the {len(mask_files)} masks in {str(masks)!r} are of no image and left '
      f'out, such as {extra[0]!r}'
    )
  found = [
    (path, by_stem[stem])
    for stem, path in pairs.items()
    if share.has(os.path.relpath(path, images))
  ]
  if not found:
    raise splits.empty_share(split, root, len(image_files))
  return found


def _split_folders(root: pathlib.Path, name: str) -> tuple[pathlib.Path, pathlib.Path]:
  """The folders of images and of masks of a split."""
  for place in (lambda kind: root / kind / name, lambda kind: root / name / kind):
    if not place(IMAGES).is_dir():
      continue
    masks = [folder for folder in map(place, MASKS) if folder.is_dir()]
    if len(masks) != 1:
      found = f'both {masks[0]} and {masks[1]}' if masks else 'none of those'
      raise ValueError(
        f'the masks of {str(place(IMAGES))!r} are expected in '
        f'{" or ".join(repr(str(place(kind))) for kind in MASKS)}; there is {found}'
      )
    return place(IMAGES), masks[0]
  there = find_splits(root)
  raise config_errors.UnknownName(
    f'{str(root)!r} has no images of split {name!r}, but of {sources.shown(there) or "none"}; '
    f'expected {IMAGES}/SPLIT and {MASKS[0]}/SPLIT, SPLIT/{IMAGES} and SPLIT/{MASKS[0]}, or '
    f'{IMAGES} and {MASKS[0]}',
    name,
    there,
  )


def _folders(root: pathlib.Path) -> Iterable[pathlib.Path]:
  return (path for path in root.iterdir() if path.is_dir() and not sources.is_hidden(path.name))
