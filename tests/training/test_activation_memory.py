"""What lowers the memory of activations, by the figures of the compiler for TPUs."""

from flax import linen as nn
import jax.numpy as jnp
import pytest

from crossattn_jax import models, training
from crossattn_jax.layers import mlp, stack
from crossattn_jax.models import registry

IMAGES = 8192


class _Residual(nn.Module):
  """An MLP that is added to its input."""

  @nn.compact
  def __call__(self, x):
    return x + mlp.Mlp(4 * x.shape[-1], name='mlp')(x)


class _Stack(nn.Module):
  """Eight equal blocks and a classifier: the activations of many images are nearly all it needs."""

  num_classes: int = 10
  remat: bool = False

  @nn.compact
  def __call__(self, image, train=False):
    x = image.reshape(image.shape[0], -1)
    x = jnp.tile(x, (1, 2))
    for i in range(8):
      x = stack.apply_block(_Residual(name=f'block_{i}'), x, remat=self.remat)
    return nn.Dense(self.num_classes, name='head')(x), {}


registry.register('test_activation_memory', _Stack)

pytestmark = [pytest.mark.tpu_aot, pytest.mark.extended]


@pytest.fixture(scope='module')
def found():
  """Reports by the keys that were changed."""
  return {}


@pytest.fixture
def report(found, tiny_config):
  def compile_once(**keys):
    key = tuple(keys.items())
    if key not in found:
      tiny_config.model = models.model_config('test_activation_memory')
      tiny_config.batch_size = IMAGES
      tiny_config.mesh.data = 1
      tiny_config.update_from_flattened_dict(keys)
      found[key] = training.compile_report(tiny_config, 'v5e:1x1', effort=-1.0)
    return found[key]

  return compile_once


def test_two_steps_of_accumulation_take_half_the_memory(report):
  whole, halves = (report(accumulation_steps=count).memory.temporaries for count in (1, 2))
  assert 0.4 < halves / whole < 0.6


def test_rematerialisation_takes_half_the_memory(report):
  whole, again = report(accumulation_steps=1), report(**{'model.remat': True})
  assert again.memory.temporaries < 0.5 * whole.memory.temporaries


def test_the_arguments_are_named(report):
  whole = report(accumulation_steps=1)
  parts = whole.arguments
  assert parts['parameters'] == 4 * whole.parameters
  # AdamW: two moments, and a counter.
  assert parts['optimizer'] == pytest.approx(8 * whole.parameters, rel=0.01)
  assert parts['batch'] >= 8 * 8 * IMAGES
  assert sum(parts.values()) <= whole.memory.arguments
