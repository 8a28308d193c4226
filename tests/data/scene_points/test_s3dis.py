"""S3DIS's files as they are released, in miniature."""

import numpy as np
import pytest

from crossattn_jax.data import pipeline
from crossattn_jax.data.scene_points import s3dis


def _write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(' '.join(map(str, row)) + '\n' for row in rows))


@pytest.fixture
def root(tmp_path):
  for area in (1, 2, 3, 4, 6):
    notes = tmp_path / f'Area_{area}/office_1/Annotations'
    _write(notes / 'chair_1.txt', [(0.1, 0.2, 0.3, 1, 2, 3), (1, 2, area, 4, 5, 6)])
    _write(notes / 'stairs_1.txt', [(9, 9, 9, 7, 8, 255)])
  _write(tmp_path / 'Area_5/lobby_1/lobby_1.txt', [(1, 1, 1, 0, 0, 0)])
  return tmp_path


def test_rooms_of_the_areas_of_a_split(root):
  source = s3dis.S3DIS(root, 'train')
  assert source.keys == tuple(f'Area_{area}/office_1' for area in (1, 2, 3, 4, 6))
  scene = source.scene(4)
  np.testing.assert_allclose(scene.points, [(0.1, 0.2, 0.3), (1, 2, 6), (9, 9, 9)], rtol=1e-6)
  np.testing.assert_array_equal(scene.colors, [(1, 2, 3), (4, 5, 6), (7, 8, 255)])
  np.testing.assert_array_equal(scene.labels, [8, 8, 12])
  np.testing.assert_array_equal(np.flatnonzero(source.tags(4)), [8, 12])
  assert s3dis.S3DIS(root, 'Area_3').keys == ('Area_3/office_1',)
  assert s3dis.S3DIS(root, 'test').scene(0).labels is None


def test_what_is_wrong_is_named(root):
  with pytest.raises(ValueError, match="no split 'val'"):
    s3dis.S3DIS(root, 'val')
  _write(
    root / 'Area_1/office_1/Annotations/chair_1.txt',
    [(0, 0, 0, 1, 2, 3), (0, 0, 0, '18\x105', 2, 3)],
  )
  with pytest.raises(pipeline.UnreadableError, match=r'Area_1/office_1/.*chair_1.txt.*row 1'):
    s3dis.S3DIS(root, 'train').scene(0)
  (root / 'Area_5/lobby_1/lobby_1.txt').unlink()
  with pytest.raises(ValueError, match=r'1 of the 1 rooms .*lobby_1.*Annotations'):
    s3dis.S3DIS(root, 'test')
  (root / 'Area_5/lobby_1').rmdir()
  (root / 'Area_5').rmdir()
  with pytest.raises(ValueError, match="there is no 'Area_5'"):
    s3dis.S3DIS(root, 'test')
