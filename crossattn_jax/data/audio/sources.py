"""Sources of labelled audio: random access to encoded clips by index."""

from collections.abc import Sequence
import io
import math
import os
import pathlib
from typing import Protocol, TypedDict

from etils import epy
import ml_collections
import numpy as np
from scipy.io import wavfile

from crossattn_jax.data import label_tables, pipeline, sources, splits
from crossattn_jax.data.audio import spectrogram
from crossattn_jax.data.scenes import tones

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from scipy import signal

TONES = 'tones'
WAV_FOLDER = 'wav_folder'
# AudioSet's own table of its classes.
CLASS_TABLE = 'class_labels_indices.csv'


class Example(TypedDict):
  """One clip: a .wav file, its classes in ascending order, and a name for messages."""

  audio: bytes
  labels: tuple[int, ...]
  key: str


class Source(Protocol):
  """Random access to the clips of one split; safe to read from threads, picklable.

  Attributes:
    class_names: names of the classes in the order of the labels.
  """

  class_names: tuple[str, ...]

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...

  def labels(self, index: int) -> tuple[int, ...]:
    """The classes of a clip, without its samples."""
    ...


def create_source(
  name: str,
  split: str,
  data_dir: str | os.PathLike[str] | None = None,
  *,
  class_names: Sequence[str] | None = None,
) -> Source:
  """Opens one split of a dataset.

  Args:
    name: 'tones' (synthesised) or 'wav_folder'.
    split: of it; for 'wav_folder' the name of a table in `data_dir`, or a share of its files, see
      `WavFolder`.
    data_dir: the folder of a 'wav_folder'.
    class_names: the classes that the labels of a 'wav_folder' count through, usually those of the
      training split; by default its own.

  Raises:
    ValueError: the dataset, its split or a class does not exist; the message says what does.
  """
  if name == TONES:
    return Tones(split)
  if name == WAV_FOLDER:
    if data_dir is None:
      raise ValueError(f'{WAV_FOLDER!r} needs data_dir: the folder that holds {split}.csv')
    return WavFolder(data_dir, split, class_names)
  # Those of TFDS need TensorFlow, even to be read.
  raise sources.unknown_dataset(name, [TONES, WAV_FOLDER], 'sounds (others as .wav files)')


def complete_splits(config: ml_collections.ConfigDict) -> list[str]:
  """Sets the splits that `config.dataset` leaves open; see `splits.complete`."""
  if config.name != WAV_FOLDER:
    return splits.complete(config, tuple(tones.SIZES))
  if config.data_dir is None:
    raise ValueError(f'{WAV_FOLDER!r} needs dataset.data_dir: the folder of the tables')
  return splits.complete(config, label_tables.find_tables(config.data_dir))


class Tones:
  """The clips of `data.tones`.

  Attributes:
    class_names: see `Source`.
  """

  class_names = tones.CLASS_NAMES

  def __init__(self, split: str):
    if split not in tones.SIZES:
      raise ValueError(f'{TONES!r} has no split {split!r}; it has {", ".join(tones.SIZES)}')
    self._split = split

  def __len__(self) -> int:
    return tones.SIZES[self._split]

  def __getitem__(self, index: int) -> Example:
    samples, labels = tones.clip(self._split, index)
    key = f'{TONES}/{self._split}[{index}]'
    return {'audio': tones.encode(samples), 'labels': labels, 'key': key}

  def labels(self, index: int) -> tuple[int, ...]:
    """The classes of a clip."""
    return tones.labels_of(self._split, index)


class WavFolder:
  """`data_dir/split.csv` with columns `file` and `labels`, and the .wav files that it names.

  The split may be a share of its rows, by the names of the files: see `splits.FolderSplit`.
  Files are relative to `data_dir`; the labels of a clip are joined by commas. They are names of
  classes, or, where AudioSet's `class_labels_indices.csv` lies in `data_dir`, its identifiers
  (`/m/09x0r`) or names, and its order is that of the classes. Otherwise classes are in the order of
  their names.

  Attributes:
    class_names: see `Source`.
  """

  def __init__(
    self, data_dir: str | os.PathLike[str], split: str, class_names: Sequence[str] | None = None
  ):
    known = _class_table(pathlib.Path(data_dir))
    if class_names is None and known:
      class_names = tuple(dict.fromkeys(known.values()))
    self._table = label_tables.LabelTable(data_dir, split, class_names, known)
    self.class_names = self._table.class_names
    self._table.check_files()

  def __len__(self) -> int:
    return len(self._table)

  def __getitem__(self, index: int) -> Example:
    path = self._table.paths[index]
    audio = pathlib.Path(path).read_bytes()
    return {'audio': audio, 'labels': self._table.labels[index], 'key': path}

  def labels(self, index: int) -> tuple[int, ...]:
    """The classes of a clip."""
    return self._table.labels[index]


def _class_table(folder: pathlib.Path) -> dict[str, str]:
  """Identifier -> name and name -> name, in the order of the classes."""
  path = folder / CLASS_TABLE
  if not path.exists():
    return {}
  rows = label_tables.read_table(path, ('index', 'mid', 'display_name'))
  rows.sort(key=lambda row: int(row['index']))
  return {key: row['display_name'] for row in rows for key in (row['mid'], row['display_name'])}


def decode(data: bytes) -> np.ndarray:
  """Decodes a .wav file to mono at 16 kHz: float32 `[samples]`, full scale 1.

  Raises:
    UnreadableError: it is no .wav file, has no samples, or some that are not finite.
  """
  try:
    rate, samples = wavfile.read(io.BytesIO(data))
  except ValueError as error:
    raise pipeline.UnreadableError(f'no readable .wav file ({error})') from error
  if not samples.size:
    raise pipeline.UnreadableError('no samples')
  if not np.isfinite(samples).all():
    raise pipeline.UnreadableError('samples that are not finite')
  if samples.dtype == np.uint8:
    scaled = (samples.astype(np.float32) - 128) / 128
  elif samples.dtype.kind == 'i':
    scaled = samples.astype(np.float32) / -np.float32(np.iinfo(samples.dtype).min)
  else:
    scaled = samples.astype(np.float32)
  if scaled.ndim == 2:
    scaled = scaled.mean(axis=1)
  if rate != spectrogram.SAMPLE_RATE:
    common = math.gcd(rate, spectrogram.SAMPLE_RATE)
    scaled = signal.resample_poly(scaled, spectrogram.SAMPLE_RATE // common, rate // common)
  return scaled.astype(np.float32)
