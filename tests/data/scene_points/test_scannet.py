"""ScanNet's files as they are released, in miniature."""

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data import pipeline
from crossattn_jax.data.scene_points import point_files, scannet, sources


def _write_scan(root, name, room, values, folder='scans'):
  scan = root / folder / name
  scan.mkdir(parents=True)
  kinds = ('.ply', '.labels.ply') if folder == 'scans' else ('.ply',)
  for kind in kinds:
    point_files.write_ply(scan / f'{name}_vh_clean_2{kind}', room._replace(labels=values))


@pytest.fixture
def root(tmp_path, room):
  values = np.resize([1, 2, 39, 40, 0, 13, 36], len(room.points))
  for name in ('scene0000_00', 'scene0001_00'):
    _write_scan(tmp_path, name, room, values)
  _write_scan(tmp_path, 'scene0707_00', room, values, 'scans_test')
  (tmp_path / 'scannetv2_train.txt').write_text('scene0000_00\nscene0001_00\n')
  (tmp_path / 'scannetv2_test.txt').write_text('scene0707_00\n')
  frames = tmp_path / 'scans/scene0000_00/color'
  frames.mkdir()
  for number in (0, 5, 20, 100, 40):
    Image.new('RGB', (8, 6), (number,) * 3).save(frames / f'{number}.png')
  return tmp_path


def test_nyu40_ids_become_classes_and_every_20th_frame_is_taken(root, room):
  source = scannet.ScanNet(root, 'train')
  scene = source.scene(0)
  np.testing.assert_array_equal(scene.points, room.points)
  np.testing.assert_array_equal(scene.colors, room.colors)
  np.testing.assert_array_equal(scene.labels[:7], [0, 1, 19, -1, -1, -1, 18])
  assert scene.supervoxels is None
  assert (source.views(0), source.views(1)) == (4, 0)
  assert [source.view(0, k).getpixel((0, 0))[0] for k in range(4)] == [0, 20, 40, 100]
  np.testing.assert_array_equal(np.flatnonzero(source.tags(0)), [0, 1, 18, 19])


def test_supervoxels_of_files_and_scans_of_the_test(root, room):
  (root / 'supervoxels').mkdir()
  np.save(root / 'supervoxels/scene0001_00.npy', np.arange(len(room.points)) % 9)
  source = scannet.ScanNet(root, 'train')
  np.testing.assert_array_equal(source.scene(1).supervoxels, np.arange(len(room.points)) % 9)
  np.save(root / 'supervoxels/scene0001_00.npy', np.arange(3))
  with pytest.raises(pipeline.UnreadableError, match=r'scene0001_00.npy.* shape \(3,\)'):
    source.scene(1)
  for split in ('test', 'test[:100%]'):
    assert scannet.ScanNet(root, split).scene(0).labels is None
  with pytest.raises(ValueError, match='nobody knows which classes'):
    scannet.ScanNet(root, 'test').tags(0)


def test_missing_files_are_named(root):
  (root / 'scans/scene0001_00/scene0001_00_vh_clean_2.labels.ply').unlink()
  with pytest.raises(ValueError, match=r'1 of the 4 files .*scene0001_00_vh_clean_2.labels.ply'):
    scannet.ScanNet(root, 'train')
  with pytest.raises(ValueError, match=r'scannetv2_val.txt.* does not exist'):
    scannet.ScanNet(root, 'val')


def test_the_config_is_completed(root, config):
  config.update(name='scannet', data_dir=str(root), train_split=None, eval_split=None)
  config.class_names = ()
  sources.complete(config)
  assert (config.train_split, config.eval_split) == ('train', 'val')
  assert config.class_names == scannet.CLASS_NAMES
  assert config.class_values[-3:] == (34, 36, 39)
