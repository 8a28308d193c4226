"""Opening data sets: what the sources of all tasks have in common.

A source hands out bytes, not pixels: decoding belongs to the pipeline, which knows the channels it
wants and what to do with an image that cannot be read.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence
import contextlib
import functools
import os
import pathlib
import re
from typing import Any, TypeVar

from absl import logging
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from crossattn_jax import config_errors

_Path = TypeVar('_Path', bound=str | os.PathLike[str])

_PACKAGE = pathlib.Path(__file__).parents[1]

IMAGE_EXTENSIONS = (
  '.jpg',
  '.jpeg',
  '.png',
  '.bmp',
  '.gif',
  '.pgm',
  '.ppm',
  '.tif',
  '.tiff',
  '.webp',
)


class NotPreparedError(ValueError):
  """A TFDS dataset whose files are not there."""


def located(path: str) -> pathlib.Path:
  """A path that a person gives: `~` is home, and the library's samples are found from any folder.

  Args:
    path: any; `crossattn_jax/samples/...` is in the installed package where it is not here.
  """
  own = pathlib.Path(path)
  if own.parts[:2] == ('crossattn_jax', 'samples') and not own.exists():
    return _PACKAGE.parent / own
  return own.expanduser()


def checked_folder(
  name: str, data_dir: str | os.PathLike[str] | None, content: str
) -> pathlib.Path:
  """The folder of a data set of one's own.

  Args:
    name: of the data set.
    data_dir: `config.dataset.data_dir`.
    content: what the folder holds, for the message.

  Raises:
    ValueError: none is given, or it is no folder.
  """
  if data_dir is None:
    raise ValueError(f'{name!r} needs dataset.data_dir: the folder of its {content}')
  folder = pathlib.Path(data_dir)
  if not folder.is_dir():
    raise ValueError(f'dataset.data_dir={str(data_dir)!r} is no folder')
  return folder


def is_hidden(name: str) -> bool:
  """Whether a file or folder belongs to a system or an editor: `._a.jpg`, `.ipynb_checkpoints`."""
  return name.startswith('.') or name == '__MACOSX'


def find_files(
  folder: str | os.PathLike[str],
  extensions: Sequence[str] = IMAGE_EXTENSIONS,
  apart_from: str | os.PathLike[str] | None = None,
) -> tuple[list[str], collections.Counter[str]]:
  """Lists the files below a local folder but for hidden ones and those in hidden folders.

  Args:
    folder: that is searched.
    extensions: in lower case.
    apart_from: a folder below it that is not searched, such as one for results.

  Returns:
    The paths that end in one of the extensions, in the order of their folders and names; and how
    many other files there are, by their extension, '' where they have none.
  """
  passed_over = None if apart_from is None else os.path.abspath(apart_from)
  walked = []
  for parent, folders, names in os.walk(folder, followlinks=True):
    folders[:] = [
      name
      for name in folders
      if not is_hidden(name) and os.path.abspath(os.path.join(parent, name)) != passed_over
    ]
    walked.append((parent, sorted(name for name in names if not is_hidden(name))))
  found, left_out = [], collections.Counter()
  for parent, names in sorted(walked):
    for name in names:
      if name.lower().endswith(tuple(extensions)):
        found.append(os.path.join(parent, name))
      else:
        left_out[os.path.splitext(name)[1].lower()] += 1
  return found, left_out


def by_stem(
  paths: Iterable[_Path], folder: str | os.PathLike[str], ending: str = ''
) -> dict[str, _Path]:
  """Files by their path below a folder without its extension, by which they find their partners.

  Args:
    paths: of the files.
    folder: that they are below.
    ending: a regular expression of what partners may differ in before the extension.

  Raises:
    ValueError: two are called the same.
  """
  found: dict[str, _Path] = {}
  for path in paths:
    stem = re.sub(ending, '', os.path.splitext(os.path.relpath(path, folder))[0])
    if stem in found:
      raise ValueError(
        f'{os.fspath(found[stem])!r} and {os.fspath(path)!r} have the same name; remove one'
      )
    found[stem] = path
  return found


def counted(left_out: collections.Counter[str]) -> str:
  """Files by extension, for a message: '12 .txt, 1 without extension'."""
  return ', '.join(
    f'{count} {extension or "without extension"}' for extension, count in left_out.most_common()
  )


def read_text(path: pathlib.Path) -> str:
  """Reads a file that a person wrote, with a byte order mark or without.

  Raises:
    ValueError: it is not UTF-8.
  """
  try:
    return path.read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as error:
    line = 1 + error.object.count(b'\n', 0, error.start)
    raise ValueError(f'{str(path)!r}, line {line}: not UTF-8; save the file as UTF-8') from error


@functools.lru_cache
def say_once(message: str) -> None:
  """Logs a warning that would otherwise come each time that a data set is opened."""
  logging.warning('%s', message)


def bare_name(name: str) -> str:
  """A dataset's name without configuration and version."""
  return name.split('/')[0].split(':')[0]


def unknown_dataset(name: str, known: Iterable[str], purpose: str) -> config_errors.UnknownName:
  """The error for a name that is none of a task's data sets."""
  return config_errors.UnknownName(
    f'unknown dataset {name!r}; {config_errors.near_names(name, known)}known for {purpose}: '
    f'{", ".join(known)}',
    name,
    known,
  )


@contextlib.contextmanager
def suggestions(name: str, own: Iterable[str], expected: str) -> Iterator[None]:
  """Tells names that are no data set at all from those of TFDS that are not prepared.

  Args:
    name: that is opened inside.
    own: names that a task knows besides those of TFDS.
    expected: names for the message.

  Raises:
    config_errors.UnknownName: it is neither in `own` nor of TFDS.
  """
  try:
    yield
  except NotPreparedError as error:
    known = {*own, *tfds.list_builders(with_community_datasets=False)}
    bare = bare_name(name)
    if bare in known:
      raise
    raise config_errors.UnknownName(
      f'unknown dataset {name!r}; {config_errors.near_names(bare, known, 3)}expected {expected}',
      name,
      known,
    ) from error


def unknown_classes(where: str, unknown: Sequence[str], class_names: Sequence[str]) -> ValueError:
  """The error for classes of a split that are none of those that labels count through."""
  one = len(unknown) == 1
  which = f'a class {unknown[0]!r} that is' if one else f'classes {shown(unknown)} that are'
  return ValueError(
    f'{where} has {which} not among the {len(class_names)} expected classes '
    f'({shown(class_names)}); rename or remove {"it" if one else "them"}, or train on all classes '
    'in another workdir'
  )


def class_changes(before: Sequence[str], now: Sequence[str]) -> str:
  """What has become of the classes of a data set, for a message; empty where nothing has."""
  added = [name for name in now if name not in before]
  missing = [name for name in before if name not in now]
  changes = [f'added {shown(added)}'] if added else []
  changes += [f'missing {shown(missing)}'] if missing else []
  return '; '.join(changes) or ('' if tuple(before) == tuple(now) else 'in another order')


def shown(names: Sequence[str], most: int = 8) -> str:
  """Names for a message, no more than a line of them."""
  rest = [f'{len(names) - most} more'] if len(names) > most else []
  return ', '.join([*map(repr, names[:most]), *rest])


def tfds_splits(name: str, data_dir: str | os.PathLike[str] | None) -> tuple[str, ...]:
  """Names of the splits of a prepared dataset.

  Raises:
    NotPreparedError: as `open_tfds`.
  """
  return tuple(_tfds_builder(name, data_dir).info.splits)


def open_tfds(
  name: str, split: str, data_dir: str | os.PathLike[str] | None
) -> tuple[tfds.features.FeaturesDict, Sequence[dict[str, Any]]]:
  """Opens a split of a dataset prepared as ArrayRecord, for random access, images left encoded.

  Its files alone are read: the code of a builder may need TensorFlow.

  Returns:
    The features, and the examples.

  Raises:
    NotPreparedError: the message says which command prepares it.
    ValueError: there is no such split, or the files have no random access.
  """
  builder = _tfds_builder(name, data_dir)
  features = builder.info.features
  decoders = {
    key: tfds.decode.SkipDecoding()
    for key, feature in features.items()
    if isinstance(feature, tfds.features.Image)
  }
  try:
    return features, builder.as_data_source(split, decoders=decoders)
  except NotImplementedError as error:
    raise ValueError(
      f'dataset {name!r} in {builder.data_dir} is prepared as {builder.info.file_format.value}, '
      'which has no random access; write it again, in another data_dir or after removing that '
      f'folder: {_build_command(name, data_dir)}'
    ) from error
  except ValueError as error:
    raise config_errors.UnknownName(
      f'dataset {name!r} has no split {split!r}; it has {", ".join(builder.info.splits)} and '
      "slices of them such as 'train[:90%]'",
      split,
      builder.info.splits,
    ) from error


def _tfds_builder(
  name: str, data_dir: str | os.PathLike[str] | None
) -> read_only_builder.ReadOnlyBuilder:
  kwargs = {} if data_dir is None else {'data_dir': os.fspath(data_dir)}
  try:
    return read_only_builder.builder_from_files(name, **kwargs)
  except tfds.core.DatasetNotFoundError as error:
    raise NotPreparedError(
      f'dataset {name!r} is not prepared in {os.fspath(data_dir or tfds.core.constants.DATA_DIR)}; '
      f'prepare it with: {_build_command(name, data_dir)}'
    ) from error


def _build_command(name: str, data_dir: str | os.PathLike[str] | None) -> str:
  where = '' if data_dir is None else f' --data_dir={os.fspath(data_dir)}'
  return f'tfds build {name}{where} --file_format=array_record'
