"""The task counts exactly, refuses what does not fit, and mixes only in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import tasks
from crossattn_jax.metrics import classification as metrics


@pytest.fixture
def task(tiny_config):
  return tasks.create_task(tiny_config)


@pytest.fixture
def variables(task):
  return jax.jit(task.init)(jax.random.key(0))


def _total(task, variables, batch_size):
  evaluate = jax.jit(task.evaluate)
  total = None
  for batch in task.eval_data(batch_size, 0, 1):
    sums = evaluate(variables, batch).sums
    total = sums if total is None else jax.tree.map(np.add, total, sums)
  return total


@pytest.mark.parametrize('batch_size', [64, 100])
def test_every_example_counts_once_whatever_the_batch_size(task, variables, batch_size):
  total = _total(task, variables, batch_size)
  assert total['count'] == 355
  images = next(iter(task.eval_data(355, 0, 1)))
  logits, _ = task.model.apply(variables, images['image'])
  hits = np.asarray(metrics.in_top_k(logits, images['label'], 1)).sum()
  assert abs(int(total['top_1']) - hits) <= 1  # A tie may round apart in another program.
  results = task.metrics(tasks.Evaluation(total))
  assert results['accuracy'] == total['top_1'] / 355
  assert {*results} == {*task.metric_modes, 'examples'}
  assert all(map(task.explain, results))


def test_training_mixes_and_evaluation_does_not(tiny_config, variables):
  plain = tasks.create_task(tiny_config)
  batch = {
    'image': jax.random.normal(jax.random.key(1), (8, 8, 8, 1)),
    'label': jnp.arange(8),
  }
  reference, _ = plain.loss(variables, batch, jax.random.key(2), train=False)
  tiny_config.task.mixup_alpha = 0.8
  tiny_config.task.label_smoothing = 0.0
  mixing = tasks.create_task(tiny_config)
  evaluated, _ = mixing.loss(variables, batch, jax.random.key(2), train=False)
  trained, _ = mixing.loss(variables, batch, jax.random.key(2), train=True)
  assert evaluated == reference
  assert trained != reference


def test_another_number_of_classes_than_the_data_set_s_is_refused(tiny_config):
  tiny_config.model.num_classes = 11
  task = tasks.create_task(tiny_config)
  with pytest.raises(ValueError, match=r"num_classes is 11, but dataset 'digits' has 10 classes"):
    task.train_data(8, 0, 1)


def test_an_unknown_task_is_refused_with_the_nearest_name(tiny_config):
  tiny_config.task.name = 'clasification'
  with pytest.raises(ValueError, match="did you mean 'classification'"):
    tasks.create_task(tiny_config)


def test_attention_maps_are_on_the_patch_grids(task, variables):
  outputs = jax.eval_shape(
    task.Predictor(task, variables).predict, variables, {'image': jnp.zeros((3, 8, 8, 1))}
  )
  looks = "attention_maps/where the {} branch's summary looks in the {} one"
  assert outputs[looks.format('fine', 'coarse')].shape == (3, 2, 2)
  assert outputs[looks.format('coarse', 'fine')].shape == (3, 4, 4)
  assert outputs['probabilities'].shape == (3, 10)
