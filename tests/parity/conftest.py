"""A hand-written case and the small Flax module that reproduces it."""

import json

from flax import linen as nn
import numpy as np
import pytest

from crossattn_jax.conversion.mapping import Rule
from crossattn_jax.parity import adapters, bounds, cases

RULES = [
  Rule('fc.weight', 'dense/kernel', 'linear'),
  Rule('fc.bias', 'dense/bias'),
  Rule('scale', 'scale', 'unbatched'),
]


class Scaled(nn.Module):
  """y = scale * (x W + b)."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(3, name='dense')(x)
    return x * self.param('scale', nn.initializers.ones, ())


def make_adapter(manifest):
  return adapters.module_adapter(
    manifest,
    Scaled(),
    rules=RULES,
    call=lambda module, inputs: {'y': module(inputs['x']), 'largest': inputs['x'].argmax(-1)},
    taps={'fc': 'dense'},
  )


def _pair(seed, key, gradient):
  probe = cases.generate(seed, f'probe/{key}', gradient.shape)
  return [float(np.linalg.norm(gradient)), float(np.sum(gradient * probe))]


def write_case(folder, name='scaled', module='scaled'):
  """Writes the case with numpy alone; everything is derived by hand."""
  seed = 7
  state = [
    {'key': 'fc.weight', 'shape': [3, 4], 'kind': 'param', 'mean': 0.0, 'std': 0.5},
    {'key': 'fc.bias', 'shape': [3], 'kind': 'param', 'mean': 0.0, 'std': 0.1},
    {'key': 'scale', 'shape': [1], 'kind': 'param', 'mean': 1.0, 'std': 0.1, 'abs': True},
    {'key': 'index', 'shape': [2], 'kind': 'buffer'},
  ]
  weight, bias, scale = (
    cases.generate(
      seed, e['key'], e['shape'], mean=e['mean'], std=e['std'], abs=e.get('abs', False)
    ).astype(np.float64)
    for e in state[:3]
  )
  x = cases.generate(seed, 'input/x', (2, 4)).astype(np.float64)
  fc = x @ weight.T + bias
  y = scale * fc
  cotangent = cases.generate(seed, 'cotangent/y', y.shape).astype(np.float64)
  arrays = {
    'tap/fc': fc,
    'out/y': y,
    'out/largest': x.argmax(-1).astype(np.float64),
    'grad_input/x': scale * cotangent @ weight,
  }
  gradients = {
    'fc.weight': scale * cotangent.T @ x,
    'fc.bias': scale * cotangent.sum(0),
    'scale': np.sum(cotangent * fc).reshape(1),
  }
  errors = dict.fromkeys([*arrays, *(f'grad_param/{key}' for key in gradients)], 1e-7)
  manifest = {
    'system': 'stand_in',
    'module': module,
    'case': name,
    'reference': 'numpy',
    'constructor': {},
    'seed': seed,
    'mode': 'eval',
    'torch': '-',
    'parameter_count': 16,
    'state': state,
    'inputs': {'x': {'kind': 'generated', 'shape': [2, 4], 'mean': 0.0, 'std': 1.0, 'abs': False}},
    'shapes': {name: list(array.shape) for name, array in arrays.items()},
    'float32_relative_error': errors,
    'grad_param': {key: _pair(seed, key, gradient) for key, gradient in gradients.items()},
    'notes': '',
  }
  arrays['sub:3/tap/fc'] = arrays.pop('tap/fc').reshape(-1)[::3]
  np.savez(folder / f'{name}.npz', **arrays)
  path = folder / f'{name}.json'
  path.write_text(json.dumps(manifest))
  return path


@pytest.fixture
def stand_in(monkeypatch):
  """Registers the adapter of system 'stand_in', module 'scaled', for one test."""
  # Those of systems that are imported meanwhile stay.
  monkeypatch.setitem(adapters._adapters, ('stand_in', 'scaled'), make_adapter)


@pytest.fixture
def case_path(tmp_path):
  return write_case(tmp_path)


@pytest.fixture
def edit_case(case_path):
  """Applies `change(manifest, arrays)` to the case on disk."""

  def edit(change):
    manifest = json.loads(case_path.read_text())
    arrays = dict(np.load(case_path.with_suffix('.npz')))
    change(manifest, arrays)
    case_path.write_text(json.dumps(manifest))
    np.savez(case_path.with_suffix('.npz'), **arrays)
    return case_path

  return edit


@pytest.fixture(params=bounds.PRECISIONS)
def precision(request):
  return request.param
