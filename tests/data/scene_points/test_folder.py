"""Scenes of one's own: what is in the folder, and what is wrong with it by name."""

import io
import pickle

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data import pipeline
from crossattn_jax.data.scene_points import batches, files, folder, point_files, sources

NAMES = ('floor', 'wall', 'box')


def _jpeg(level):
  file = io.BytesIO()
  Image.new('RGB', (16, 12), (level,) * 3).save(file, 'jpeg')
  return file.getvalue()


@pytest.fixture
def root(tmp_path, room):
  """A `.ply` with photographs beside it, a `.npz` with them inside, and one without labels."""
  (tmp_path / 'classes.txt').write_text('\n'.join(NAMES) + '\n')
  (tmp_path / 'train/upstairs').mkdir(parents=True)
  point_files.write_ply(tmp_path / 'train/upstairs/a.ply', room)
  images = tmp_path / 'train/upstairs/a/images'
  images.mkdir(parents=True)
  for level in (10, 200):
    (images / f'{level:03d}.jpg').write_bytes(_jpeg(level))
  files.write(tmp_path / 'train/b.npz', room, [_jpeg(level) for level in (0, 50, 250)])
  files.write(tmp_path / 'val/c.npz', room._replace(labels=None, supervoxels=None))
  return tmp_path


def test_scenes_photographs_and_labels(root, room):
  source = pickle.loads(pickle.dumps(folder.open_split(root, 'train')))
  assert source.keys == ('b', 'upstairs/a')
  assert [source.views(index) for index in (0, 1)] == [3, 2]
  levels = [
    [int(np.asarray(source.view(i, k)).mean()) for k in range(source.views(i))] for i in (0, 1)
  ]
  np.testing.assert_allclose(levels[0] + levels[1], [0, 50, 250, 10, 200], atol=1)
  for index in (0, 1):
    scene = source.scene(index)
    for name in ('points', 'colors', 'labels'):
      np.testing.assert_array_equal(getattr(scene, name), getattr(room, name))
    assert (scene.supervoxels is None) == (index == 1)
    np.testing.assert_array_equal(source.tags(index), [True, True, True])


def test_splits_are_folders_or_lists(root, config):
  assert folder.find_splits(root) == ['train', 'val']
  (root / 'night.txt').write_text('train/b\nval/c\n')
  assert folder.find_splits(root) == ['night', 'train', 'val']
  assert folder.open_split(root, 'night').keys == ('train/b', 'val/c')
  config.update(name='point_folder', data_dir=str(root), train_split=None, eval_split=None)
  config.class_names = ()
  notes = sources.complete(config)
  assert (config.train_split, config.eval_split, config.class_names) == ('train', 'val', NAMES)
  assert len(notes) == 2
  assert len(sources.open_source(config, 'train')) == 2


def test_tags_stand_in_for_labels(root):
  source = folder.open_split(root, 'val')
  with pytest.raises(ValueError, match=r"'c'.*tags.json or tags.csv"):
    source.tags(0)
  (root / 'tags.csv').write_text('c, wall, box\n')
  np.testing.assert_array_equal(folder.open_split(root, 'val').tags(0), [False, True, True])
  (root / 'tags.csv').write_text('c, wal\n')
  with pytest.raises(ValueError, match="did you mean 'wall'"):
    folder.open_split(root, 'val')


def test_what_is_wrong_is_named(root, room, config):
  with pytest.raises(ValueError, match="no split 'test', but 'train', 'val'"):
    folder.open_split(root, 'test')
  (root / 'late.txt').write_text('train/x\n')
  with pytest.raises(ValueError, match=r"'train/x', but there is no .*train/x.ply"):
    folder.open_split(root, 'late')
  files.write(root / 'bad/d.npz', room._replace(labels=room.labels + 1))
  with pytest.raises(pipeline.UnreadableError, match=r'd.npz.* label 3, but labels of the 3'):
    folder.open_split(root, 'bad').scene(0)
  (root / 'classes.txt').unlink()
  with pytest.raises(ValueError, match=r'classes.txt.* does not exist: write a name'):
    folder.open_split(root, 'train')
  config.update(name='point_foldr', data_dir=str(root))
  with pytest.raises(ValueError, match="did you mean 'point_folder'"):
    sources.open_source(config, 'train')


def test_damaged_files_are_unreadable(tmp_path):
  for name, data in {'a.npz': b'PK\x03\x04', 'b.ply': b'ply\nformat'}.items():
    (tmp_path / name).write_bytes(data)
    with pytest.raises(pipeline.UnreadableError, match=name):
      files.read(tmp_path / name)


def test_an_unlabelled_scene_is_predicted_for(root, config):
  source = folder.open_file(root / 'val/c.npz', NAMES)
  config.num_views, config.max_supervoxels = 0, 16
  examples = batches.SceneLabelExamples(config, 'input', source)
  row = examples.eval_example(examples.scene(0), 0, examples.buckets()[0])
  assert row['num_tokens'] > 1
  assert not row['tags'].any()
