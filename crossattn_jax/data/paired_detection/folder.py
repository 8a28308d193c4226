"""Folders of aligned RGB and thermal images with a file of objects for each pair.

Images are in two folders, objects in a third; each has folders of the splits, or each split has all
three. The files are YOLO's or Pascal VOC's, as `detection.yolo_folder` and `.voc_folder` read them.
So ICAFusion's authors ship KAIST, FLIR and VEDAI, and LLVIP is released.
"""

from collections.abc import Sequence
import os
import pathlib
from typing import Any

from crossattn_jax.data import image_ops, pairing, sources, splits
from crossattn_jax.data.detection import annotations, voc_folder, yolo_folder

LAYOUTS = (
  'visible/SPLIT/*.jpg, infrared/SPLIT/*.jpg and labels/SPLIT/*.txt, or SPLIT/visible/*.jpg, '
  'SPLIT/infrared/*.jpg and SPLIT/labels/*.txt'
)
# Of the folders of objects, in lower case; the first one is taken where there are both.
_LABELS = ('labels', 'annotations')
# Beside files of objects, names of such that are none.
_TABLES = {'classes'}


class PairFolder:
  """Pairs of image files and the files of their objects: a `sources.Source`.

  Files belong together whose paths below their folders are equal, but for extensions and what
  `pairing.ENDING` says.

  Attributes:
    class_names: through which labels count.
    category_ids: of each class, by which the files call it.
    image_ids: the pairs, counted from 1.
    num_objects: int64 `[pairs]`.
  """

  def __init__(
    self,
    root: pathlib.Path,
    split: str,
    class_names: Sequence[str] = (),
    upright: bool = True,
    other_classes: str = 'error',
  ):
    """Pairs the files of a split, and reads those of the objects.

    Args:
      root: the folder.
      split: a name of `pairing.find_splits`, or `pairing.WHOLE`, or a share of one, see
        `splits.FolderSplit`.
      class_names: the classes that labels count through, to which the folder's are mapped by name.
        YOLO's files need them where no table in the folder names the classes.
      upright: whether images are turned as their EXIF orientation says.
      other_classes: of objects that have none of these: one of `classes.OTHERS`.

    Raises:
      ValueError: there is no such split, an image has no partner, or a file of objects is wrong;
        the message names the files.
    """
    share, self._upright = splits.FolderSplit.parse(split), upright
    rgb, thermal, labels = _find_folders(root, share.name)
    pairs = pairing.pair_files(
      *(sources.find_files(folder)[0] for folder in (rgb, thermal)), rgb, thermal
    )
    if not pairs:
      raise ValueError(
        f'no images in {str(rgb)!r} and {str(thermal)!r} ({", ".join(sources.IMAGE_EXTENSIONS)})'
      )
    chosen = [
      number for number, pair in enumerate(pairs) if share.has(os.path.relpath(pair[0], root))
    ]
    if not chosen:
      raise splits.empty_share(split, root, len(pairs), 'pairs')
    self._paths = [tuple(map(str, pairs[number])) for number in chosen]
    self.image_ids = tuple(number + 1 for number in chosen)
    described = f'split {split!r} of {str(root)!r}'
    texts, extension = _label_files(labels, rgb, [pair[0] for pair in pairs])
    if extension == '.xml':
      self._objects = voc_folder.XmlObjects(texts, chosen, class_names, described, other_classes)
    else:
      names, table = _read_names(root, class_names)
      texts = [texts[number] for number in chosen]
      self._objects = yolo_folder.TextObjects(
        texts, names, table, class_names, described, other_classes
      )
    self.class_names, self.category_ids = self._objects.class_names, self._objects.category_ids
    self.num_objects = self._objects.counts

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> dict[str, Any]:
    rgb, thermal = self._paths[index]
    return {
      'key': self.key(index),
      'rgb': pathlib.Path(rgb).read_bytes(),
      'thermal': pathlib.Path(thermal).read_bytes(),
      'rgb_key': rgb,
      'thermal_key': thermal,
    }

  def key(self, index: int) -> str:
    """See `sources.Source`."""
    return self._paths[index][0]

  def image_size(self, index: int) -> tuple[int, int]:
    """See `sources.Source`."""
    return image_ops.size_in_header(self._paths[index][0], self._upright)

  def annotations(self, index: int) -> annotations.Objects:
    """See `sources.Source`."""
    return self._objects.of_image(index, self.image_size(index))


def _find_folders(
  root: pathlib.Path, split: str
) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path]:
  """The folders of RGB and of thermal images and of the objects' files of a split."""
  both = pairing.split_folders(root, split, LAYOUTS)
  parent = root if pairing.find_folders(root) else root / split
  found = [
    place
    for name in _LABELS
    for place in (*pairing.below(parent), *pairing.below(root))
    if place.name.lower() == name
  ]
  if not found:
    raise ValueError(
      f'{str(root)!r} has no folder {" or ".join(map(repr, _LABELS))} for the objects of '
      f'{str(both[0])!r}; expected {LAYOUTS}'
    )
  below = [place / split for place in found if (place / split).is_dir()]
  return *both, (below or found)[0]


def _label_files(
  folder: pathlib.Path, images_folder: pathlib.Path, images: Sequence[pathlib.Path]
) -> tuple[list[str], str]:
  """Path of the file of the objects of each image, which need not be there, and its extension."""
  found, _ = sources.find_files(folder, ('.txt', '.xml'))
  by_name = sources.by_stem(found, folder, pairing.ENDING)
  names = list(sources.by_stem(images, images_folder, pairing.ENDING))
  texts = [by_name.get(name, str(folder / f'{name}.txt')) for name in names]
  missing = [name for name in names if name not in by_name]
  lonely = [by_name[name] for name in by_name.keys() - set(names) - _TABLES]
  if missing and lonely:
    sources.say_once(
      f'{len(missing)} of {len(names)} pairs in {str(images_folder)!r} have no file of objects, '
      f'such as {missing[0]!r}, but files in {str(folder)!r} have no pair, such as '
      f'{min(lonely)!r}: names that belong together must be equal'
    )
  extensions = {os.path.splitext(by_name[name])[1].lower() for name in names if name in by_name}
  if len(extensions) != 1:
    raise ValueError(
      f'files of both YOLO (.txt) and Pascal VOC (.xml) are in {str(folder)!r}; move one kind away'
      if extensions
      else f'none of the {len(images)} images in {str(images_folder)!r} has a file of objects: '
      f'{str(images[0])!r} needs {texts[0]!r}; expected {LAYOUTS}'
    )
  return texts, extensions.pop()


def _read_names(root: pathlib.Path, class_names: Sequence[str]) -> tuple[Sequence[str], str]:
  """Names of the classes by which YOLO's files count, and what says them."""
  if class_names and not yolo_folder.has_names(root):
    return class_names, 'dataset.class_names'
  return yolo_folder.read_names(root)
