"""Folders of aligned RGB and thermal images with files of the objects of each pair."""

from collections.abc import Sequence
import pathlib

WHOLE = '.'


class PairFolder:
  """Pairs of image files and the files of their objects: a `sources.Source`."""

  def __init__(
    self, root: pathlib.Path, split: str, class_names: Sequence[str] = (), upright: bool = True
  ):
    raise NotImplementedError


def find_splits(root: pathlib.Path) -> list[str]:
  """Names of the splits of a folder."""
  raise NotImplementedError
