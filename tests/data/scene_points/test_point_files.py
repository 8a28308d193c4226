"""Files of coloured points: read as written, as others write them, and refused by name."""

import numpy as np
import plyfile
import pytest

from crossattn_jax.data.scene_points import point_files

POINTS = np.array([[0, 0, 0], [1, 0, 0.5], [0, -1, 2], [3, 3, 3]], np.float32)
COLORS = np.array([[0, 128, 255], [1, 2, 3], [255, 255, 255], [9, 8, 7]], np.uint8)
LABELS = np.array([2, -1, 0, 39], np.int32)
FACES = np.array([[0, 1, 2], [1, 2, 3]], np.int32)


@pytest.mark.parametrize('faces', [None, FACES], ids=['cloud', 'mesh'])
def test_what_is_written_is_read(tmp_path, faces):
  path = tmp_path / 'a.ply'
  point_files.write_ply(path, point_files.Scene(POINTS, COLORS, LABELS, faces=faces))
  assert path.read_bytes().startswith(b'ply\nformat binary_little_endian 1.0\n')
  found = point_files.read(path)
  assert found.supervoxels is None
  assert found.points.dtype == np.float32
  assert found.colors.dtype == np.uint8
  np.testing.assert_array_equal(found.points, POINTS)
  np.testing.assert_array_equal(found.colors, COLORS)
  np.testing.assert_array_equal(found.labels, LABELS)
  np.testing.assert_array_equal(found.faces, faces)


def test_arrays_are_read(tmp_path):
  np.savez(tmp_path / 'a.npz', points=POINTS, colors=COLORS / 255, supervoxels=[0, 0, 1, 5])
  found = point_files.read(tmp_path / 'a.npz')
  np.testing.assert_array_equal(found.colors, COLORS)
  np.testing.assert_array_equal(found.supervoxels, [0, 0, 1, 5])
  assert found.labels is found.faces is None


def test_files_of_others_are_read(tmp_path):
  """Text, in double precision, with alpha, and a face of four corners."""
  (tmp_path / 'a.ply').write_text(
    'ply\nformat ascii 1.0\nelement vertex 4\nproperty double x\nproperty double y\n'
    'property double z\nproperty uchar diffuse_red\nproperty uchar diffuse_green\n'
    'property uchar diffuse_blue\nproperty uchar alpha\nelement face 2\n'
    'property list uchar int vertex_index\nend_header\n0 0 0 1 2 3 255\n1 0 0 4 5 6 255\n'
    '1 1 0 7 8 9 255\n0 1 0 1 1 1 255\n3 0 1 2\n4 0 1 2 3\n'
  )
  found = point_files.read(tmp_path / 'a.ply')
  assert found.colors.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1]]
  assert found.faces.tolist() == [[0, 1, 2], [0, 1, 2], [0, 2, 3]]
  assert found.labels is None


def _no_colors(path):
  vertices = np.zeros(2, [('x', 'f4'), ('y', 'f4'), ('z', 'f4')])
  plyfile.PlyData([plyfile.PlyElement.describe(vertices, 'vertex')]).write(str(path))


@pytest.mark.parametrize(
  ('name', 'write', 'message'),
  [
    ('a.ply', lambda path: path.write_bytes(b'no points'), 'a.ply is no .ply file'),
    ('a.npz', lambda path: path.write_bytes(b'no points'), 'a.npz is no .npz file'),
    ('none.npz', lambda path: None, 'No such file'),
    ('a.jpg', lambda path: path.write_bytes(b''), 'expected a file .ply or .npz'),
    ('a.ply', _no_colors, r'expected colors \[points, 3\] \(red, .*got none'),
    ('a.npz', lambda path: np.savez(path, colors=COLORS), 'expected points .*got none'),
    (
      'a.npz',
      lambda path: np.savez(path, points=POINTS + np.inf, colors=COLORS),
      'point 0 is not finite',
    ),
    (
      'a.npz',
      lambda path: np.savez(path, points=POINTS, colors=COLORS * 300.0),
      'from 0 to 255, or from 0 to 1 as floats, got 0.0 to 76500.0',
    ),
    (
      'a.npz',
      lambda path: np.savez(path, points=POINTS, colors=COLORS, labels=[1, 2]),
      r'expected labels \[4\], whole numbers, got int64 \[2\]',
    ),
    (
      'a.npz',
      lambda path: np.savez(path, points=POINTS[:0], colors=COLORS[:0]),
      'a.npz has no points',
    ),
  ],
)
def test_what_is_no_cloud_is_refused(tmp_path, name, write, message):
  write(tmp_path / name)
  with pytest.raises((ValueError, OSError), match=message):
    point_files.read(tmp_path / name)


def test_points_far_from_zero_count_from_their_corner(tmp_path):
  points = np.array([[500_000.001, 3, 0], [500_000.002, 3, 0], [500_001.5, 4, 0]])
  np.savez(tmp_path / 'a.npz', points=points, colors=np.zeros((3, 3), np.uint8))
  expected = [[0.001, 0, 0], [0.002, 0, 0], [1.5, 1, 0]]
  np.testing.assert_allclose(point_files.read(tmp_path / 'a.npz').points, expected, atol=1e-6)
