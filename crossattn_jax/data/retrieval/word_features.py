"""Features of the words of captions, computed before training: of a frozen text encoder.

`SPLIT_words.npy` holds those of all words of a split's captions, one caption after the other, float
`[words, channels]`; `SPLIT_lengths.npy` how many words each caption has, int `[captions]`. There is
no padding, so that the files are as large as what they hold.
"""

from collections.abc import Iterable, Sequence
import os
import pathlib

import numpy as np

from crossattn_jax.data import mapped_array, pipeline


class WordFeatures:
  """Random access to the features of a split's captions; they are mapped into memory.

  Safe to read from threads, picklable.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    split: str,
    *,
    captions: int,
    channels: int,
    max_words: int,
  ):
    """Opens the files of a split.

    Args:
      folder: that holds them.
      split: the beginning of their names.
      captions: number of the split's captions.
      channels: that features should have.
      max_words: that a caption may have.

    Raises:
      ValueError: a file does not exist or is not as it should be.
    """
    features_path, lengths_path = paths = _paths(folder, split)
    for path in paths:
      if not path.is_file():
        raise ValueError(
          f'dataset.word_files={str(folder)!r}: {str(path)!r} does not exist; `python -m '
          'crossattn_jax.tasks.retrieval.words` writes it'
        )
    lengths = np.load(lengths_path)
    if lengths.shape != (captions,) or lengths.dtype.kind not in 'iu':
      raise ValueError(
        f'{str(lengths_path)!r} is an array of {lengths.dtype} of shape {lengths.shape}; expected '
        f'integers [captions], the words of each of the {captions} captions of split {split!r}'
      )
    if captions and not 1 <= lengths.min() <= lengths.max() <= max_words:
      raise ValueError(
        f'{str(lengths_path)!r} has captions of {lengths.min()} to {lengths.max()} words; expected '
        f'at least 1, and at most dataset.max_words={max_words}'
      )
    self._ends = np.cumsum(lengths, dtype=np.int64)
    self._features = mapped_array.MappedArray(features_path)
    words, found = int(lengths.sum()), self._features.array
    if found.shape != (words, channels) or found.dtype.kind != 'f':
      raise ValueError(
        f'{str(features_path)!r} is an array of {found.dtype} of shape '
        f'{found.shape}; expected floats [{words}, {channels}]: all words that '
        f'{lengths_path.name!r} counts, with dataset.word_dim channels'
      )

  def __getitem__(self, caption: int) -> np.ndarray:
    """The words of a caption, float32 `[words, channels]`.

    Raises:
      UnreadableError: values are not finite.
    """
    start = self._ends[caption - 1] if caption else 0
    features = np.asarray(self._features.array[start : self._ends[caption]], np.float32)
    if not np.isfinite(features).all():
      raise pipeline.UnreadableError(
        f'caption {caption}: rows {start} to {self._ends[caption] - 1} of '
        f'{str(self._features.path)!r} have values that are not finite'
      )
    return features


def write_word_features(
  folder: str | os.PathLike[str],
  split: str,
  lengths: Sequence[int],
  captions: Iterable[np.ndarray],
  channels: int,
  dtype: str = 'float32',
) -> tuple[pathlib.Path, pathlib.Path]:
  """Writes the files that `WordFeatures` reads; they appear when they are complete.

  Args:
    folder: an existing one, on a local disk.
    split: the beginning of the files' names.
    lengths: words of each caption.
    captions: features of each, `[words, channels]`, in order.
    channels: of the features.
    dtype: of the file.

  Returns:
    Where features and lengths are.

  Raises:
    ValueError: the features of a caption are not as long as said.
  """
  paths = _paths(folder, split)
  lengths = np.asarray(lengths, np.int32)
  temporary = [path.with_name(f'{path.stem}.{os.getpid()}.tmp.npy') for path in paths]
  try:
    rows = np.lib.format.open_memmap(
      temporary[0], 'w+', dtype=np.dtype(dtype), shape=(int(lengths.sum()), channels)
    )
    start = 0
    for number, (length, features) in enumerate(zip(lengths, captions, strict=True)):
      if features.shape != (length, channels):
        raise ValueError(
          f'caption {number} of split {split!r}: expected features of shape '
          f'({length}, {channels}), not {features.shape}'
        )
      rows[start : start + length] = features
      start += length
    rows.flush()
    np.save(temporary[1], lengths)
    for written, path in zip(temporary, paths, strict=True):
      os.replace(written, path)
  finally:
    for path in temporary:
      path.unlink(missing_ok=True)
  return paths


def _paths(folder: str | os.PathLike[str], split: str) -> tuple[pathlib.Path, pathlib.Path]:
  folder = pathlib.Path(folder)
  return folder / f'{split}_words.npy', folder / f'{split}_lengths.npy'
