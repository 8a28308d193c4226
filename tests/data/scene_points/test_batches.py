"""Batches of scenes: of one size each, and every array what it says."""

import json
import operator

import numpy as np
import pytest

from crossattn_jax.data.scene_points import batches, sources, targets

EXAMPLES = {
  batches.SCENE_LABELS: batches.SceneLabelExamples,
  batches.SEGMENTATION: batches.SegmentationExamples,
}


def _examples(kind, config, source, monkeypatch, split='train'):
  monkeypatch.setattr(EXAMPLES[kind], 'open_source', staticmethod(lambda *_: source))
  return EXAMPLES[kind](config, split)


@pytest.mark.parametrize('kind', batches.KINDS)
def test_training_batches_are_as_the_spec_says(kind, config, source, monkeypatch):
  examples = _examples(kind, config, source, monkeypatch)
  spec = batches.batch_spec(config, 2, kind)
  seen = set()
  for number, batch in enumerate(examples.train_batches(batch_size=2, seed=0)):
    assert batch.keys() == spec.keys() | {'skipped'}
    bucket = batch['windows'].shape[1]
    seen.add(bucket)
    for name, wanted in spec.items():
      assert batch[name].dtype == wanted.dtype
      assert batch[name].ndim == len(wanted.shape)
    if number == 7:
      break
  assert seen == {640, 2048}


@pytest.mark.parametrize('kind', batches.KINDS)
def test_evaluation_sees_every_scene_once(kind, config, source, monkeypatch):
  examples = _examples(kind, config, source, monkeypatch, 'val')
  found = []
  for batch in examples.eval_batches(batch_size=3):
    found += batch['index'][batch['mask']].tolist()
    assert (batch['index'][~batch['mask']] == -1).all()
  assert sorted(found) == list(range(8))


def test_looks_at_a_scene_share_a_bucket_and_none_is_too_large(config, source, monkeypatch):
  config.evaluation.votes = 3
  config.buckets = ((640, 256, 96, 48, 32),)
  examples = _examples(batches.SEGMENTATION, config, source, monkeypatch, 'val')
  found = examples.buckets()
  assert found[:18] == [(640, 256, 96, 48, 32)] * 18
  bucket, *others = found[18:]
  assert others == [bucket] * 5
  rows = [len(examples.voxels(index, vote).cells) for index in (6, 7) for vote in range(3)]
  assert max(rows) <= bucket[0] <= max(rows) * 9 / 8
  for index in (6, 7):
    row = examples.eval_example(source.scene(index), 3 * index + 2, bucket)
    assert (row['index'], row['vote']) == (index, 2)
    assert row['windows'].shape == (bucket[0], 375)


def test_scenes_are_evaluated_in_four_sizes_at_most(config, source, monkeypatch, caplog):
  config.buckets = *((rows,) * 5 for rows in (8, 9, 10)), (640, 256, 96, 48, 32)
  found = _examples(batches.SEGMENTATION, config, source, monkeypatch, 'val').buckets()
  assert len(set(found)) == 1
  assert all(map(operator.ge, found[0], config.buckets[-1]))
  assert found[0] != config.buckets[-1]
  message = "such as scene 'scene_0006', have more voxels than the largest of dataset.buckets"
  assert message in caplog.text


def test_the_voxels_of_evaluation_are_those_of_its_batches(config, source, monkeypatch):
  config.evaluation.votes = 2
  examples = _examples(batches.SEGMENTATION, config, source, monkeypatch, 'val')
  scene, buckets = source.scene(3), examples.buckets()
  row = examples.eval_example(scene, 7, buckets[7])
  voxels, other = examples.voxels(3, 1), examples.voxels(3, 0)
  count = len(voxels.cells)
  assert count != len(other.cells) or (voxels.cells != other.cells).any()
  np.testing.assert_array_equal(row['labels'][:count], scene.labels[voxels.first])
  assert (row['labels'][count:] == -1).all()
  assert (row['neighbours_0'][13] >= 0).sum() == count
  # The colour of a voxel itself is in the middle of its window.
  middle = row['windows'][:count, 3 * 62 : 3 * 63]
  np.testing.assert_allclose(middle, scene.colors[voxels.first] / 127.5 - 1, atol=1e-6)
  # Every point is in the cell that the transform says, and shares it with the first one of it.
  cells = np.floor(scene.points @ voxels.transform.T)
  np.testing.assert_array_equal(cells - cells.min(axis=0), voxels.cells[voxels.inverse])
  np.testing.assert_array_equal(voxels.inverse[voxels.first], np.arange(count))
  # Twice the same, elsewhere too; upright and of true size if wanted.
  again = _examples(batches.SEGMENTATION, config, source, monkeypatch, 'val').voxels(3, 1)
  np.testing.assert_array_equal(again.cells, voxels.cells)
  config.evaluation.rotate = False
  np.testing.assert_allclose(examples.voxels(3).transform, 10 * np.eye(3))


def test_training_cuts_columns_and_evaluation_refuses(config, source, monkeypatch):
  config.buckets = ((200, 90, 40, 20, 10),)
  examples = _examples(batches.SEGMENTATION, config, source, monkeypatch)
  row = examples.train_example(6, np.random.default_rng(0))
  counts = [(row[f'neighbours_{level}'][13] >= 0).sum() for level in range(5)]
  assert any(count == most for count, most in zip(counts, config.buckets[0], strict=True))
  assert (row['labels'] >= 0).sum() == counts[0]
  with pytest.raises(ValueError, match=r"scene 'scene_0006' .* voxels .*last of dataset.buckets"):
    examples.eval_example(source.scene(6), 6, config.buckets[0])


def test_supervoxels_positions_and_tags(config, source, monkeypatch):
  config.augmentation.shift = 0
  examples = _examples(batches.SCENE_LABELS, config, source, monkeypatch)
  row = examples.train_example(1, np.random.default_rng(0))
  ids = row['supervoxel'][row['supervoxel'] >= 0]
  assert set(ids.tolist()) == {0, 2, 4}
  assert row['num_tokens'] == 5  # Those of 1 and 3 are empty, and there.
  assert not row['position'][[1, 3, 5, 6, 7]].any()
  plain = examples.eval_example(source.scene(1), 1, config.buckets[0])
  voxels = examples.voxels(1)
  for token in (0, 2, 4):
    inside = source.scene(1).supervoxels[voxels.first] == token
    expected = voxels.cells[inside].mean(axis=0)
    np.testing.assert_allclose(plain['position'][token], expected, rtol=1e-5)
  np.testing.assert_array_equal(row['tags'], [1, 1, 1])
  even = examples.train_example(0, np.random.default_rng(0))
  np.testing.assert_array_equal(even['tags'], [1, 1, 0])
  config.augmentation.shift = 100
  moved = examples.train_example(1, np.random.default_rng(0))
  step = (moved['position'] - row['position'])[[0, 2, 4]]
  assert step.max() > 3  # All supervoxels are moved alike, by whole voxels.
  np.testing.assert_allclose(step, np.broadcast_to(np.rint(step[0]), (3, 3)), atol=1e-4)


def test_supervoxels_are_grown_and_counted(config, source, monkeypatch):
  bare = sources.MemorySource([source.scene(1)._replace(supervoxels=None)], config.class_names)
  config.num_views, config.max_supervoxels = 0, 16
  examples = _examples(batches.SCENE_LABELS, config, bare, monkeypatch)
  row = examples.train_example(0, np.random.default_rng(0))
  assert 1 < row['num_tokens'] <= 16
  assert 'images' not in row
  odd = source.scene(1)._replace(supervoxels=np.full(len(source.scene(1).points), -1))
  examples.source = sources.MemorySource([odd], config.class_names)
  with pytest.raises(ValueError, match=r"'scene_0000' .* has a supervoxel -1; their ids count"):
    examples.train_example(0, np.random.default_rng(0))
  examples.source = bare
  config.max_supervoxels = 1
  with pytest.raises(ValueError, match=r'has \d+ supervoxels; set dataset.max_supervoxels=1'):
    examples.train_example(0, np.random.default_rng(0))


def test_photographs_are_of_the_scene_and_in_order(config, source, monkeypatch):
  config.mean, config.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
  examples = _examples(batches.SCENE_LABELS, config, source, monkeypatch)
  seen = [examples.train_example(5, np.random.default_rng(k))['images'] for k in range(8)]
  assert {image[0, 0, 2] for images in seen for image in images} == {50}
  numbers = {tuple((images[:, 0, 0, 0] // 40).astype(int).tolist()) for images in seen}
  assert numbers == {(0, 2), (0, 3), (1, 2), (1, 3)}
  rows = [examples.eval_example(source.scene(5), 5, config.buckets[0]) for _ in range(2)]
  np.testing.assert_array_equal(rows[0]['images'][:, 0, 0, 0], [40, 120])
  np.testing.assert_array_equal(rows[0]['images'], rows[1]['images'])
  images = [[]] * 8
  without = sources.MemorySource([source.scene(k) for k in range(8)], config.class_names, images)
  examples = _examples(batches.SCENE_LABELS, config, without, monkeypatch)
  with pytest.raises(ValueError, match=r"scene 'scene_0005' .* no photographs; set dataset.num_v"):
    examples.train_example(5, np.random.default_rng(0))


def test_few_photographs_are_shown_again():
  np.testing.assert_array_equal(targets.choose_frames(2, 5, None), [0, 0, 0, 1, 1])
  np.testing.assert_array_equal(targets.choose_frames(7, 3, None), [1, 3, 5])
  drawn = [targets.choose_frames(7, 3, np.random.default_rng(k)) for k in range(20)]
  assert {tuple((each // 2).tolist()) for each in drawn} == {(0, 1, 2)}  # The last is not shown.
  assert len(set(targets.choose_frames(3, 5, np.random.default_rng(0)).tolist())) == 3


def test_labels_of_another_run_are_learnt_and_not_evaluated(config, source, monkeypatch, tmp_path):
  config.labels_dir = str(tmp_path)
  with pytest.raises(ValueError, match=r'has no pseudo_labels.json'):
    _examples(batches.SEGMENTATION, config, source, monkeypatch)
  description = tmp_path / 'pseudo_labels.json'
  description.write_text(json.dumps({'class_names': config.class_names}))
  for index, key in enumerate(source.keys[1:], start=1):
    np.savez(
      tmp_path / f'{key}.npz', labels=np.full(len(source.scene(index).points), index % 3 - 1)
    )
  with pytest.raises(ValueError, match=r'no labels of 1 of the 8 scenes, such as .*scene_0000.npz'):
    _examples(batches.SEGMENTATION, config, source, monkeypatch)
  np.savez(tmp_path / 'scene_0000.npz', labels=np.zeros(3))
  examples = _examples(batches.SEGMENTATION, config, source, monkeypatch)
  for index in (1, 2, 3):
    row = examples.train_example(index, np.random.default_rng(0))
    assert set(row['labels'].tolist()) == {-1, index % 3 - 1}
  with pytest.raises(ValueError, match=r'scene_0000.npz.* of other data'):
    examples.train_example(0, np.random.default_rng(0))
  row = examples.eval_example(source.scene(1), 1, config.buckets[0])
  assert set(row['labels'].tolist()) == {-1, 0, 1, 2}
  description.write_text(json.dumps({'class_names': ['floor', 'wall']}))
  with pytest.raises(ValueError, match="added 'box'"):
    _examples(batches.SEGMENTATION, config, source, monkeypatch)


def test_points_without_labels_are_refused_and_tags_suffice(config, source, monkeypatch):
  class Tagged(sources.MemorySource):
    def tags(self, index):
      return np.array([False, True, True])

  bare = Tagged([source.scene(1)._replace(labels=None)], config.class_names)
  config.num_views = 0
  examples = _examples(batches.SEGMENTATION, config, bare, monkeypatch)
  with pytest.raises(ValueError, match=r"'scene_0000' .* no labels of points .*labels_dir"):
    examples.train_example(0, np.random.default_rng(0))
  examples = _examples(batches.SCENE_LABELS, config, bare, monkeypatch)
  row = examples.train_example(0, np.random.default_rng(0))
  np.testing.assert_array_equal(row['tags'], [0, 1, 1])


def test_epochs_repeat_scenes_and_batches_depend_on_the_seed(config, source, monkeypatch):
  config.repeat, config.buckets = 3, config.buckets[1:]
  examples = _examples(batches.SEGMENTATION, config, source, monkeypatch)
  assert examples.steps_per_epoch(4) == 6
  stream = examples.indices(0, 4)
  counts = np.bincount([stream[k] for k in range(24)])
  np.testing.assert_array_equal(counts, 3)
  one, same, other = (examples.train_stream(seed, 4)[5] for seed in (0, 0, 1))
  np.testing.assert_array_equal(one['windows'], same['windows'])
  assert (one['windows'] != other['windows']).any()


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('buckets', ((9, 9, 9, 9, 9), (8, 9, 9, 9, 9)), 'the largest last'),
    ('buckets', ((9, 9, 9),), r'5 numbers of rows \(dataset.num_levels\)'),
    ('voxel_size', 0.0, 'positive number of metres'),
    ('num_views', -1, 'at least 0'),
    ('repeat', 0, 'at least 1'),
  ],
)
def test_wrong_values_are_named(key, value, message, config):
  config[key] = value
  with pytest.raises(ValueError, match=rf'dataset\.{key} must be .*{message}'):
    batches.SceneLabelExamples.check(config)
