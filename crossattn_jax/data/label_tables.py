"""Tables that say which classes the files of a folder have."""

from collections.abc import Mapping, Sequence
import csv
import io
import os
import pathlib

import numpy as np

from crossattn_jax.data import sources, splits


class LabelTable:
  """`data_dir/split.csv` with columns `file` and `labels`; files are relative to `data_dir`.

  The labels of a file, names of classes, are joined by commas. The split may be a share of the
  rows, by the names of the files: see `splits.FolderSplit`.

  Attributes:
    class_names: in the order of the classes.
    paths: of the files.
    labels: of each file, in ascending order.
  """

  def __init__(
    self,
    data_dir: str | os.PathLike[str],
    split: str,
    class_names: Sequence[str] | None = None,
    names_of: Mapping[str, str] | None = None,
  ):
    """Reads a table.

    Args:
      data_dir: the folder.
      split: which table, or share of one.
      class_names: that labels count through; by default those of the table, in alphabetical order.
      names_of: the class of what stands in the table, where it is called otherwise.

    Raises:
      ValueError: there is no such table, it has not these columns, or a label is no class.
    """
    self._described = f'{split!r} of {os.fspath(data_dir)!r}'
    share, folder = splits.FolderSplit.parse(split), pathlib.Path(data_dir)
    rows = read_table(folder / f'{share.name}.csv', ('file', 'labels'))
    named = [[label.strip() for label in row['labels'].split(',') if label.strip()] for row in rows]
    if names_of:
      named = [[names_of.get(label, label) for label in labels] for labels in named]
    if class_names is None:
      class_names = sorted({label for labels in named for label in labels})
    self.class_names = tuple(class_names)
    indices = {name: index for index, name in enumerate(self.class_names)}
    self.paths: list[str] = []
    self.labels: list[tuple[int, ...]] = []
    for row, labels in zip(rows, named, strict=True):
      unknown = [name for name in labels if name not in indices]
      if unknown:
        raise ValueError(
          f'{share.name}.csv gives {row["file"]!r} the label {unknown[0]!r}, which is not among '
          f'the {len(indices)} expected classes ({sources.shown(self.class_names)}); correct it, '
          'or train on it in another workdir'
        )
      if share.has(row['file']):
        self.paths.append(str(folder / row['file']))
        self.labels.append(tuple(sorted({indices[name] for name in labels})))
    if not self.paths:
      raise splits.empty_share(split, folder, len(rows), 'files')

  def __len__(self) -> int:
    return len(self.paths)

  def check_files(self) -> None:
    """Refuses files that are not there; the message names one and counts them."""
    missing = [path for path in self.paths if not os.path.isfile(path)]
    if missing:
      raise ValueError(
        f'{self._described} names {len(missing)} of {len(self)} files that are not there, such as '
        f'{missing[0]!r}; add them or remove their rows'
      )

  def target(self, index: int) -> np.ndarray:
    """The classes of a file as `[classes]` of 0 and 1, float32."""
    target = np.zeros(len(self.class_names), np.float32)
    target[list(self.labels[index])] = 1
    return target


def find_tables(data_dir: str | os.PathLike[str]) -> list[str]:
  """Names of the tables in a folder that may be splits."""
  return sorted(
    file.stem
    for file in pathlib.Path(data_dir).glob('*.csv')
    if not sources.is_hidden(file.name) and _columns(file) >= {'file', 'labels'}
  )


def read_table(path: pathlib.Path, columns: Sequence[str]) -> list[dict[str, str]]:
  """Reads the rows of a .csv file.

  Raises:
    ValueError: it is not there, is not UTF-8, has no rows, lacks a column, or a row has more or
      fewer entries.
  """
  if not path.is_file():
    tables = ', '.join(f'{name}.csv' for name in find_tables(path.parent))
    raise ValueError(f'no table {str(path)!r}; there are {tables or "none"}')
  reader = csv.DictReader(io.StringIO(sources.read_text(path)))
  missing = [name for name in columns if name not in (reader.fieldnames or ())]
  if missing:
    raise ValueError(
      f'{str(path)!r} has no column {missing[0]!r}; expected a first line {",".join(columns)!r}'
    )
  rows = list(reader)
  if not rows:
    raise ValueError(f'{str(path)!r} has no rows')
  for number, row in enumerate(rows, 2):
    if None in row.values():
      raise ValueError(f'line {number} of {str(path)!r} has too few columns')
    if None in row:
      raise ValueError(
        f'line {number} of {str(path)!r} has more entries than the first line has columns; quote '
        'those with commas, as in a.jpg,"cat,dog"'
      )
  return rows


def _columns(path: pathlib.Path) -> set[str]:
  with path.open(newline='', encoding='utf-8-sig', errors='replace') as file:
    return set(csv.DictReader(file).fieldnames or ())
