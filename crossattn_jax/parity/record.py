"""Records what a PyTorch module computes, as a case that `replay` checks without PyTorch.

    record.record(module, {'image': record.Generated((2, 3, 64, 64))}, 'tests/reference/mine',
                  system='mine', module_kind='Encoder', case='encoder_64')

writes `encoder_64.json` and `encoder_64.npz` (`docs/parity.md` documents them): outputs and every
submodule's result in float64, gradients, and how far PyTorch's own float32 run is from them.
Weights are not stored: a copy of the module is filled with generated ones.
"""

from collections.abc import Callable, Mapping, Sequence
import copy
import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np

from crossattn_jax.conversion import optional
from crossattn_jax.parity import bounds, cases, hooks

torch = optional.require('torch')


@dataclasses.dataclass(frozen=True)
class Generated:
  """An input that is generated from its name instead of being stored.

  Attributes:
    shape: in the original's layout.
    mean: of the normal distribution.
    std: of the normal distribution.
    abs: whether the absolute value is taken.
  """

  shape: Sequence[int]
  mean: float = 0.0
  std: float = 1.0
  abs: bool = False


@dataclasses.dataclass(frozen=True)
class Statistics:
  """How a weight is generated: normal with `mean` and `std`, made positive where `abs`."""

  mean: float = 0.0
  std: float = 1.0
  abs: bool = False


def default_statistics(key: str, shape: Sequence[int]) -> Statistics:
  """Weights as a trained network might have them, so that no term of the computation hides.

  Matrices and kernels keep the scale of their input (1 / sqrt(fan in)); scales scatter around 1,
  biases around 0; running variances are positive.
  """
  if key.endswith('running_var'):
    return Statistics(1.0, 0.2, abs=True)
  if len(shape) > 1 and key.endswith('weight'):
    return Statistics(0.0, 1 / math.sqrt(math.prod(shape[1:])))
  if len(shape) == 1 and key.endswith('weight'):
    return Statistics(1.0, 0.1)
  return Statistics(0.0, 0.2 if len(shape) > 1 else 0.1)


def _state_entries(module: Any, statistics: Callable[..., Statistics]) -> list[dict[str, Any]]:
  parameters = {key for key, _ in module.named_parameters(remove_duplicate=False)}
  entries = []
  for key, tensor in module.state_dict().items():
    entry = {'key': key, 'shape': list(tensor.shape), 'kind': 'param'}
    if key not in parameters:
      entry['kind'] = 'stat' if tensor.is_floating_point() else 'buffer'
    if entry['kind'] != 'buffer':
      entry |= dataclasses.asdict(statistics(key, tuple(tensor.shape)))
    entries.append(entry)
  return entries


@dataclasses.dataclass
class _Run:
  """One forward and backward pass: arrays by recorded name, parameter gradients by key."""

  arrays: dict[str, np.ndarray]
  gradients: dict[str, np.ndarray]
  without_gradient: list[str]


def _numpy(tensor: Any) -> np.ndarray:
  return tensor.detach().cpu().double().numpy()


def _run(
  module: Any,
  dtype: Any,
  entries: Sequence[Mapping[str, Any]],
  inputs: Mapping[str, np.ndarray],
  seed: int,
  call: Callable[[Any, dict[str, Any]], Any],
  taps: Callable[[str], bool],
  gradients: bool,
  mode: str,
) -> _Run:
  module = copy.deepcopy(module).to(dtype).train(mode == 'train')
  state = {
    entry['key']: torch.from_numpy(
      cases.generate(
        seed,
        entry['key'],
        entry['shape'],
        mean=entry['mean'],
        std=entry['std'],
        abs=entry['abs'],
      )
    )
    for entry in entries
    if entry['kind'] != 'buffer'
  }
  module.load_state_dict(state, strict=False)
  tensors = {}
  for name, array in inputs.items():
    tensor = torch.from_numpy(np.array(array))
    if tensor.is_floating_point():
      tensor = tensor.to(dtype).requires_grad_(gradients)
    tensors[name] = tensor
  with torch.set_grad_enabled(gradients):
    result, found = hooks.tap_modules(module, lambda: call(module, dict(tensors)), taps)
  outputs = {
    name: tensor.reshape(1) if tensor.ndim == 0 else tensor
    for name, tensor in hooks.named_outputs(result).items()
  }
  arrays = {f'tap/{name}': _numpy(tensor) for name, tensor in found.items()}
  arrays |= {f'out/{name}': _numpy(tensor) for name, tensor in outputs.items()}
  run = _Run(arrays, {}, [name for name, t in outputs.items() if not t.requires_grad])
  if gradients:
    total = sum(
      (
        tensor * torch.from_numpy(cases.generate(seed, f'cotangent/{name}', tensor.shape)).to(dtype)
      ).sum()
      for name, tensor in outputs.items()
      if tensor.requires_grad
    )
    total.backward()
    for name, tensor in tensors.items():
      if tensor.grad is not None:
        run.arrays[f'grad_input/{name}'] = _numpy(tensor.grad)
    for key, parameter in module.named_parameters():
      gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
      run.gradients[key] = _numpy(gradient)
  return run


def record(
  torch_module: Any,
  inputs: Mapping[str, Any],
  folder: str | pathlib.Path,
  *,
  system: str,
  module_kind: str,
  case: str,
  constructor: Mapping[str, Any] | None = None,
  seed: int = 0,
  mode: str = 'eval',
  call: Callable[[Any, dict[str, Any]], Any] = lambda module, inputs: module(*inputs.values()),
  taps: Callable[[str], bool] = lambda name: True,
  gradients: bool = True,
  statistics: Callable[[str, Sequence[int]], Statistics] = default_statistics,
  max_elements: int = 4096,
  reference: str = '',
  notes: str = '',
) -> pathlib.Path:
  """Records a case from a PyTorch module; the module itself is left as it is.

  Args:
    torch_module: any `torch.nn.Module`.
    inputs: by name, in the order of the call: `Generated`, or a tensor or array to store.
    folder: where NAME.json and NAME.npz are written; created if missing.
    system: folder of the adapter, `crossattn_jax/parity/systems/<system>/`.
    module_kind: which adapter of that file.
    case: the case's name.
    constructor: what the adapter needs to build the Flax module; JSON values.
    seed: of weights, inputs, cotangents and probes.
    mode: 'eval' or 'train'. Every drop rate must be 0.
    call: (module, tensors by name) -> a tensor, a sequence or a dict of tensors.
    taps: which submodules are recorded, by name; all by default.
    gradients: whether gradients of inputs and parameters are recorded.
    statistics: (key, shape) -> how the weight is generated.
    max_elements: larger arrays are sub-sampled to about this many elements.
    reference: what was recorded: repository, commit, file.
    notes: layouts and anything unusual.

  Returns:
    The path of the manifest.

  Raises:
    ValueError: `mode` is unknown, or the module's results are not reproducible (dropout is on).
  """
  if mode not in ('eval', 'train'):
    raise ValueError(f'mode is {mode!r}; expected eval or train')
  entries = _state_entries(torch_module, statistics)
  descriptions, arrays = {}, {}
  for name, value in inputs.items():
    if isinstance(value, Generated):
      descriptions[name] = {
        'kind': 'generated',
        **dataclasses.asdict(value),
        'shape': list(value.shape),
      }
      arrays[name] = cases.generate(
        seed, f'input/{name}', value.shape, mean=value.mean, std=value.std, abs=value.abs
      )
    else:
      array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
      descriptions[name] = {
        'kind': 'stored',
        'shape': list(array.shape),
        'dtype': str(array.dtype),
      }
      arrays[name] = array

  def run(dtype):
    return _run(torch_module, dtype, entries, arrays, seed, call, taps, gradients, mode)

  truth, again, single = run(torch.float64), run(torch.float64), run(torch.float32)
  for name, array in truth.arrays.items():
    if bounds.relative_error(again.arrays[name], array) > 1e-12:
      raise ValueError(f'{name} differs from run to run: set every drop rate to 0')

  pairs = {
    key: _pair(gradient, cases.generate(seed, f'probe/{key}', gradient.shape))
    for key, gradient in truth.gradients.items()
  }
  errors = {
    name: bounds.relative_error(single.arrays[name], array) for name, array in truth.arrays.items()
  }
  for key, pair in pairs.items():
    probe = cases.generate(seed, f'probe/{key}', single.gradients[key].shape)
    errors[f'grad_param/{key}'] = bounds.relative_error(_pair(single.gradients[key], probe), pair)
  if gradients and truth.without_gradient:
    notes = f'{notes} Outputs without gradient: {", ".join(truth.without_gradient)}.'.strip()
  manifest = {
    'system': system,
    'module': module_kind,
    'case': case,
    'reference': reference,
    'constructor': dict(constructor or {}),
    'seed': seed,
    'mode': mode,
    'torch': torch.__version__,
    'parameter_count': sum(parameter.numel() for parameter in torch_module.parameters()),
    'state': entries,
    'inputs': descriptions,
    'shapes': {name: list(array.shape) for name, array in truth.arrays.items()},
    'float32_relative_error': errors,
    'grad_param': {key: list(pair) for key, pair in pairs.items()},
    'notes': notes,
  }
  stored = {
    f'input/{name}': arrays[name]
    for name, entry in descriptions.items()
    if entry['kind'] == 'stored'
  }
  for name, array in truth.arrays.items():
    # An odd stride meets every channel of an array whose axes are even.
    stride = -(-array.size // max_elements) | 1
    if stride == 1:
      stored[name] = array
    else:
      stored[f'sub:{stride}/{name}'] = array.reshape(-1)[::stride]
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(folder / f'{case}.npz', **stored)
  path = folder / f'{case}.json'
  path.write_text(json.dumps(manifest, indent=1) + '\n', encoding='utf-8')
  return path


def _pair(gradient: np.ndarray, probe: np.ndarray) -> tuple[float, float]:
  return float(np.linalg.norm(gradient)), float(np.sum(gradient * probe))
