"""The task learns, and evaluates every image once by COCO's rules, whatever the batches."""

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
from crossattn_jax.training import loop


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
  task, variables = knowing_task('mask_rcnn')
  metrics = evaluate(task, variables, 4)
  assert metrics == evaluate(task, variables, 10)
  assert metrics == evaluate(task, variables, 8, devices=8)
  assert metrics['examples'] == 10
  assert metrics['box_ap'] == metrics['box_ap/disc'] == 1
  assert metrics['mask_ap50'] == 1
  assert metrics['mask_ap'] > 0.9
  assert {*metrics} - {'examples'} <= {*task.metric_modes}
  assert all(map(task.explain, metrics))
  assert next(iter(task.metric_modes)) == 'box_ap'
  printed = capsys.readouterr().err
  assert re.findall(r'boxes:|masks:', printed)[:2] == ['boxes:', 'masks:']
  assert 'IoU=0.50:0.95 | area=   all | maxDets=100 ] = 1.000' in printed


def test_boxes_that_are_missed_or_moved_cost_precision(knowing_task):
  def change(boxes, *rest):
    return boxes + 0.1 * (boxes[:, 2:] - boxes[:, :2]).mean(), *rest

  metrics = evaluate(*knowing_task(change=change), 5)
  assert 0 < metrics['box_ap'] < metrics['box_ap50']
  nothing = evaluate(*knowing_task(change=lambda *found: tuple(x[:0] for x in found)), 5)
  assert nothing['box_ap'] == nothing['box_ar100'] == 0


def test_each_of_two_hosts_loads_half_of_the_images(knowing_task):
  task, variables = knowing_task()
  halves = [list(task.eval_data(4, block, 2)) for block in range(2)]
  seen = [batch['index'][batch['mask']] for half in halves for batch in half]
  assert sorted(np.concatenate(seen).tolist()) == list(range(10))
  rows = []
  for half in reversed(halves):
    for batch in half:
      found = jax.device_get(task.evaluate(variables, batch)).examples
      rows.append(task.reduce_examples({k: x[batch['mask']] for k, x in found.items()}))
  rows = jax.tree.map(lambda *each: np.concatenate(each), *rows)
  both = task.evaluate_examples(variables, rows)
  assert both | {'examples': 10} == evaluate(task, variables, 10)


def test_outputs_that_are_not_finite_and_splits_without_objects_are_refused(knowing_task):
  task, _ = knowing_task()
  with pytest.raises(ValueError, match='not finite for 3 of 10 images'):
    evaluate(task, {'finite': jnp.arange(10) > 2}, 4)
  with pytest.raises(ValueError, match=r"shape_scenes/tiny', split 'validation', has an object"):
    task.metrics(tasks.Evaluation({'count': 10, 'not_finite': 0}, {}))


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('model.num_classes', 5, 'set config.model.num_classes=6'),
    ('dataset.masks', True, 'set config.dataset.masks=False'),
    ('dataset.image_size', (128, 128, 3), '(height, width) of images wider than high'),
    ('task.evaluation.score_threshold', 2.0, 'score_threshold must be between 0 and 1, got 2.0'),
    ('task.evaluation.iou_threshold', -1.0, 'iou_threshold must be between 0 and 1, got -1.0'),
    ('task.evaluation.max_boxes', 0, 'max_boxes must be at least 1, got 0'),
    ('task.shown_score', 30.0, 'config.task.shown_score must be between 0 and 1, got 30.0'),
    ('model', {'name': 'swiftformer_xs'}, "as in 'crossformer_small+retinanet'"),
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


@pytest.mark.extended
@pytest.mark.parametrize('head', ['retinanet', 'mask_rcnn'])
def test_the_loop_trains_evaluates_and_draws(head, small_config, tmp_path, capsys):
  config = small_config(head)
  config.batch_size = 4
  config.num_steps = 40
  config.schedule.name = 'constant'
  config.schedule.learning_rate = 2e-3
  config.schedule.warmup_steps = 0
  config.logging.every_steps = 1
  mesh = parallel.create_mesh(devices=jax.devices()[:1])
  metrics = loop.train(config, epath.Path(tmp_path), mesh)
  assert metrics['examples'] == 10
  assert 0 <= metrics['box_ap'] <= 1
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  steps = [line for line in lines if 'train/loss' in line]
  losses = [line['train/loss'] for line in steps]
  assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:2])
  parts = [value for name, value in steps[0].items() if name.endswith('_loss')]
  assert len(parts) == {'retinanet': 2, 'mask_rcnn': 5}[head]
  assert losses[0] == pytest.approx(sum(parts), rel=1e-5)
  assert 'area=   all | maxDets=100' in capsys.readouterr().err
  assert {'predictions.png', 'confusion.png', 'worst.png', 'curves.png'} <= {
    path.name for path in tmp_path.iterdir()
  }
