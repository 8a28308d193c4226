"""Splits of data sets that do not come with them: shares of a folder, by the names of its files."""

from collections.abc import Sequence
import dataclasses
import hashlib
import os
import re
import unicodedata

import ml_collections

from crossattn_jax.data import sources

# What people call the part that a model is evaluated on, the usual one first.
EVALUATION_NAMES = ('val', 'validation', 'valid', 'test')
TRAINING_NAMES = ('train', 'training')

_EXPRESSION = re.compile(
  r'(?P<name>[^\[\]]*)(\[((?P<start>\d+(\.\d+)?)%)?:((?P<stop>\d+(\.\d+)?)%)?\])?'
)
_HASH_BYTES = 8


@dataclasses.dataclass(frozen=True)
class FolderSplit:
  """A share of the files of a folder: 'train', 'train[:90%]', '.[90%:]'.

  Which files are in a share depends on a hash of their paths below the folder alone: on every
  machine the same, and the same still when other files come or go. A share of 10 % therefore has
  about a tenth of the files.

  Attributes:
    name: of the folder, or of the table that lists the files.
    start: of the share, in percent.
    stop: of the share, in percent.
  """

  name: str
  start: float = 0.0
  stop: float = 100.0

  @classmethod
  def parse(cls, split: str) -> 'FolderSplit':
    """Reads a split expression, as TFDS has them, of percentages.

    Raises:
      ValueError: it is none.
    """
    match = _EXPRESSION.fullmatch(split)
    start, stop = (float(match['start'] or 0), float(match['stop'] or 100)) if match else (0, 0)
    if not 0 <= start < stop <= 100:
      raise ValueError(
        f'split {split!r} is not a name with or without a share in percent, such as '
        "'train', 'train[:90%]' or '.[90%:]'"
      )
    return cls(match['name'], start, stop)

  def has(self, path: str) -> bool:
    """Whether a file, by its path below the folder, is in the share."""
    if (self.start, self.stop) == (0, 100):
      return True
    return self.start <= 100 * position(path) < self.stop


def position(name: str) -> float:
  """A number in [0, 1) for a name, such as a path below a folder: the same on every machine."""
  # Systems differ in the form in which they keep accents, and in what separates folders.
  name = unicodedata.normalize('NFC', name.replace(os.sep, '/')).encode(errors='surrogateescape')
  digest = hashlib.blake2b(name, digest_size=_HASH_BYTES).digest()
  return int.from_bytes(digest, 'big') / 256**_HASH_BYTES


def empty_share(
  split: str, folder: str | os.PathLike[str], count: int, kind: str = 'images'
) -> ValueError:
  """The error for a share in which none of the `count` files of a folder is."""
  name = FolderSplit.parse(split).name
  return ValueError(
    f'split {split!r} of {os.fspath(folder)!r} has none of the {count} {kind}: take another share '
    f"of them, such as '{name}[:50%]' and '{name}[50%:]'"
  )


def complete(
  config: ml_collections.ConfigDict, available: Sequence[str], whole: str | None = None
) -> list[str]:
  """Sets `train_split` and `eval_split` of `config.dataset` where they are None.

  They are the splits that are called so, in any case of letters. Where there is none to evaluate
  on, a tenth of the training split is held out.

  Args:
    config: `config.dataset`.
    available: names of the splits that there are.
    whole: the split of all examples, where a data set can be without splits.

  Returns:
    What was chosen, for the person at the terminal.

  Raises:
    ValueError: which split is to be trained on is not clear.
  """
  by_name = {name.lower(): name for name in available}
  training, evaluation = (
    next((by_name[name] for name in names if name in by_name), None)
    for names in (TRAINING_NAMES, EVALUATION_NAMES)
  )
  where = f'{config.name!r}' if config.data_dir is None else repr(str(config.data_dir))
  train, held_out = config.train_split, config.eval_split
  if train is None:
    if training is None and (whole is None or evaluation is not None or held_out is not None):
      instead = f"; if these are classes, to '{whole}[:90%]' and '{whole}[90%:]'" if whole else ''
      raise ValueError(
        f"{where} has no split 'train', but {sources.shown(available) or 'none at all'}; set "
        f'dataset.train_split and dataset.eval_split{instead}'
      )
    train = whole if training is None else training
  if held_out is None:
    held_out = evaluation
  if held_out is None and '[' in train:
    raise ValueError(f'set dataset.eval_split: there is none in {where} beside {train!r}')
  if held_out is None:
    train, held_out = f'{train}[:90%]', f'{train}[90%:]'
  config.train_split, config.eval_split = train, held_out
  return [f'splits of {where}: {train!r} for training, {held_out!r} for evaluation']
