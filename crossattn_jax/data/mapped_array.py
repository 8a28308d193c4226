"""Arrays in files that are larger than what a worker process should be sent."""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np


@dataclasses.dataclass
class MappedArray:
  """A `.npy` file, mapped into memory when it is first looked at; pickled as its path.

  Attributes:
    path: of the file.
  """

  path: pathlib.Path

  @functools.cached_property
  def array(self) -> np.ndarray:
    """What is in the file; pages are read when they are used."""
    return np.load(self.path, mmap_mode='r')

  def __getstate__(self) -> dict[str, Any]:
    # A mapped array would be pickled as a whole.
    return {'path': self.path}
