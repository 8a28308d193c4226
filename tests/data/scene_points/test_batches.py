"""Batches of scenes: of one size each, and every array what it says."""

import pytest

from crossattn_jax.data.scene_points import batches

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
