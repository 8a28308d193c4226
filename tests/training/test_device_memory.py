"""What does not fit into memory is refused before it runs, with what would fit."""

from etils import epath
from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from crossattn_jax import models, parallel
from crossattn_jax.models import registry
from crossattn_jax.training import device_memory, errors, host_memory, loop, preflight

GIBIBYTE = 2**30


class _Wide(nn.Module):
  """A classifier that compiles at once and has more activations than parameters."""

  num_classes: int = 10
  remat: bool = False

  @nn.compact
  def __call__(self, image, train=False):
    x = nn.gelu(nn.Conv(64, (3, 3), name='conv')(image))
    return nn.Dense(self.num_classes, name='head')(x.mean((1, 2))), {}


registry.register('test_wide', _Wide)


@pytest.fixture
def tiny_config(tiny_config):
  with tiny_config.unlocked():
    tiny_config.model = models.model_config('test_wide')
  return tiny_config


@pytest.fixture(scope='module')
def experiments():
  """By batch size, compiled once."""
  return {}


@pytest.fixture
def experiment(tiny_config, experiments):
  def build(batch_size, devices=1, **options):
    key = (batch_size, devices, *options.items())
    if key not in experiments:
      tiny_config.update(batch_size=batch_size, **options)
      tiny_config.evaluation.batch_size = 64
      mesh = parallel.create_mesh(devices=jax.devices()[:devices])
      experiments[key] = preflight.setup(tiny_config, mesh, with_data=False)
    return experiments[key]

  return build


def needed(experiment):
  """Bytes beside the state."""
  memory = device_memory.Memory.of(experiment.compiled_step)
  return memory.total - sum(leaf.nbytes for leaf in jax.tree.leaves(experiment.init_state()))


def test_a_step_that_does_not_fit_is_refused_with_a_batch_that_does(experiment, monkeypatch):
  large, small = experiment(256), experiment(32)
  monkeypatch.setattr(device_memory, 'free', lambda device: needed(large))
  device_memory.check_step(large)
  monkeypatch.setattr(device_memory, 'free', lambda device: needed(small) * 3 // 2)
  device_memory.check_step(small)
  with pytest.raises(
    device_memory.OutOfMemoryError,
    match=r'step needs .* on each device \(cpu\), beside .* of the state; .* are free. By estimate '
    r'it fits with config.batch_size=(\d+), or config.accumulation_steps=(8|4), which takes the '
    r'batch of 256 in (8|4) parts. config.model.remat=True computes',
  ) as raised:
    device_memory.check_step(large)
  fitting = int(str(raised.value).split('config.batch_size=')[1].split(',')[0])
  assert 32 <= fitting <= 64


def test_where_no_batch_fits_parameters_are_to_be_split(experiment, monkeypatch):
  monkeypatch.setattr(device_memory, 'free', lambda device: 1000)
  with pytest.raises(
    device_memory.OutOfMemoryError,
    match=r'Fewer examples at a time are not enough.* config.mesh.fsdp=8 splits parameters',
  ):
    device_memory.check_step(experiment(64, devices=8))


def test_a_machine_that_says_nothing_refuses_nothing(experiment, monkeypatch):
  monkeypatch.setattr(host_memory, 'available', lambda: None)
  assert device_memory.free(jax.devices()[0]) is None
  device_memory.check_step(experiment(32))


def test_accelerators_say_what_is_free():
  class Device:
    platform = 'gpu'

    def memory_stats(self):
      return {'bytes_limit': 80 * GIBIBYTE, 'bytes_in_use': 30 * GIBIBYTE}

  assert device_memory.free(Device()) == 50 * GIBIBYTE


def test_memory_that_is_exhausted_while_running_becomes_advice(experiment):
  def advice():
    return device_memory.training_advice(experiment(32))

  # 128 TiB: refused before anything is touched.
  allocate = jax.jit(lambda: jnp.zeros((2**45,)))
  with (
    pytest.raises(
      device_memory.OutOfMemoryError,
      match=r'out of memory: .*140737488355328 bytes. Set config.batch_size=16, or config.accum',
    ),
    device_memory.explained(advice),
  ):
    allocate()
  with pytest.raises(jax.errors.JaxRuntimeError), device_memory.explained(advice):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: ran out of memory in memory space vmem')
  assert issubclass(device_memory.OutOfMemoryError, errors.USER_ERRORS)


def test_an_evaluation_that_exhausts_memory_is_told_its_batch_size(tiny_config):
  tiny_config.evaluation.batch_size = 64
  experiment = preflight.setup(tiny_config, parallel.create_mesh(devices=jax.devices()[:1]))
  allocate = jax.jit(lambda variables, batch: jnp.zeros((2**45,)))
  vars(experiment)['eval_step'] = allocate
  with pytest.raises(device_memory.OutOfMemoryError, match=r'config.evaluation.batch_size=32$'):
    loop.run_evaluation(experiment, {})


def test_training_does_not_begin_without_the_memory(tiny_config, tmp_path, monkeypatch):
  monkeypatch.setattr(host_memory, 'available', lambda: 2**20)
  workdir = epath.Path(tmp_path / 'run')
  with pytest.raises(device_memory.OutOfMemoryError, match='a training step needs'):
    loop.train(tiny_config, workdir)
  assert not (workdir / 'checkpoints').exists()
