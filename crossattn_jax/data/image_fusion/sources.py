"""Sources of registered image pairs: random access to an encoded visible and infrared image."""

from collections.abc import Iterable
import dataclasses
import io
import os
import pathlib
from typing import Protocol, TypedDict

from crossattn_jax.data import image_ops, pairing, sources, splits
from crossattn_jax.data.scenes import dataset

ALL = 'all'
FOLDER = 'pair_folder'
_OWN_LAYOUTS = 'visible/SPLIT/*.jpg and infrared/SPLIT/*.jpg, or SPLIT/visible and SPLIT/infrared'


class Example(TypedDict):
  """One pair: both encoded images, and a name of each for messages."""

  visible: bytes
  infrared: bytes
  visible_key: str
  infrared_key: str


class Source(Protocol):
  """Random access to the pairs of one split; safe to read from threads, picklable."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...

  def image_size(self, index: int, upright: bool = False) -> tuple[int, int]:
    """(height, width) of a visible image, without decoding it; (1, 1) where that fails."""


@dataclasses.dataclass(frozen=True)
class _Layout:
  """Where a data set has its images, below its folder.

  Attributes:
    visible: folder of the visible images; '{split}' stands for the split.
    infrared: folder of the infrared images.
  """

  visible: str
  infrared: str

  @property
  def has_splits(self) -> bool:
    return '{split}' in self.visible


# As the authors of each ship it; TNO as fusion repositories do.
_LAYOUTS = {
  'msrs': _Layout('{split}/vi', '{split}/ir'),
  'llvip': _Layout('visible/{split}', 'infrared/{split}'),
  'roadscene': _Layout('crop_LR_visible', 'cropinfrared'),
  'tno': _Layout('vi', 'ir'),
  'm3fd': _Layout('Vis', 'Ir'),
}


def create_source(name: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> Source:
  """Opens one split of a data set.

  Args:
    name: `'shape_scenes'` (written on first use), with its configuration if wanted; a folder of
      one's own, `'pair_folder'`; or one in the layout of `'msrs'`, `'llvip'`, `'roadscene'`,
      `'tno'` or `'m3fd'`.
    split: of TFDS any split expression; of one's own pairs a folder or a share of it
      (`'train[:90%]'`, `'.[90%:]'`); of MSRS and LLVIP the name of a folder ('train', 'test'); of
      the others 'all'. Of released folders also a text file in data_dir that lists names of pairs,
      one a line.
    data_dir: folder of TFDS datasets (TFDS's own default if None), or that of the data set.

  Raises:
    ValueError: there is no such data set or split, it is empty, or an image has no partner.
  """
  if sources.bare_name(name) == 'shape_scenes':
    dataset.prepare(name, data_dir)
    return ShapeScenesSource(name, split, data_dir)
  if name not in (FOLDER, *_LAYOUTS):
    raise sources.unknown_dataset(name, ['shape_scenes', FOLDER, *_LAYOUTS], 'fusion')
  if data_dir is None:
    raise ValueError(f'{name!r} needs data_dir: its folder')
  root = pathlib.Path(data_dir)
  if name == FOLDER:
    return PairSource(_own_pairs(root, split))
  return PairSource(_folder_pairs(root, _LAYOUTS[name], split))


def _own_pairs(root: pathlib.Path, split: str) -> list[tuple[pathlib.Path, pathlib.Path]]:
  if not root.is_dir():
    raise ValueError(f'dataset.data_dir={str(root)!r} is no folder')
  share = splits.FolderSplit.parse(split)
  folders = pairing.split_folders(root, share.name, _OWN_LAYOUTS)
  pairs = pairing.pair_files(*(sources.find_files(each)[0] for each in folders), *folders)
  if not pairs:
    raise ValueError(f'no images in {str(folders[0])!r} and {str(folders[1])!r}')
  chosen = [pair for pair in pairs if share.has(os.path.relpath(pair[0], root))]
  if not chosen:
    raise splits.empty_share(split, root, len(pairs), 'pairs')
  return chosen


def _folder_pairs(
  root: pathlib.Path, layout: _Layout, split: str
) -> list[tuple[pathlib.Path, pathlib.Path]]:
  listing, names = root / split, None
  if listing.is_file():
    if layout.has_splits:
      # `splits/train.txt` lists images of the folder 'train'.
      split = listing.stem
    names = [line.strip() for line in listing.read_text().splitlines() if line.strip()]
  elif not layout.has_splits and split != ALL:
    raise ValueError(
      f'{str(root)!r} has no folders of splits: the split is {ALL!r}, or a file there that lists '
      f'names of pairs, not {split!r}'
    )
  folders = [root / part.format(split=split) for part in (layout.visible, layout.infrared)]
  for folder in folders:
    if not folder.is_dir():
      raise ValueError(f'{str(folder)!r} does not exist; expected it below {str(root)!r}')
  pairs = pairing.pair_files(*(list_images(folder) for folder in folders), *folders)
  if names is not None:
    by_name = {visible.stem: (visible, infrared) for visible, infrared in pairs}
    missing = [name for name in names if pathlib.Path(name).stem not in by_name]
    if missing:
      raise ValueError(
        f'{str(listing)!r} lists {missing[0]!r}, which is not in {str(folders[0])!r}'
      )
    pairs = [by_name[pathlib.Path(name).stem] for name in names]
  if not pairs:
    raise ValueError(f'no images in {str(folders[0])!r} and {str(folders[1])!r}')
  return pairs


def list_images(folder: pathlib.Path) -> list[pathlib.Path]:
  """The images in a folder, by name; not those in folders below it."""
  return sorted(
    path
    for path in folder.iterdir()
    if path.is_file()
    and path.name.lower().endswith(sources.IMAGE_EXTENSIONS)
    and not sources.is_hidden(path.name)
  )


class PairSource:
  """Pairs of image files.

  Attributes:
    pairs: (visible, infrared) of each example.
  """

  def __init__(self, pairs: Iterable[tuple[pathlib.Path, pathlib.Path]]):
    self.pairs = [(str(visible), str(infrared)) for visible, infrared in pairs]

  def __len__(self) -> int:
    return len(self.pairs)

  def __getitem__(self, index: int) -> Example:
    visible, infrared = self.pairs[index]
    return {
      'visible': pathlib.Path(visible).read_bytes(),
      'infrared': pathlib.Path(infrared).read_bytes(),
      'visible_key': visible,
      'infrared_key': infrared,
    }

  def image_size(self, index: int, upright: bool = False) -> tuple[int, int]:
    """See `Source`."""
    return image_ops.size_in_header(self.pairs[index][0], upright)


class ShapeScenesSource:
  """Visible and thermal images of procedural scenes, left encoded."""

  def __init__(self, name: str, split: str, data_dir: str | os.PathLike[str] | None):
    self._name, self._split = name, split
    _, self._examples = sources.open_tfds(name, split, data_dir)

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    example = self._examples[index]
    key = f'{self._name}/{self._split}[{index}] ({example["id"].decode()})'
    return {
      'visible': example['image'],
      'infrared': example['thermal'],
      'visible_key': f'image of {key}',
      'infrared_key': f'thermal of {key}',
    }

  def image_size(self, index: int, upright: bool = False) -> tuple[int, int]:
    """See `Source`."""
    return image_ops.size_in_header(io.BytesIO(self._examples[index]['image']), upright)
