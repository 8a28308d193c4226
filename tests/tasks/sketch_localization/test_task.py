"""The task learns what sketches show, and evaluates what is found by them."""

import dataclasses
import json
import re
import types
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
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


def test_who_finds_what_was_learnt_only_has_a_precision_of_one_there(knowing_task, capsys):
  def change(category, boxes, scores):
    return (boxes + 40, scores) if category == 'star' else (boxes, scores)

  task, variables = knowing_task(change)
  metrics = evaluate(task, variables, 5)
  assert metrics == evaluate(task, variables, 16, devices=8)
  queries = task.examples('validation').source
  assert metrics['examples'] == len(queries) > 10
  assert metrics['seen_box_ap'] == metrics['box_ap/disc'] == pytest.approx(1)
  assert metrics['unseen_box_ap'] == metrics['box_ap/star'] < 0.1
  assert metrics['unseen_box_ap'] < metrics['box_ap50'] < 1
  assert {*metrics} - {'examples'} <= {*task.metric_modes}
  assert all(map(task.explain, metrics))
  assert next(iter(task.metric_modes)) == 'box_ap50'
  assert re.search(r'^seen +1\.000 +1\.000 +1\.000', capsys.readouterr().err, re.MULTILINE)
  with pytest.raises(ValueError, match=f'not finite for 2 of {len(queries)} photos'):
    evaluate(task, {'finite': jnp.arange(len(queries)) > 1}, 5)


def test_the_loss_is_the_sum_of_its_parts_that_of_a_teacher_too(small_config):
  config = small_config()
  config.task.loss_weights.distillation_loss = 3.0
  with config.unlocked():
    config.task.distillation.teacher = config.model.copy_and_resolve_references()
  config.task.distillation.teacher.depths = (2, 1)
  task = tasks.create_task(config)
  (teacher,) = task.frozen_models.values()
  assert teacher.overrides['depths'] == (2, 1)
  outputs = {'logits': jnp.zeros((2, 2, 8, 2)), 'boxes': jnp.full((2, 2, 8, 4), 0.5)}
  features = {'map_0': jnp.zeros((2, 3, 3, 32)), 'queries': jnp.zeros((2, 2, 8, 32))}
  taught = {'map_0': jnp.ones((2, 3, 3, 32)), 'queries': jnp.zeros((2, 2, 8, 32))}
  task.forward = lambda *args, **inputs: ((outputs, features), {})
  task._teacher = types.SimpleNamespace(apply=lambda variables, *args, **inputs: (None, taught))
  batch = {name: jnp.zeros(x.shape, x.dtype) for name, x in task.batch_spec(2).items()}
  batch |= {'labels': jnp.full((2, 8), -1).at[0, 0].set(0), 'image_size': jnp.full((2, 2), 64)}
  variables = {'params': {}, 'teacher': {}}
  arguments = variables, batch, jax.random.key(0)
  loss, (reported, _) = jax.jit(task.loss, static_argnums=3)(*arguments, True)
  assert reported['distillation_loss'] == pytest.approx(3 * 32**0.25)
  parts = [value for name, value in reported.items() if name.endswith('_loss')]
  assert len(parts) == 5
  assert loss == pytest.approx(float(sum(parts)))
  # Of two levels that say the same, one is the last.
  last = [reported[f'{name}_loss'] for name in ('class', 'box', 'giou')]
  assert reported['auxiliary_loss'] == pytest.approx(float(sum(last)))
  # One object of no size at the corner, found by a box of half the sides in the middle.
  assert last[1] == pytest.approx(5 * 2.0)
  _, (evaluated, _) = jax.eval_shape(lambda *given: task.loss(*given, False), *arguments)
  assert 'distillation_loss' not in evaluated


@pytest.mark.extended
def test_a_larger_teacher_has_the_same_tokens(small_config):
  config = small_config(iou_head=True)
  with config.unlocked():
    config.task.distillation.teacher = config.model.copy_and_resolve_references()
  config.task.distillation.teacher.depths = (2, 1)
  task = tasks.create_task(config)

  def loss(batch):
    key = jax.random.key(0)
    teacher = task.frozen_models['teacher'].init(key)
    return task.loss({**task.init(key), 'teacher': teacher}, batch, key, True)

  value, (reported, _) = jax.eval_shape(loss, task.batch_spec(2))
  assert (value.shape, value.dtype) == ((), jnp.float32)
  assert {'distillation_loss', 'iou_loss', 'auxiliary_loss'} < {*reported}


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('dataset.max_boxes', 9, 'set config.dataset.max_boxes=8'),
    ('task.evaluation.area', 'box', "evaluation.area='box' is not one of file, resized"),
    ('task.evaluation.score_threshold', 2.0, 'score_threshold must be between 0 and 1, got 2.0'),
    ('model', {'name': 'swiftformer_xs'}, "list_models('sketch_localizer*') shows what does"),
    ('task.distillation.teacher', {'name': 'swiftformer_xs'}, 'is no sketch localizer'),
    (
      'task.distillation.teacher',
      {'name': 'sketch_localizer_small'},
      'teacher.num_queries is 100, config.model.num_queries is 8',
    ),
  ],
)
def test_what_does_not_belong_together_is_refused(small_config, key, value, message):
  config = small_config()
  with config.unlocked(), config.ignore_type():
    if key == 'model':
      config.model = value
    elif key.endswith('teacher'):
      config.task.distillation.teacher = value
    else:
      config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=re.escape(message)):
    tasks.create_task(config)


@pytest.mark.slow
def test_the_loop_trains_continues_evaluates_and_draws(small_config, tmp_path, monkeypatch, capsys):
  config = small_config()
  config.batch_size, config.num_steps = 4, 2
  config.schedule.name = 'constant'
  config.schedule.learning_rate = 1e-3
  config.schedule.warmup_steps = 0
  config.logging.every_steps = 1
  mesh = parallel.create_mesh(devices=jax.devices()[:1])
  monkeypatch.setattr(parallel, 'create_mesh', lambda **_: mesh)
  loop.train(config, epath.Path(tmp_path))
  config.num_steps = 4
  metrics = loop.train(config, epath.Path(tmp_path))
  assert metrics['examples'] == len(tasks.create_task(config).examples('validation').source)
  assert 0 <= metrics['seen_box_ap50'] <= 1
  assert loop.evaluate(config, epath.Path(tmp_path)) == metrics
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  steps = [line for line in lines if 'train/loss' in line]
  assert [line['step'] for line in steps] == [1, 2, 3, 4]
  for line in steps:
    parts = [value for name, value in line.items() if name.endswith('_loss')]
    assert line['train/loss'] == pytest.approx(sum(parts), rel=1e-5)
  assert 'continuing after step 2' in capsys.readouterr().err
  assert {'predictions.png', 'confusion.png', 'worst.png', 'curves.png'} <= {
    path.name for path in tmp_path.iterdir()
  }
