"""What `--input` names where a task predicts for pairs of a visible and an infrared image."""

import collections
from collections.abc import Sequence
from typing import ClassVar

from etils import epath

from crossattn_jax.data import pairing
from crossattn_jax.data import sources as files_lib
from crossattn_jax.tasks import predictor


class PairInputs:
  """The inputs of a `FilePredictor` whose inputs are pairs of files, the visible one first."""

  expected: ClassVar[str] = (
    f'a folder with one folder of visible images ({", ".join(pairing.VISIBLE_FOLDERS)}) and one of '
    f'infrared images ({", ".join(pairing.INFRARED_FOLDERS)}), or VISIBLE,INFRARED: two folders or '
    'two files'
  )
  fields: ClassVar[Sequence[predictor.Field]] = (
    predictor.Field('visible', 'image', 'Visible image'),
    predictor.Field('infrared', 'image', 'Infrared image of the same scene'),
  )

  @classmethod
  def find_inputs(
    cls, given: epath.Path, apart_from: epath.Path | None = None
  ) -> tuple[list[predictor.Input], collections.Counter[str]]:
    """The pairs, whose files are named equally below both folders.

    Args:
      given: as `expected` says.
      apart_from: unused: results lie in none of the two folders.

    Returns:
      The pairs, and how many other files there are, by their extension.

    Raises:
      FileNotFoundError: there are no such files.
      ValueError: it is none of these, or an image has no partner.
    """
    parts = [epath.Path(part) for part in str(given).split(',')]
    for part in parts:
      if not part.exists():
        raise FileNotFoundError(f'--input={given}: {part} does not exist; expected {cls.expected}')
    if len(parts) == 1 and parts[0].is_dir():
      parts = list(pairing.find_folders(parts[0]) or ())
    if len(parts) != 2 or parts[0].is_dir() != parts[1].is_dir():
      raise ValueError(f'--input={given}: expected {cls.expected}')
    if not parts[0].is_dir():
      return [predictor.Input(parts[0].stem, tuple(map(str, parts)))], collections.Counter()
    found, left_out = zip(*map(files_lib.find_files, parts), strict=True)
    pairs = pairing.pair_files(*found, *parts)
    if not pairs:
      raise FileNotFoundError(f'--input={given}: no images in {parts[0]} and {parts[1]}')
    inputs = [
      predictor.Input(predictor.relative_name(pair[0], parts[0]), tuple(map(str, pair)))
      for pair in pairs
    ]
    return inputs, left_out[0] + left_out[1]
