"""A student learns from a frozen teacher inside the one step, and a run with a teacher resumes."""

import contextlib

from etils import epath
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models, parallel
from crossattn_jax.models import registry, variables_io
from crossattn_jax.tasks import losses
from crossattn_jax.training import checkpoints, loop, weights
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import experiment as experiment_lib
from crossattn_jax.training.compile import flops


class _TwoHeads(nn.Module):
  """The smallest student with a distillation head, and with batch statistics."""

  num_classes: int = 10
  width: int = 8
  distillation: bool = True

  @nn.compact
  def __call__(self, image, train=False):
    x = nn.Conv(self.width, (3, 3), name='conv')(image)
    x = nn.BatchNorm(use_running_average=not train, name='norm')(x)
    x = nn.relu(x).mean((1, 2))
    logits, features = nn.Dense(self.num_classes, name='head')(x), {}
    if self.distillation:
      features['logits/distillation'] = nn.Dense(self.num_classes, name='head_distillation')(x)
    return logits, features


registry.register('test_two_heads', _TwoHeads)
registry.register('test_two_other_heads', _TwoHeads)


@pytest.fixture
def config(tiny_config, tmp_path):
  """A student with two heads and a wider teacher with one, whose weights are in a file."""
  config = tiny_config
  with config.unlocked():
    config.model = models.model_config('test_two_heads')
  config.num_steps = 3
  config.schedule.name = 'constant'
  config.schedule.warmup_steps = 0
  config.task.label_smoothing = 0.0
  config.sharding.fsdp_min_size = 16
  distillation = config.task.distillation
  with config.unlocked():
    distillation.teacher = models.model_config('test_two_heads', width=64, distillation=False)
  distillation.kind = 'hard'
  distillation.weight = 0.3
  distillation.teacher_weights = _write_teacher(tmp_path / 'teacher.safetensors')
  return config


def _write_teacher(path, seed=7):
  teacher = models.create_model('test_two_heads', width=64, distillation=False)
  variables = teacher.init(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)))
  variables_io.save_variables(path, variables, 'test_two_heads')
  return str(path)


def _batch(config):
  rng = np.random.default_rng(0)
  return {
    'image': rng.standard_normal((config.batch_size, 8, 8, 1)).astype(np.float32),
    'label': rng.integers(0, 10, config.batch_size).astype(np.int32),
  }


def _state(experiment):
  return experiment.init_state().replace(frozen=weights.load_frozen(experiment))


@pytest.mark.parametrize(
  ('kind', 'head'), [('hard', True), ('soft', False)], ids=['hard, own head', 'soft, one head']
)
def test_the_loss_blends_labels_and_teacher(config, kind, head):
  config.task.distillation.kind = kind
  config.task.distillation.temperature = 3.0
  config.model.distillation = head
  experiment = experiment_lib.setup(config, steps_per_epoch=10)
  state, batch = _state(experiment), _batch(config)
  loss, (metrics, _) = experiment.task.loss(
    state.loss_variables, batch, jax.random.key(0), train=True
  )
  (logits, features), _ = experiment.task.model.apply(
    state.variables, batch['image'], train=True, mutable=['batch_stats']
  )
  teacher = models.create_model('test_two_heads', width=64, distillation=False)
  teacher_logits, _ = teacher.apply(state.frozen['teacher'], batch['image'])
  student = features['logits/distillation'] if head else logits
  if kind == 'hard':
    distilled = losses.cross_entropy(student, jnp.argmax(teacher_logits, -1))
  else:
    distilled = losses.soft_distillation_loss(student, teacher_logits, 3.0)
  expected = 0.7 * losses.cross_entropy(logits, batch['label']).mean() + 0.3 * distilled.mean()
  assert loss == pytest.approx(float(expected), rel=1e-6)
  assert metrics['distillation_loss'] == pytest.approx(float(distilled.mean()), rel=1e-6)


@pytest.mark.extended
@pytest.mark.parametrize('accumulation_steps', [1, 2])
def test_the_split_teacher_gives_the_loss_of_a_whole_one(config, accumulation_steps):
  config.accumulation_steps = accumulation_steps
  config.ema.decay = 0.9
  steps = []
  for mesh in (
    parallel.create_mesh(devices=jax.devices()[:1]),
    parallel.create_mesh(data=2, fsdp=4),
  ):
    experiment = experiment_lib.setup(config, mesh, steps_per_epoch=10)
    state = _state(experiment)
    with jax.set_mesh(mesh):
      batch = parallel.global_batch(_batch(config), mesh)
      steps.append(experiment.train_step(state, batch))
  (one_state, one), (state, eight) = steps
  assert eight['loss'] == pytest.approx(float(one['loss']), rel=1e-5)
  kernel = state.frozen['teacher']['params']['conv']['kernel']
  assert kernel.addressable_shards[0].data.size == kernel.size // 4
  # No step changes the teacher, and no moments or averages of it exist.
  before = variables_io.load_variables(config.task.distillation.teacher_weights).variables
  for after in (one_state, state):
    jax.tree.map(np.testing.assert_array_equal, after.frozen['teacher'], before)
    assert not [leaf for leaf in jax.tree.leaves((after.opt_state, after.ema)) if 64 in leaf.shape]


@pytest.mark.extended
def test_a_run_with_a_teacher_continues_bit_for_bit_and_only_with_the_same_one(config, tmp_path):
  whole, parts = epath.Path(tmp_path / 'whole'), epath.Path(tmp_path / 'parts')
  expected = loop.train(config, whole)
  config.num_steps = 2
  loop.train(config, parts)
  config.num_steps = 3
  distillation, path = config.task.distillation, config.task.distillation.teacher_weights
  distillation.teacher_weights = _write_teacher(tmp_path / 'other.safetensors', seed=8)
  with pytest.raises(
    checkpoints.CheckpointMismatch, match=r'teacher_weights=.*other.*holds other weights'
  ):
    loop.train(config, parts)
  distillation.teacher_weights = path
  assert loop.train(config, parts) == expected
  # The evaluation needs no teacher.
  distillation.teacher_weights = None
  assert loop.evaluate(config, parts) == expected


@pytest.mark.extended
def test_the_teacher_may_be_a_run(config, tmp_path):
  workdir = epath.Path(tmp_path / 'teacher')
  teacher = config.copy_and_resolve_references()
  with teacher.unlocked():
    teacher.model = models.model_config('test_two_heads', width=64, distillation=False)
  teacher.task.distillation.kind = 'none'
  teacher.ema.decay = 0.5
  experiment = experiment_lib.setup(teacher, steps_per_epoch=10)
  state = experiment.init_state()
  average = jax.tree.map(lambda x: x + 1, state.ema)
  with contextlib.closing(checkpoints.Checkpointer(workdir / 'checkpoints')) as checkpointer:
    checkpointer.save(1, state.replace(ema=average), config=teacher)
  config_lib.save(teacher, workdir / 'config.json')
  config.task.distillation.teacher_weights = str(workdir)
  loaded = weights.load_frozen(experiment_lib.setup(config, steps_per_epoch=10))['teacher']
  jax.tree.map(np.testing.assert_array_equal, loaded, average)

  config.task.distillation.teacher.name = 'test_two_other_heads'
  with pytest.raises(config_lib.ConfigError, match=r'is a run of .test_two_heads., not of'):
    weights.load_frozen(experiment_lib.setup(config, steps_per_epoch=10))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'kind': 'hart'}, r"kind='hart' is not one of none, hard, soft"),
    ({'teacher': {'name': None}}, r'needs a teacher: set config\.task\.distillation\.teacher'),
    ({'teacher': {'name': 'test_two_headz'}}, r"unknown model 'test_two_headz'; did you mean"),
    ({'teacher': {'name': 'test_two_heads', 'widht': 3}}, r'teacher\.widht; did you mean .*width'),
    (
      {'teacher': {'name': 'test_two_heads', 'num_classes': 7}},
      r'has 7 classes, the student .* has 10',
    ),
    ({'weight': 1.5}, r'weight=1.5 must be in \[0, 1\]'),
  ],
  ids=lambda value: '' if isinstance(value, str) else '-'.join(map(str, value)),
)
def test_a_teacher_that_cannot_be_is_refused_at_once(config, changes, message):
  with config.unlocked():
    config.task.distillation.update(changes)
    if 'teacher' in changes:
      config.task.distillation.teacher = type(config)(changes['teacher'])
  with pytest.raises(ValueError, match=message):
    experiment_lib.setup(config, steps_per_epoch=10)


def test_a_teacher_without_weights_and_a_head_without_a_teacher_are_refused(config):
  config.task.distillation.teacher_weights = None
  experiment = experiment_lib.setup(config, steps_per_epoch=10)
  with pytest.raises(config_lib.ConfigError, match=r'set config\.task\.distillation\.teacher_wei'):
    weights.load_frozen(experiment)
  config.task.distillation.kind = 'none'
  task = experiment_lib.setup(config, steps_per_epoch=10).task
  variables = task.init(jax.random.key(0))
  with pytest.raises(ValueError, match=r'distillation head.*config\.model\.distillation=False'):
    task.loss(variables, _batch(config), jax.random.key(0), train=True)


def test_a_teacher_needs_no_backward_pass(config):
  """FLOPs that the model needs: of the student three times, of the teacher once."""
  config.task.distillation.kind = 'none'
  config.model.distillation = False
  alone = flops.training_flops(experiment_lib.setup(config, steps_per_epoch=10))
  config.task.distillation.kind = 'hard'
  experiment = experiment_lib.setup(config, steps_per_epoch=10)
  pixels = config.batch_size * 8 * 8
  teacher = 2 * pixels * 9 * 64 + 2 * config.batch_size * 64 * 10
  assert flops.training_flops(experiment) == alone + teacher
