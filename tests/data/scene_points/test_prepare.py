"""Preparing data sets, and how large batches of them should be."""

import shutil

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data import pipeline
from crossattn_jax.data.scene_points import buckets, folder, point_files, prepare, sources


@pytest.fixture
def root(tmp_path, room):
  root = tmp_path / 'own'
  for split, names in {'train': 'ab', 'val': 'c'}.items():
    for name in names:
      (root / split / name / 'images').mkdir(parents=True)
      point_files.write_ply(root / split / f'{name}.ply', room)
      for number in range(2):
        Image.new('RGB', (20, 10), (9 * number, 0, 0)).save(
          root / split / name / f'images/{number}.png'
        )
  (root / 'classes.txt').write_text('floor\nwall\nbox\n')
  return root


def test_a_prepared_folder_is_the_same_data_set(root, tmp_path, room, config, capsys):
  args = ['--name=point_folder', f'--data_dir={root}', f'--output={tmp_path / "ready"}']
  args += ['--image_size=6,8', '--workers=2']
  assert prepare.main(args) == 0
  # Again: what is there stays.
  path = tmp_path / 'ready/train/a.npz'
  before = path.stat().st_mtime_ns
  (tmp_path / 'ready/train/b.npz').unlink()
  assert prepare.main(args) == 0
  assert path.stat().st_mtime_ns == before
  for name in ('point_folder', 'scannet'):
    config.update(name=name, data_dir=str(tmp_path / 'ready'), train_split=None, eval_split=None)
    sources.complete(config)
    assert (config.train_split, config.eval_split) == ('train', 'val')
    source = sources.open_source(config, 'train')
    assert source.keys == ('a', 'b')
    scene = source.scene(1)
    np.testing.assert_array_equal(scene.points, room.points)
    np.testing.assert_array_equal(scene.labels, room.labels)
    assert scene.supervoxels.max() > 0
    assert source.views(1) == 2
    assert source.view(1, 1).size == (8, 6)
    assert abs(source.view(1, 1).getpixel((4, 3))[0] - 9) <= 2
  assert not [path for path in (tmp_path / 'ready').rglob('*') if '.part' in path.name]


def test_tags_of_scenes_without_labels_come_along(root, tmp_path, room):
  point_files.write_ply(root / 'val/c.ply', room._replace(labels=None))
  (root / 'tags.csv').write_text('c,box,floor\n')
  assert (
    prepare.main(['--name=point_folder', f'--data_dir={root}', f'--output={tmp_path / "x"}']) == 0
  )
  source = folder.open_split(tmp_path / 'x', 'val')
  assert source.scene(0).labels is None
  assert source.tags(0).tolist() == [True, False, True]


def test_splits_are_prepared_whole(root, tmp_path):
  shutil.rmtree(root / 'val')  # A run then holds out a share of the others.
  assert (
    prepare.main(['--name=point_folder', f'--data_dir={root}', f'--output={tmp_path / "x"}']) == 0
  )
  assert sorted(path.name for path in (tmp_path / 'x').iterdir()) == ['classes.txt', 'train']
  assert folder.open_split(tmp_path / 'x', 'train').keys == ('a', 'b')


def test_scenes_that_cannot_be_read_are_named_at_the_end(root, tmp_path, capsys):
  (root / 'train/a.ply').write_bytes(b'ply')
  args = ['--name=point_folder', f'--data_dir={root}', f'--output={tmp_path / "ready"}']
  assert prepare.main(args) == 1
  assert 'cannot read a: ' in capsys.readouterr().err
  assert folder.open_split(tmp_path / 'ready', 'train').keys == ('b',)


def test_wrong_arguments_end_with_a_sentence(root, tmp_path):
  with pytest.raises(SystemExit, match=r'needs dataset\.data_dir'):
    prepare.main(['--name=scannet', f'--output={tmp_path}'])
  (tmp_path / 'ready').mkdir()
  (tmp_path / 'ready/classes.txt').write_text('cat\n')
  with pytest.raises(SystemExit, match='scenes of other classes'):
    prepare.main(['--name=point_folder', f'--data_dir={root}', f'--output={tmp_path / "ready"}'])


def test_a_broken_photograph_is_named(root):
  (root / 'train/a/images/0.png').write_bytes(b'x')
  with pytest.raises(pipeline.UnreadableError, match=r'a/images/0\.png'):
    folder.open_split(root, 'train').view(0, 0)


def test_recommended_buckets_hold_the_scenes_with_little_padding():
  rng = np.random.default_rng(0)
  size = rng.lognormal(10, 0.5, 200)
  rows = np.stack([size, size / 3, size / 12, size / 50, size / 200], axis=1).astype(int) + 1
  found = [buckets.recommend(rows, count) for count in (1, 2, 3, 4)]
  assert [len(each) for each in found] == [1, 2, 3, 4]
  wastes = [buckets.waste(rows, each) for each in found]
  assert all(too_large == 0 for _, too_large in wastes)
  shares = [share for share, _ in wastes]
  assert shares == sorted(shares, reverse=True)
  assert shares[-1] < 0.3 < shares[0]
  assert buckets.waste(rows, buckets.recommend(rows, 2, percentile=90.0))[1] <= 0.11


def test_the_command_prints_buckets(root, capsys):
  buckets.main(['--name=point_folder', f'--data_dir={root}', '--voxel_size=0.1'])
  printed = capsys.readouterr().out
  assert '2 scenes' in printed
  assert 'dataset.buckets=((' in printed
