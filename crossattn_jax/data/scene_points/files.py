"""Files of scenes: those of `point_files`, and photographs in `.npz` beside the arrays.

These are `frame_00000`, `frame_00001` ...: the bytes of JPEG or PNG files.
"""

from collections.abc import Iterable
import os
import pathlib
import zipfile

import numpy as np

from crossattn_jax.data import pipeline
from crossattn_jax.data.scene_points import point_files

_FRAME = 'frame_{:05d}'


def read(path: str | os.PathLike[str]) -> point_files.Scene:
  """Reads a scene, labels as they are in the file; raises `UnreadableError`, which names it."""
  try:
    return point_files.read(path)
  except (OSError, ValueError) as error:
    raise pipeline.UnreadableError(str(error)) from error


def views(path: pathlib.Path) -> int:
  """Number of photographs in a `.npz` file."""
  with zipfile.ZipFile(path) as file:
    return sum(name.startswith('frame_') for name in file.namelist())


def view(path: pathlib.Path, number: int) -> bytes:
  """The bytes of a photograph in a `.npz` file."""
  with np.load(path) as file:
    return file[_FRAME.format(number)].tobytes()


def write(path: pathlib.Path, scene: point_files.Scene, frames: Iterable[bytes] = ()) -> None:
  """Writes a `.npz` file, which is there as a whole or not at all.

  Args:
    path: of the file.
    scene: what is known of it.
    frames: bytes of photographs.
  """
  arrays = {name: x for name, x in scene._asdict().items() if x is not None}
  for number, data in enumerate(frames):
    arrays[_FRAME.format(number)] = np.frombuffer(data, np.uint8)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'.{path.name}.part{os.getpid()}')
  with part.open('wb') as file:
    np.savez(file, **arrays)
  part.replace(path)
