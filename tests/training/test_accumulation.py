"""Updates of several steps, and the whole recipe of YOLOv5 against its loop written in NumPy."""

import math
import pathlib

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crossattn_jax import parallel
from crossattn_jax.models import registry
from crossattn_jax.parallel import parameters
from crossattn_jax.training import accumulation
from crossattn_jax.training import experiment as experiment_lib

RECORDED = pathlib.Path(__file__).parents[1] / 'reference' / 'icafusion' / 'train_schedule.npz'


def updating_steps(batches, warmup_steps, steps):
  """Those of the original's loop, which counts as it goes."""
  size, found = max(round(batches), 1), []
  for step in range(steps):
    if step <= warmup_steps:
      size = max(1, np.interp(step, [0, warmup_steps], [1, batches]).round())
    if step % size == 0:
      found.append(step)
  return found


@pytest.mark.parametrize(
  ('batches', 'warmup_steps'), [(8, 1548), (64 / 12, 100), (2.5, 7), (0.5, 10), (4, 0), (1, 3)]
)
def test_steps_update_that_are_multiples_of_a_growing_number(batches, warmup_steps):
  step_of = accumulation.step_of_update(batches, warmup_steps)
  expected = updating_steps(batches, warmup_steps, 2000)
  np.testing.assert_array_equal(step_of(np.arange(-1, len(expected))), [-1, *expected])


def test_steps_update_as_in_the_recorded_schedule():
  with np.load(RECORDED) as recorded:
    steps, _, sizes, *_, updated = recorded['out/table'].T
  np.testing.assert_array_equal(accumulation.steps_per_update(steps, 8, 1548), sizes)
  updating = accumulation.step_of_update(8, 1548)(np.arange(10_000))
  np.testing.assert_array_equal(np.isin(steps, updating), updated)


def test_an_update_gets_the_sum_since_the_last_one_and_other_steps_change_nothing():
  optimizer = accumulation.accumulate(optax.sgd(1.0), accumulation.step_of_update(3, 0))
  params = {'w': jnp.zeros(2)}
  state, updates = optimizer.init(params), []
  for step in range(8):
    update, state = optimizer.update({'w': jnp.array([1.0, step])}, state, params)
    updates.append(np.asarray(update['w']).tolist())
    assert accumulation.num_updates(state, step + 1) == step // 3 + 1
  assert updates[0] == [-1, 0]
  assert updates[3] == [-3, -(1 + 2 + 3)]
  assert updates[6] == [-3, -(4 + 5 + 6)]
  assert not np.any([updates[step] for step in (1, 2, 4, 5, 7)])


def test_an_optimizer_that_does_not_accumulate_updates_in_every_step():
  assert accumulation.num_updates(optax.sgd(1.0, 0.9).init({'w': jnp.zeros(2)}), 7) == 7


class _Network(nn.Module):
  """A network with parameters of each group, in the default dtype."""

  num_classes: int = 10

  @nn.compact
  def __call__(self, image, train=False):
    dtype = {'param_dtype': jnp.result_type(float)}
    x = nn.Conv(6, (3, 3), strides=2, use_bias=False, name='conv', **dtype)(image)
    x = nn.BatchNorm(use_running_average=not train, momentum=0.97, name='norm', **dtype)(x)
    x = nn.silu(x).mean((1, 2)) + self.param('added', nn.initializers.zeros, (6,))
    x = nn.LayerNorm(name='layer_norm', **dtype)(x)
    return nn.Dense(self.num_classes, name='head', **dtype)(x), {}


registry.register('test_yolov5_recipe', _Network)

RATE, LAST_RATE, BIAS_START, MOMENTUM, DECAY, AVERAGE = 0.01, 0.1, 0.1, 0.937, 5e-2, 0.99
EPOCHS, PER_EPOCH, WARMUP, BATCH, NOMINAL, RAMP = 7, 6, 15, 8, 28, 5
STEPS = EPOCHS * PER_EPOCH


@pytest.fixture
def recipe(tiny_config):
  """YOLOv5's, in float64."""
  config = tiny_config
  with config.unlocked():
    config.model = registry.model_config('test_yolov5_recipe')
  config.task.label_smoothing = 0.0
  config.batch_size, config.num_steps = BATCH, STEPS
  config.freeze = ('added',)
  config.ema.update(decay=AVERAGE, ramp_updates=float(RAMP))
  config.optimizer.update(
    name='sgd',
    momentum=MOMENTUM,
    warmup_momentum=0.8,
    nesterov=True,
    weight_decay=DECAY,
    decay_include=('layer_norm/scale',),
    warmup_starts=(('.*/bias', BIAS_START),),
    nominal_batch_size=NOMINAL,
    clip_norm=None,
  )
  config.schedule.update(
    learning_rate=RATE,
    minimum=RATE * LAST_RATE,
    warmup='to_schedule',
    warmup_epochs=1.0,
    warmup_steps=0,
    warmup_min_steps=WARMUP,
    decay_after_warmup=False,
    per_epoch=True,
    epochs_late=1,
  )
  return config


def batches():
  """Those of the run."""
  rng = np.random.default_rng(0)
  return [
    {'image': rng.standard_normal((BATCH, 8, 8, 1)), 'label': rng.integers(0, 10, BATCH, np.int32)}
    for _ in range(STEPS)
  ]


def yolov5_loop(variables, gradients):
  """The original's loop, from its description; yields variables and their average after each step.

  Args:
    variables: 'params' and 'batch_stats', each a dictionary of arrays by path.
    gradients: from such variables and the index of a step to the gradients of the loss and the new
      batch statistics; also by path.
  """

  def curve(epoch):
    return (1 - math.cos(math.pi * epoch / EPOCHS)) / 2 * (LAST_RATE - 1) + 1

  def over_warmup(step, first, last):
    return np.interp(step, [0, WARMUP], [first, last])

  params, average = variables['params'], {name: dict(tree) for name, tree in variables.items()}
  total, velocity, updates = dict.fromkeys(params, 0.0), {}, 0
  decay = DECAY * BATCH * round(NOMINAL / BATCH) / NOMINAL
  for step in range(STEPS):
    epoch = step // PER_EPOCH
    if step <= WARMUP:
      size = max(1, over_warmup(step, 1, NOMINAL / BATCH).round())
      rate = over_warmup(step, 0, RATE * curve(epoch))
      bias_rate = over_warmup(step, BIAS_START, RATE * curve(epoch))
      momentum = over_warmup(step, 0.8, MOMENTUM)
    grads, variables['batch_stats'] = gradients(variables, step)
    total = {path: total[path] + grad for path, grad in grads.items()}
    if step % size == 0:
      for path in params.keys() - {'added'}:
        is_bias = path.endswith('/bias')
        decayed = not is_bias and path != 'norm/scale'
        grad = total[path] + decayed * decay * params[path]
        velocity[path] = grad + momentum * velocity.get(path, 0)
        direction = grad + momentum * velocity[path]
        params[path] = params[path] - (bias_rate if is_bias else rate) * direction
      total, updates = dict.fromkeys(params, 0.0), updates + 1
      old = AVERAGE * (1 - math.exp(-updates / RAMP))
      for name, tree in variables.items():
        for path, value in tree.items():
          average[name][path] = old * average[name][path] + (1 - old) * value
    if (step + 1) % PER_EPOCH == 0:
      rate = bias_rate = RATE * curve(epoch)  # That of the epoch which is over.
    yield variables, average


def by_path(variables):
  return {name: parameters.leaves_by_path(tree) for name, tree in variables.items()}


def test_the_whole_recipe_is_the_original_s_loop(recipe):
  with jax.enable_x64(True):
    mesh = parallel.create_mesh(devices=jax.devices()[:1])
    experiment = experiment_lib.setup(recipe, mesh, steps_per_epoch=PER_EPOCH)
    state, data = experiment.init_state(), batches()
    initial = jax.device_get(state.variables)
    structure = jax.tree.structure(initial)

    @jax.jit
    def gradients(variables, batch):
      def loss(params):
        value, (_, new) = experiment.task.loss(
          {**variables, 'params': params}, batch, jax.random.key(0), train=True
        )
        return value, new

      return jax.grad(loss, has_aux=True)(variables['params'])

    def gradients_by_path(variables, step):
      leaves = [leaf for tree in map(variables.get, initial) for leaf in tree.values()]
      grads, new = gradients(jax.tree.unflatten(structure, leaves), data[step])
      found = by_path(jax.device_get({'params': grads, **new}))
      return found['params'], found['batch_stats']

    expected = yolov5_loop(by_path(initial), gradients_by_path)
    for step, (variables, average) in enumerate(expected):
      state, _ = experiment.train_step(state, data[step])
      for found, wanted in ((state.variables, variables), (state.ema, average)):
        for name, tree in by_path(found).items():
          for path, value in tree.items():
            np.testing.assert_allclose(
              value, wanted[name][path], rtol=1e-9, atol=1e-12, err_msg=f'{step}: {name}/{path}'
            )
    assert not np.any(state.params['added'])
