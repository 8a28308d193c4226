"""Coloured point clouds and meshes as `.ply` files, which MeshLab and its like show."""

import io

from etils import epath
import numpy as np
import plyfile


def write(
  path: epath.Path,
  points: np.ndarray,
  colors: np.ndarray,
  labels: np.ndarray,
  faces: np.ndarray | None = None,
) -> None:
  """Writes a binary file whose vertices have `x y z red green blue label`.

  Args:
    path: of the file; it may be in a bucket.
    points: `[points, 3]`.
    colors: uint8 `[points, 3]`, of what is to be seen.
    labels: integers `[points]`.
    faces: `[faces, 3]` rows of points, or None.
  """
  names = ('x', 'y', 'z', 'red', 'green', 'blue', 'label')
  columns = [*np.asarray(points, np.float32).T, *np.asarray(colors, np.uint8).T]
  columns.append(np.asarray(labels, np.int32))
  types = [(name, column.dtype) for name, column in zip(names, columns, strict=True)]
  vertices = np.empty(len(points), types)
  for name, column in zip(names, columns, strict=True):
    vertices[name] = column
  elements = [plyfile.PlyElement.describe(vertices, 'vertex')]
  if faces is not None:
    rows = np.empty(len(faces), [('vertex_indices', np.int32, (3,))])
    rows['vertex_indices'] = faces
    elements.append(plyfile.PlyElement.describe(rows, 'face'))
  buffer = io.BytesIO()
  plyfile.PlyData(elements, byte_order='<').write(buffer)
  path.write_bytes(buffer.getvalue())
