"""The task learns what two images show, and evaluates by YOLOv5's and COCO's rules."""

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
from crossattn_jax.conversion import opening
from crossattn_jax.geometry import anchor_sizes
from crossattn_jax.heads.detection import yolo
from crossattn_jax.training import loop, weights


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


def test_who_finds_everything_has_a_precision_of_one_in_any_batches(knowing_task, capsys):
  task, variables = knowing_task()
  metrics = evaluate(task, variables, 4)
  assert metrics == evaluate(task, variables, 10)
  assert metrics == evaluate(task, variables, 8, devices=8)
  assert metrics['examples'] == 10
  for name in ('map50', 'map75', 'map', 'recall', 'map/disc', 'box_ap'):
    assert metrics[name] == pytest.approx(1, abs=1e-6)
  assert {*metrics} - {'examples'} <= {*task.metric_modes}
  assert all(map(task.explain, metrics))
  assert next(iter(task.metric_modes)) == 'map50'
  printed = capsys.readouterr().err
  assert re.search(r'^ all +1.000 +1.000 +1.000 +1.000 +1.000$', printed, re.MULTILINE)
  assert 'IoU=0.50:0.95 | area=   all | maxDets=100 ] = 1.000' in printed


def test_boxes_that_are_moved_cost_precision_and_those_beyond_the_files_end_there(knowing_task):
  def change(boxes, *rest):
    return boxes + 0.1 * (boxes[:, 2:] - boxes[:, :2]).mean(), *rest

  metrics = evaluate(*knowing_task(change=change), 5)
  assert 0 < metrics['map'] < metrics['map50']
  task, variables = knowing_task(change=lambda boxes, *rest: (boxes * 0 + [-9, 3, 99, 9], *rest))
  batch = next(iter(task.eval_data(2, 0, 1)))
  found, _ = task.detect(variables, batch)
  np.testing.assert_allclose(found.boxes[0, 0], [0, 3, 64, 9], atol=1e-5)


def test_the_loss_is_the_sum_over_the_batch_of_which_devices_or_steps_have_parts(small_config):
  config = small_config()
  config.batch_size, config.dataset.image_size = 8, (64, 128)
  config.task.loss.balance, config.task.loss.objectness = (1.0, 2.0, 3.0), 5.0
  task = tasks.create_task(config)
  anchors = sum(task.model.anchors().of_input((64, 128)).counts)
  outputs = {
    'box_logits': jnp.zeros((2, anchors, 4)),
    'objectness': jnp.zeros((2, anchors)),
    'logits': jnp.zeros((2, anchors, 6)),
  }
  task.forward = lambda *args: ((outputs, {}), {})
  batch = {'boxes': jnp.zeros((2, 3, 4)), 'labels': jnp.full((2, 3), -1)}

  @jax.jit
  def losses(batch):
    results = []
    for reduction in ('sum', 'mean'):
      config.task.loss.reduction = reduction
      results.append(task.loss({}, batch, jax.random.key(0), True))
    return results

  (total, (reported, _)), (mean, _) = losses(batch)
  # Nothing is there, and every anchor is undecided: ln 2 on every level.
  objectness = 5 * 0.2**2 * 6 * np.log(2)
  assert reported['objectness_loss'] == pytest.approx(objectness)
  assert reported['box_loss'] == reported['class_loss'] == 0
  assert (total, mean) == pytest.approx((8 * objectness, objectness))


def test_outputs_that_are_not_finite_are_refused(knowing_task):
  task, _ = knowing_task()
  with pytest.raises(ValueError, match='not finite for 3 of 10 pairs'):
    evaluate(task, {'finite': jnp.arange(10) > 2}, 4)


def test_miss_rates_are_reported_where_annotations_are_given(knowing_task, tmp_path, capsys):
  task, variables = knowing_task()
  source, people = task.examples('validation').source, []
  for index in range(len(source)):
    for box in source.annotations(index).boxes.tolist():
      x, y, *corner = box
      size = [corner[0] - x, corner[1] - y]
      person = {'id': len(people), 'image_id': index, 'bbox': [x, y, *size], 'height': size[1]}
      people.append(person | {'occlusion': 0, 'ignore': 0})
  path = tmp_path / 'annotations.json'
  images = [{'id': index, 'height': 64, 'width': 64} for index in range(len(source))]
  path.write_text(json.dumps({'images': images, 'annotations': people}))
  task.config.task.miss_rate.annotations = str(path)
  task.config.task.miss_rate.official = False
  metrics = evaluate(task, variables, 10)
  assert metrics['miss_rate/none'] == pytest.approx(1e-5)
  assert metrics['map50'] == pytest.approx(1)
  assert (task.metric_modes['miss_rate/none'], task.metric_modes['map50']) == ('min', 'max')
  assert 'miss rates in percent: ' in capsys.readouterr().err
  path.write_text(json.dumps({'images': images[1:], 'annotations': []}))
  other, _ = knowing_task()
  other.config.task.miss_rate.annotations = str(path)
  with pytest.raises(ValueError, match=r'annotations=.*has 9 images, and the evaluated split 10'):
    other.check_data()


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('model.num_classes', 5, 'set config.model.num_classes=6'),
    ('dataset.image_size', (100, 128), 'multiples of 32 pixels'),
    ('task.evaluation.iou_threshold', -1.0, 'iou_threshold must be between 0 and 1, got -1.0'),
    ('task.loss.reduction', 'max', "config.task.loss.reduction='max' is not one of sum, mean"),
    ('task.shown_attention', -1, 'config.task.shown_attention must be at least 0, got -1'),
    ('model', {'name': 'swiftformer_xs'}, "list_models('icafusion*') shows what does"),
  ],
)
def test_what_does_not_belong_together_is_refused(small_config, key, value, message):
  config = small_config()
  with config.unlocked(), config.ignore_type():
    if key == 'model':
      config.model = value
    else:
      config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=re.escape(message)):
    tasks.create_task(config)


@pytest.mark.slow
def test_the_loop_trains_evaluates_and_draws(small_config, tmp_path, capsys):
  config = small_config()
  config.batch_size = 4
  config.num_steps = 25
  config.schedule.name = 'constant'
  config.schedule.learning_rate = 1e-2
  config.schedule.warmup_steps = 0
  config.logging.every_steps = 1
  mesh = parallel.create_mesh(devices=jax.devices()[:1])
  metrics = loop.train(config, epath.Path(tmp_path), mesh)
  assert metrics['examples'] == 10
  assert 0 <= metrics['map50'] <= 1
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  steps = [line for line in lines if 'train/loss' in line]
  losses = [line['train/objectness_loss'] for line in steps]
  assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:2])
  parts = [value for name, value in steps[0].items() if name.endswith('_loss')]
  assert len(parts) == 3
  assert steps[0]['train/loss'] == pytest.approx(4 * sum(parts), rel=1e-5)
  assert 'mAP50' in capsys.readouterr().err
  assert {'predictions.png', 'confusion.png', 'worst.png', 'curves.png'} <= {
    path.name for path in tmp_path.iterdir()
  }


def test_anchors_are_the_models_own_where_they_learn_the_objects_and_of_their_sizes_otherwise(
  small_config,
):
  config = small_config()
  own = tasks.create_task(config).model.anchor_sizes
  assert config.model.anchor_sizes == own == yolo.COCO_ANCHORS.sizes
  config.model.anchor_sizes = None
  config.task.loss.max_ratio = 1.5
  (note,) = tasks.complete_config(config)
  sizes = config.model.anchor_sizes
  assert note.startswith('anchors are of the sizes of the training objects, width x height: ')
  assert np.shape(sizes) == (3, 3, 2)
  task = tasks.create_task(config)
  assert task.model.anchor_sizes == sizes
  boxes = np.concatenate(task.examples('train').learnt_sizes())
  assert anchor_sizes.recall(boxes, sizes, 1.5) > anchor_sizes.recall(boxes, own, 1.5) + 0.1
  assert tasks.complete_config(config) == []
  assert config.model.anchor_sizes == sizes
  config.model.anchor_sizes, config.task.min_anchor_recall = None, 0.0
  assert tasks.complete_config(config) == []
  assert config.model.anchor_sizes == own


def test_anchors_of_weights_come_before_those_of_data(small_config, monkeypatch):
  others = tuple(tuple((w + 1.0, h + 2.0) for w, h in level) for level in yolo.COCO_ANCHORS.sizes)

  def taken(**saved):
    config = small_config()
    config.model.anchor_sizes, config.weights = None, 'weights.pt'
    opened = opening.OpenedWeights('icafusion_n', saved, {})
    monkeypatch.setattr(weights, '_open_file', lambda *args: opened)
    weights.complete_config(config)
    return config.model.anchor_sizes

  assert taken() == yolo.COCO_ANCHORS.sizes
  assert taken(anchor_sizes=others) == others
  # Of a single stream the head is not taken.
  assert taken(anchor_sizes=others, modalities=('rgb',)) is None
