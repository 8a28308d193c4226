"""Coloured points in `.ply` and `.npz` files. Needs nothing but numpy and plyfile.

Exported models take this file with them.
"""

import io
import os
from typing import NamedTuple
import zipfile

import numpy as np
import plyfile

EXTENSIONS = ('.ply', '.npz')
# Names of the properties of vertices.
_PLACE = ('x', 'y', 'z')
_COLORS = (
  ('red', 'green', 'blue'),
  ('r', 'g', 'b'),
  ('diffuse_red', 'diffuse_green', 'diffuse_blue'),
)
_LABELS = ('label', 'scalar_label', 'class', 'scalar_class')
# Of faces.
_CORNERS = ('vertex_indices', 'vertex_index')
# Metres from zero from which on 32 bits are coarser than half a millimetre.
_FAR = 8192


class Scene(NamedTuple):
  """Points of a scene, in the order of its file.

  Attributes:
    points: float32 `[points, 3]` in metres, z upwards.
    colors: uint8 `[points, 3]`, RGB.
    labels: int32 `[points]`, -1 where a point has no class that counts; None where nobody labelled.
    supervoxels: int32 `[points]`, ids from 0, not all of which need exist; None where nobody made
      them.
    faces: int32 `[faces, 3]`, rows of points, of a mesh; None of a cloud.
  """

  points: np.ndarray
  colors: np.ndarray
  labels: np.ndarray | None = None
  supervoxels: np.ndarray | None = None
  faces: np.ndarray | None = None


def read(path: str | os.PathLike) -> Scene:
  """Reads a file of coloured points; its labels are as the file has them.

  Points kilometres away from zero, where 32 bits are coarse, count from their least corner.

  Args:
    path: of a `.ply` file, whose vertices have `x y z red green blue` and maybe `label`, or of an
      `.npz` file with the arrays of `Scene`.

  Raises:
    ValueError: the file is neither, or lacks something; names the file and what is expected.
    OSError: it cannot be read.
  """
  suffix = os.path.splitext(os.fspath(path))[1].lower()
  if suffix not in EXTENSIONS:
    raise ValueError(f'{path}: expected a file {" or ".join(EXTENSIONS)} of coloured points')
  try:
    found = _read_ply(path) if suffix == '.ply' else _read_npz(path)
  except (plyfile.PlyParseError, zipfile.BadZipFile, ValueError, EOFError) as error:
    raise ValueError(f'{path} is no {suffix} file: {error}') from error
  points, colors = np.asarray(found.get('points')), np.asarray(found.get('colors'))
  for name, x, expected in (
    ('points', points, '[points, 3] (x, y, z of the vertices)'),
    ('colors', colors, '[points, 3] (red, green, blue of the vertices)'),
  ):
    if x.ndim != 2 or x.shape[1] != 3 or len(x) != len(points):
      shown = 'none' if x.dtype == object else list(x.shape)
      raise ValueError(f'{path}: expected {name} {expected}, got {shown}')
  if not len(points):
    raise ValueError(f'{path} has no points')
  if not np.isfinite(points).all():
    row = int(np.argmin(np.isfinite(points).all(axis=1)))
    raise ValueError(f'{path}: point {row} is not finite: {points[row]}')
  if colors.dtype.kind == 'f' and colors.max() <= 1:
    colors = np.rint(255 * colors)
  if colors.min() < 0 or colors.max() > 255:
    raise ValueError(
      f'{path}: expected colors from 0 to 255, or from 0 to 1 as floats, got {colors.min()} to '
      f'{colors.max()}'
    )
  if np.abs(points).max() > _FAR:
    points = points - np.floor(points.min(axis=0))
  scene = Scene(points.astype(np.float32), colors.astype(np.uint8))
  for name in ('labels', 'supervoxels'):
    if (x := found.get(name)) is not None:
      if x.shape != (len(points),) or (x != np.rint(x)).any():
        raise ValueError(
          f'{path}: expected {name} [{len(points)}], whole numbers, got {x.dtype} {list(x.shape)}'
        )
      scene = scene._replace(**{name: x.astype(np.int32)})
  if (faces := found.get('faces')) is not None:
    scene = scene._replace(faces=faces.astype(np.int32))
  return scene


def _read_npz(path):
  with open(path, 'rb') as file:
    if not zipfile.is_zipfile(file):
      raise ValueError('it is no archive of arrays, as numpy.savez writes them')
  with np.load(path, allow_pickle=False) as arrays:
    return {name: arrays[name] for name in Scene._fields if name in arrays}


def _read_ply(path):
  path = os.fspath(path)
  try:
    # Much faster, for meshes of triangles.
    data = plyfile.PlyData.read(path, known_list_len={'face': {_CORNERS[0]: 3}})
  except plyfile.PlyElementParseError:
    data = plyfile.PlyData.read(path)
  found = {}
  if 'vertex' in data:
    vertices = data['vertex'].data
    names = vertices.dtype.names
    for kind, choices in (('points', (_PLACE,)), ('colors', _COLORS)):
      for columns in choices:
        if set(columns) <= set(names):
          found[kind] = np.stack([vertices[column] for column in columns], axis=1)
    for name in _LABELS:
      if name in names:
        found.setdefault('labels', np.asarray(vertices[name]))
  if 'face' in data:
    faces = data['face'].data
    for name in set(_CORNERS) & set(faces.dtype.names):
      found['faces'] = _triangles(faces[name])
  return found


def _triangles(faces):
  """Faces of any number of corners as triangles `[triangles, 3]`."""
  if faces.ndim == 2:
    return np.asarray(faces)
  fans = [(face[0], *face[k : k + 2]) for face in faces for k in range(1, len(face) - 1)]
  return np.array(fans, np.int32).reshape(-1, 3)


def write_ply(path, scene: Scene) -> None:
  """Writes a binary `.ply` file, which MeshLab and its like show.

  Its vertices have `x y z red green blue`, and `label` if the scene has labels; it has faces if the
  scene has.

  Args:
    path: with a method `write_bytes`, as those of pathlib and of etils.
    scene: whose colours are to be seen.
  """
  columns = dict(zip(_PLACE, np.asarray(scene.points, np.float32).T, strict=True))
  columns |= zip(_COLORS[0], np.asarray(scene.colors, np.uint8).T, strict=True)
  if scene.labels is not None:
    columns[_LABELS[0]] = np.asarray(scene.labels, np.int32)
  vertices = np.empty(len(scene.points), [(name, x.dtype) for name, x in columns.items()])
  for name, x in columns.items():
    vertices[name] = x
  elements = [plyfile.PlyElement.describe(vertices, 'vertex')]
  if scene.faces is not None:
    rows = np.empty(len(scene.faces), [('vertex_indices', np.int32, (3,))])
    rows['vertex_indices'] = scene.faces
    elements.append(plyfile.PlyElement.describe(rows, 'face'))
  buffer = io.BytesIO()
  plyfile.PlyData(elements, byte_order='<').write(buffer)
  path.write_bytes(buffer.getvalue())
