"""The task learns from voxels and is measured on the points of the files."""

import dataclasses
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import parallel, tasks
from crossattn_jax.data.scene_points import batches, sources
from crossattn_jax.training import loop

NAMES = ('floor', 'wall', 'box', 'lamp')


@dataclasses.dataclass(frozen=True)
class Parts:
  """What an evaluation needs of an experiment."""

  task: Any
  mesh: Any
  config: Any
  eval_step: Any


def evaluate(task, variables, batch_size, devices=1):
  task.config.evaluation.batch_size = batch_size
  mesh = parallel.create_mesh(devices=jax.devices()[:devices])
  step = jax.jit(
    lambda variables, batch: (task.evaluate(variables, batch), batch['mask']),
    out_shardings=parallel.replicated(mesh),
  )
  with jax.set_mesh(mesh):
    return loop.run_evaluation(Parts(task, mesh, task.config, step), variables)


def knowing(variables, batch):
  """Scores of voxels by their labels, more certain of wrong ones from look to look."""
  del variables
  votes, labels = batch['vote'][:, None], batch['labels']
  right = jax.nn.one_hot(labels, 4) * 1.5
  wrong = jax.nn.one_hot((labels + 1) % 3, 4) * votes[..., None]
  return jnp.where(labels[..., None] < 0, jnp.asarray([0, 0, 0, 0.1]), right + wrong)


def expected_iou(rooms, task, votes):
  """IoU of classes, counted point by point."""
  examples, both, either = task.examples('val'), np.zeros(4), np.zeros(4)
  for index, room in enumerate(rooms):
    scores = np.zeros((len(room.points), 4))
    for vote in range(votes):
      voxels = examples.voxels(index, vote)
      for point, row in enumerate(voxels.inverse):
        label = room.labels[voxels.first[row]]
        if label < 0:
          scores[point, 3] += 0.1
        else:
          scores[point, label] += 1.5
          scores[point, (label + 1) % 3] += vote
    found = scores.argmax(axis=1)
    for c in range(4):
      counted = room.labels >= 0
      both[c] += ((room.labels == c) & (found == c) & counted).sum()
      either[c] += (((room.labels == c) | (found == c)) & counted).sum()
  return both / either


@pytest.mark.parametrize('votes', [1, 3])
def test_all_points_count_once_whatever_the_batches(make_task, small_config, rooms, votes, capsys):
  small_config.dataset.evaluation.votes = votes
  task = make_task(small_config)
  task.logits = knowing
  metrics = evaluate(task, {}, 2)
  assert metrics == evaluate(task, {}, 8, devices=8)
  iou = expected_iou(rooms, task, votes)
  # Wrong ones win in the third look only.
  assert iou[0] > 0.5
  assert iou[3] == 0
  assert metrics['mean_iou'] == pytest.approx(iou.mean())
  assert metrics['iou/wall'] == pytest.approx(iou[1])
  assert metrics['examples'] == 3
  assert metrics['mean_accuracy'] > metrics['mean_iou']
  assert {*metrics} - {'examples'} == {*task.metric_modes}
  assert all(map(task.explain, metrics))
  assert next(iter(task.metric_modes)) == 'mean_iou'
  assert re.search(r'^lamp +0\.000\n', capsys.readouterr().err, re.MULTILINE)


def test_an_evaluation_that_was_broken_off_leaves_nothing(make_task, small_config):
  small_config.dataset.evaluation.votes = 2
  task = make_task(small_config)
  task.logits = knowing
  expected = evaluate(task, {}, 2)
  batch = next(iter(task.eval_data(1, 0, 1)))
  rows = jax.device_get(jax.jit(task.evaluate)({}, batch).examples)
  assert task.reduce_examples(rows)['confusion'].shape == (0, 4, 4)
  assert evaluate(task, {}, 2) == expected


def test_scores_that_are_not_finite_and_labels_that_are_none_are_refused(
  make_task, small_config, rooms
):
  task = make_task(small_config)
  task.logits = lambda variables, batch: knowing(variables, batch).at[1, 0].set(jnp.nan)
  with pytest.raises(ValueError, match='not finite, in 1 looks at 3 scenes'):
    evaluate(task, {}, 4)
  task.logits = knowing
  # Padding may hold anything.
  task.logits = lambda variables, batch: knowing(variables, batch).at[:, -1].set(jnp.nan)
  evaluate(task, {}, 4)
  task.examples('val').source._scenes = tuple(
    room._replace(labels=np.full_like(room.labels, -1)) for room in rooms
  )
  with pytest.raises(ValueError, match='none of the points'):
    evaluate(task, {}, 4)
  task.examples('val').source._scenes = tuple(room._replace(labels=None) for room in rooms)
  with pytest.raises(
    ValueError, match=r"scene 'scene_0000' of dataset\.eval_split='val' has no labels"
  ):
    evaluate(task, {}, 4)


def test_without_labels_of_points_those_that_are_learnt_from_are_the_truth(
  small_config, rooms, tmp_path, monkeypatch
):
  bare = sources.MemorySource([room._replace(labels=None) for room in rooms], NAMES)
  monkeypatch.setattr(batches.Examples, 'open_source', staticmethod(lambda *_: bare))
  monkeypatch.setattr(sources, '_find_splits', lambda config: ('train', 'val'))
  for key, room in zip(bare.keys, rooms, strict=True):
    np.savez(tmp_path / f'{key}.npz', labels=room.labels)
  (tmp_path / 'pseudo_labels.json').write_text(json.dumps({'class_names': NAMES}))
  small_config.dataset.labels_dir, small_config.dataset.eval_split = str(tmp_path), None
  assert 'measured by those of dataset.labels_dir' in tasks.complete_config(small_config)[-1]
  assert small_config.dataset.eval_split == 'train'
  task = tasks.create_task(small_config)
  task.check_data()
  np.testing.assert_array_equal(task.examples('train').scene(1).labels, rooms[1].labels)
  small_config.dataset.eval_split = 'val'
  with pytest.raises(ValueError, match=r"eval_split='val' has no labels to measure by; name a"):
    tasks.create_task(small_config).check_data()


def test_the_loss_is_a_mean_over_all_voxels_with_a_class(make_task, small_config):
  small_config.task.class_weights = (1.0, 2.0, 0.0, 1.0)
  task = make_task(small_config)
  batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), task.batch_spec(2))
  batch['labels'] -= 1
  batch['labels'][0, :3], batch['labels'][1, :2] = (0, 1, 2), (1, -1)
  batch['neighbours_0'] -= 1
  batch['neighbours_0'][0, :, :64] = 1
  logits = jnp.zeros((2, 256, 4)).at[0, 1, 1].set(2.0)
  task.forward = lambda *args: ((logits, {}), {})
  loss, (reported, _) = jax.jit(task.loss, static_argnums=3)({}, batch, jax.random.key(0), True)
  sure = np.log(np.exp(2) + 3) - 2
  assert loss == pytest.approx((np.log(4) + 2 * sure + 2 * np.log(4)) / 5)
  assert reported['accuracy'] == pytest.approx(2 / 4)
  rows = 2 * np.array([256, 96, 32, 16, 16])
  assert reported['padding'] == pytest.approx(1 - (64 + rows[1:].sum()) / rows.sum())


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('task.evaluation.absent_classes', 'none', "absent_classes='none' is not one of zero, skip"),
    ('task.class_weights', (1.0,), 'class_weights has 1 entries'),
    ('model.num_classes', 7, 'set config.model.num_classes=4'),
    ('model', {'name': 'swiftformer_xs'}, "list_models('minkunet*') shows what does"),
  ],
)
def test_what_does_not_belong_together_is_refused(small_config, key, value, message):
  with small_config.unlocked(), small_config.ignore_type():
    if key == 'model':
      small_config.model = value
    else:
      small_config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=re.escape(message)):
    tasks.create_task(small_config)


def test_without_data_classes_are_counted_by_the_model(small_config):
  small_config.dataset.class_names = ()
  small_config.task.class_weights = (1.0,) * 4
  assert tasks.create_task(small_config).class_names == ('0', '1', '2', '3')
