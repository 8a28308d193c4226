"""Recording any PyTorch module as a case that replays."""

import json

from flax import linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.conversion.mapping import Rule
from crossattn_jax.parity import adapters, cases, replay

torch = pytest.importorskip('torch')
pytestmark = pytest.mark.torch


class TorchBlock(torch.nn.Module):
  """Convolution, batch norm, ReLU, then a linear map of the mean; as a user may have it."""

  def __init__(self):
    super().__init__()
    self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
    self.norm = torch.nn.BatchNorm2d(8)
    self.act = torch.nn.ReLU(inplace=True)
    self.head = torch.nn.Linear(8, 5)

  def forward(self, x, labels):
    logits = self.head(self.act(self.norm(self.conv(x))).mean((2, 3)))
    return {'logits': logits, 'loss': torch.nn.functional.cross_entropy(logits, labels)}


class FlaxBlock(nn.Module):
  """The same in Flax."""

  train: bool

  @nn.compact
  def __call__(self, x, labels):
    x = nn.Conv(8, (3, 3), name='conv')(x)
    x = nn.BatchNorm(
      use_running_average=not self.train, epsilon=1e-5, use_fast_variance=False, name='norm'
    )(x)
    logits = nn.Dense(5, name='head')(nn.relu(x).mean((1, 2)))
    chosen = jnp.take_along_axis(nn.log_softmax(logits), labels[:, None], axis=1)
    return {'logits': logits, 'loss': -chosen.mean()}


RULES = [
  Rule('conv.weight', 'conv/kernel', 'conv'),
  Rule('conv.bias', 'conv/bias'),
  Rule('norm.weight', 'norm/scale'),
  Rule('norm.bias', 'norm/bias'),
  Rule('norm.running_mean', 'norm/mean', collection='batch_stats'),
  Rule('norm.running_var', 'norm/var', collection='batch_stats'),
  Rule('head.weight', 'head/kernel', 'linear'),
  Rule('head.bias', 'head/bias'),
]


def make_adapter(manifest):
  train = manifest['mode'] == 'train'
  return adapters.module_adapter(
    manifest,
    FlaxBlock(train),
    rules=RULES,
    call=lambda module, inputs: module(jnp.moveaxis(inputs['x'], 1, -1), inputs['labels']),
    taps={
      'conv': ('conv', lambda x: jnp.moveaxis(x, -1, 1)),
      'norm': ('norm', lambda x: jnp.moveaxis(x, -1, 1)),
      'act': ('norm', lambda x: nn.relu(jnp.moveaxis(x, -1, 1))),
      'head': 'head',
    },
  )


@pytest.fixture(autouse=True)
def adapter(monkeypatch):
  monkeypatch.setitem(adapters._adapters, ('mine', 'Block'), make_adapter)


def record_block(folder, **options):
  from crossattn_jax.parity import record

  inputs = {'x': record.Generated((2, 3, 9, 7)), 'labels': torch.tensor([4, 1])}
  return record.record(
    TorchBlock(), inputs, folder, system='mine', module_kind='Block', case='block', **options
  )


@pytest.mark.parametrize('mode', ['eval', 'train'])
def test_a_recorded_module_replays(tmp_path, mode, precision):
  case = cases.read_case(record_block(tmp_path, mode=mode))
  assert set(case.recorded) == {
    'tap/conv',
    'tap/norm',
    'tap/act',
    'tap/head',
    'out/logits',
    'out/loss',
    'grad_input/x',
  }
  assert len(case.manifest['grad_param']) == 6
  result = replay.replay_case(case, precision)
  assert result.passed, result.failures()


def test_large_arrays_are_sub_sampled(tmp_path):
  case = cases.read_case(record_block(tmp_path, max_elements=100))
  tap = case.recorded['tap/conv']
  assert tap.shape == (2, 8, 9, 7)
  assert tap.stride == 11
  assert tap.values.size == -(-1008 // 11)
  result = replay.replay_case(case, 'float64')
  assert result.passed, result.failures()


def test_without_gradients_none_are_recorded(tmp_path):
  case = cases.read_case(record_block(tmp_path, gradients=False))
  assert case.manifest['grad_param'] == {}
  assert not case.names('grad_input')


def test_the_manifest_describes_the_state(tmp_path):
  manifest = json.loads(record_block(tmp_path).read_text())
  entries = {entry['key']: entry for entry in manifest['state']}
  assert entries['conv.weight']['std'] == pytest.approx(27**-0.5)
  assert entries['norm.weight']['mean'] == 1.0
  assert entries['norm.running_var']['kind'] == 'stat'
  assert entries['norm.running_var']['abs'] is True
  assert entries['norm.num_batches_tracked']['kind'] == 'buffer'
  assert manifest['parameter_count'] == sum(p.numel() for p in TorchBlock().parameters())
  assert manifest['inputs']['labels'] == {'kind': 'stored', 'shape': [2], 'dtype': 'int64'}


def test_the_users_module_is_left_as_it_is(tmp_path):
  from crossattn_jax.parity import record

  module = torch.nn.Linear(3, 2)
  before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
  record.record(
    module,
    {'x': record.Generated((1, 3))},
    tmp_path,
    system='mine',
    module_kind='Linear',
    case='linear',
  )
  for key, tensor in module.state_dict().items():
    assert torch.equal(tensor, before[key])
  assert module.weight.grad is None


def test_a_module_that_is_not_reproducible_is_refused(tmp_path):
  from crossattn_jax.parity import record

  with pytest.raises(ValueError, match=r'differs from run to run: set every drop rate to 0'):
    record.record(
      torch.nn.Dropout(0.5),
      {'x': record.Generated((4, 4))},
      tmp_path,
      system='mine',
      module_kind='Dropout',
      case='dropout',
      mode='train',
    )
  assert not np.any(list(tmp_path.iterdir()))
