"""What is said of scenes is measured, and written as labels for another model."""

import dataclasses
import json
import re
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import parallel, tasks
from crossattn_jax.data.scene_points import batches, sources
from crossattn_jax.tasks.scene_labels import pseudo_labels
from crossattn_jax.training import loop

# The class of each supervoxel of the scenes; the fourth has no point, the last does not exist.
TRUTH = np.array([0, 0, 1, 2, 1, 2, 2, 0])


class Knowing:
  """A network that finds the classes of supervoxels in its variables."""

  num_classes, num_views, encoder_depth, points_widths = 3, 2, 0, (8,)

  def apply(self, variables, windows, levels, supervoxel, num_tokens, position, images, **_):
    del windows, levels, num_tokens, position, images
    held = (supervoxel[..., None] == jnp.arange(8)).any(axis=1)
    held = (held[..., None] & (TRUTH[:, None] == jnp.arange(3))).any(axis=1)
    cams = jnp.broadcast_to(variables['cams'], (len(supervoxel), 8, 3))
    logits = variables['sign'] * jnp.where(held, 5.0, -5.0)
    return {'cross_logits': logits, 'cams': cams}, {}


@dataclasses.dataclass(frozen=True)
class Parts:
  """What an evaluation needs of an experiment."""

  task: Any
  mesh: Any
  config: Any
  eval_step: Any


@pytest.fixture
def task(make_task, small_config):
  config = small_config()
  config.dataset.evaluation.rotate = False
  task = make_task(config)
  task.model = Knowing()
  return task


def parts_of(task, batch_size, devices=1):
  task.config.evaluation.batch_size = batch_size
  mesh = parallel.create_mesh(devices=jax.devices()[:devices])
  step = jax.jit(
    lambda variables, batch: (task.evaluate(variables, batch), batch['mask']),
    out_shardings=parallel.replicated(mesh),
  )
  return Parts(task, mesh, task.config, step)


def evaluate(task, variables, *sizes):
  parts = parts_of(task, *sizes)
  with jax.set_mesh(parts.mesh):
    return loop.run_evaluation(parts, variables)


def test_who_knows_all_is_right_everywhere_on_any_number_of_devices(task):
  variables = {'cams': jnp.eye(3)[TRUTH], 'sign': 1.0}
  metrics = evaluate(task, variables, 3)
  assert metrics == pytest.approx(evaluate(task, variables, 8, 8), rel=1e-6)
  assert metrics['examples'] == 8
  assert metrics['pseudo_miou'] == metrics['iou/box'] == metrics['labelled'] == 1
  assert metrics['mean_average_precision'] == metrics['tag_accuracy'] == 1
  assert metrics['loss'] == pytest.approx(np.log1p(np.exp(-5)))
  assert {*metrics} - {'examples'} == {*task.metric_modes}
  assert all(map(task.explain, metrics))
  assert next(iter(task.metric_modes)) == 'pseudo_miou'


def test_what_has_no_label_is_wrong_and_what_a_scene_does_not_hold_is_none(task):
  cams = np.eye(3)[TRUTH]
  cams[1] = [0.2, 0.4, 0.4]  # One half of the floors shows none, and no more than the other half.
  cams[5] = [0.0, 1.0, 0.3]  # One half of the boxes shows a wall.
  metrics = evaluate(task, {'cams': jnp.asarray(cams), 'sign': -1.0}, 8)
  assert metrics['iou/floor'] == 0.5
  # Walls are in half of the scenes with boxes; where they are not, that half has no label.
  points = 8
  assert metrics['iou/box'] == 0.5
  walls, wrong = 4 * 112, 2 * points
  assert metrics['iou/wall'] == pytest.approx(walls / (walls + wrong))
  assert metrics['pseudo_miou'] == pytest.approx((1 + metrics['iou/wall']) / 3)
  (table,) = task.summary(metrics)
  assert re.search(f'wall +{metrics["iou/wall"]:.3f}', table)
  assert metrics['tag_accuracy'] == 0
  with pytest.raises(ValueError, match='not finite for 8 of 8 scenes'):
    evaluate(task, {'cams': jnp.asarray(cams), 'sign': jnp.nan}, 8)


def test_labels_are_written_once_and_continued(task, scenes, tmp_path):
  folder, origin = epath.Path(tmp_path / 'labels'), {'weights': 7}
  parts, variables = parts_of(task, 3), {'cams': jnp.eye(3)[TRUTH], 'sign': 1.0}

  def add(labels, most):
    batches = labels.examples.eval_batches(batch_size=3, indices=labels.pending)
    for _, batch in zip(range(most), batches, strict=False):
      batch.pop('skipped')
      evaluation, mask = jax.device_get(parts.eval_step(variables, batch))
      labels.add({name: x[mask] for name, x in evaluation.examples.items()})

  with jax.set_mesh(parts.mesh):
    labels = task.Labels(task, folder, origin)
    assert labels.pending == list(range(8))
    add(labels, 1)
    (folder / 'room_4.npz.part').write_bytes(b'half a file')
    labels = task.Labels(task, folder, origin)
    assert labels.pending == [3, 4, 5, 6, 7]
    assert labels.finish()['scenes'] == 3  # As if the others could not be read.
    add(labels, 9)
  results = labels.finish()
  assert results['pseudo_miou'] == 1
  assert results['scenes'] == 8
  description = json.loads((folder / 'pseudo_labels.json').read_text())
  assert description['metrics'] == results
  assert description['class_names'] == ['floor', 'wall', 'box']
  for index, key in enumerate(scenes.keys):
    found = np.load(folder / f'{key}.npz')['labels']
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, scenes.scene(index).labels)
  assert not task.Labels(task, folder, origin).pending
  with pytest.raises(ValueError, match=r'has labels with weights=7, these would be with weights=8'):
    task.Labels(task, folder, {'weights': 8})


def test_scenes_without_truth_are_labelled_too(task, scenes):
  examples = task.examples('train')
  (batch,) = examples.eval_batches(batch_size=8)
  said = {name: batch[name][0] for name in ('index', 'tags', 'supervoxel', 'num_tokens')}
  said['cams'] = np.eye(3)[TRUTH]
  options = task.config.task.pseudo_labels
  _, labels = pseudo_labels.of_scene(said, examples, options)
  np.testing.assert_array_equal(labels, scenes.scene(0).labels)
  # The authors' classes of all scenes of a batch: the first supervoxel gets those that lack.
  options.together = 4
  _, labels = pseudo_labels.of_scene(said, examples, options)
  first = scenes.scene(0).supervoxels == 0
  assert set(labels[first]) == {1}  # Of the sets (0), (1), (2), (0, 1).
  assert pseudo_labels.metrics_of(np.zeros((4, 4), int), task.class_names) == {}


@pytest.mark.parametrize('labelled', [True, False])
def test_tags_decide_what_is_best_where_points_have_no_labels(
  small_config, scenes, monkeypatch, labelled
):
  scene = scenes.scene(6) if labelled else scenes.scene(6)._replace(labels=None)
  source = sources.MemorySource([scene], scenes.class_names)
  monkeypatch.setattr(batches.SceneLabelExamples, 'open_source', staticmethod(lambda *_: source))
  config = small_config()
  notes = tasks.complete_config(config)
  chosen = config.checkpoint.best_metric
  assert chosen == (None if labelled else 'mean_average_precision')
  assert ['have no labels' in note for note in notes] == [True] * (not labelled)


def test_the_loss_is_the_weighted_sum_of_what_a_model_has(make_task, small_config):
  config = small_config('mit_points')
  config.task.loss_weights.consistency = 0.5
  task = make_task(config)
  batch = {name: np.zeros(x.shape, x.dtype) for name, x in task.batch_spec(2).items()}
  outputs = {
    'voxel_class_logits': np.zeros((2, 3), np.float32),
    'voxel_cam_probabilities': np.full((2, 3), 0.5, np.float32),
    'consistency': np.array([1.0, 3.0]),
    'cams': np.zeros((2, 8, 3)),
  }
  task.forward = lambda *_: ((outputs, {}), {})
  compute = jax.jit(lambda batch: task.loss({}, batch, jax.random.key(0), True))
  loss, (reported, _) = compute(batch)
  assert loss == pytest.approx(2 * np.log(2) + 1)
  assert reported['consistency_loss'] == 2
  assert sorted(reported) == [
    *('consistency_loss', 'padding', 'voxel_cam_loss', 'voxel_class_loss'),
  ]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model.num_classes': 4}, 'set config.model.num_classes=3'),
    ({'dataset.num_views': 3}, 'set config.model.num_views=3'),
    ({'task.pseudo_labels.threshold': 1.5}, 'threshold=1.5 must be between 0 and 1'),
    ({'task.pseudo_labels.together': 0}, 'together=0 must be a number of scenes'),
    ({'model': {'name': 'swiftformer_xs'}}, "list_models('mit*') shows what does"),
  ],
)
def test_what_does_not_belong_together_is_refused(small_config, changes, message):
  config = small_config()
  with config.unlocked(), config.ignore_type():
    if 'model' in changes:
      config.model = changes['model']
    else:
      config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=re.escape(message)):
    tasks.create_task(config)


def test_models_that_see_no_points_are_measured_by_tags_and_write_no_labels(
  make_task, small_config
):
  task = make_task(small_config('mit_images'))
  assert next(iter(task.metric_modes)) == 'mean_average_precision'
  assert task.Labels is None


def test_without_data_tags_are_those_of_the_model(small_config):
  config = small_config('mit_points')
  config.dataset.class_names, config.dataset.num_views = (), 0
  assert tasks.create_task(config).batch_spec(5)['tags'].shape == (5, 3)
