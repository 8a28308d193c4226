"""Recorded cases with other arguments, sizes and modes."""

import copy
import json
import pathlib

import jax
import numpy as np
import pytest

from crossattn_jax.parity import adapters, cases, replay

REFERENCE = pathlib.Path(__file__).parents[2] / 'reference'


@pytest.fixture
def vary():
  """Reads a manifest and changes it."""

  def read(case, constructor=(), *, inputs=(), state=(), without=(), outputs=(), mode=None):
    """The manifest of `SYSTEM/NAME` where these arguments, shapes and outputs are others."""
    manifest = json.loads((REFERENCE / f'{case}.json').read_text())
    manifest['constructor'] |= dict(constructor)
    manifest['mode'] = mode or manifest['mode']
    for name, shape in dict(inputs).items():
      manifest['inputs'][name]['shape'] = list(shape)
    shapes = dict(state)
    manifest['state'] = [
      entry | {'shape': list(shapes.get(entry['key'], entry['shape']))}
      for entry in manifest['state']
      if not entry['key'].startswith(tuple(without) or '-')
    ]
    manifest['shapes'] |= {f'out/{name}': [] for name in outputs}
    return manifest

  return read


@pytest.fixture
def compute():
  """Runs the adapter of a manifest in float64 on generated weights: its outputs and taps."""

  def run(manifest, **stored):
    manifest = copy.deepcopy(manifest)
    for name, array in stored.items():
      manifest['inputs'][name] = {
        'kind': 'stored', 'shape': list(array.shape), 'dtype': str(array.dtype),
      }  # fmt: skip
    adapter = adapters.find_adapter(manifest)
    case = cases.Case(pathlib.Path(), manifest, stored, {})
    with replay.precision_context('float64'):
      variables = adapter.mapping.to_flax(case.weights) if adapter.mapping else {}
      variables = replay.to_precision(variables, 'float64')
      inputs = replay.to_precision(dict(case.inputs), 'float64')
      static = {name: inputs.pop(name) for name in adapter.static}
      run = lambda variables, inputs: adapter.run(variables, {**inputs, **static})
      outputs, taps = (jax.jit(run) if adapter.jit else run)(variables, inputs)
      return jax.tree.map(np.asarray, (dict(outputs), dict(taps)))

  return run
