"""A PyTorch module and this library's model side by side, layer by layer.

Both get the same weights and the same input. The truth is the PyTorch module in float64; the
yardstick is the PyTorch module's own error in the precision that is looked at. The first layer, in
the order of execution, whose error leaves the bound is where to look.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import copy
import dataclasses
import importlib
import math
import pathlib
import runpy
from typing import Any

from etils import epath
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.conversion import correspondence, optional, reading
from crossattn_jax.conversion import mapping as mapping_lib
from crossattn_jax.models import registry
from crossattn_jax.parity import adapters, bounds, cases, hooks, record
from crossattn_jax.tasks import drawing

torch = optional.require('torch')

PRECISIONS = ('default', 'highest', 'bfloat16')
_NAMED_LAYERS = 32  # Of a plot.


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer of a comparison.

  Attributes:
    name: of the PyTorch submodule; 'out/<name>' is an output of the whole.
    path: of the Flax submodule; '' for an output.
    shape: of what it returns, in PyTorch's layout.
    error: relative, of ours against PyTorch in float64.
    torch_error: of PyTorch in the same precision.
    bound: that `error` should not exceed.
  """

  name: str
  path: str
  shape: tuple[int, ...]
  error: float
  torch_error: float
  bound: float

  @property
  def passed(self) -> bool:
    """Whether the error is within the bound."""
    return self.error <= self.bound


@dataclasses.dataclass(frozen=True)
class Comparison:
  """All layers that have a counterpart, in the order in which PyTorch finishes them.

  Attributes:
    name: of our model.
    against: what it was compared with.
    precision: 'default', 'highest' or 'bfloat16'.
    layers: in execution order.
    without_counterpart: PyTorch submodules with parameters that match no Flax submodule.
  """

  name: str
  against: str
  precision: str
  layers: tuple[Layer, ...]
  without_counterpart: tuple[str, ...]

  @property
  def first_outside(self) -> Layer | None:
    """The first layer whose error leaves its bound, or None."""
    return next((layer for layer in self.layers if not layer.passed), None)

  @property
  def worst(self) -> Layer:
    """The layer with the largest error."""
    return max(self.layers, key=lambda layer: layer.error)


def build_torch_module(against: str, weights: str | pathlib.Path | None = None) -> Any:
  """Builds what `--against` names.

  Args:
    against: 'timm:NAME', or 'MODULE:FACTORY' or 'FILE.py:FACTORY' where FACTORY is a callable
      without arguments that returns a `torch.nn.Module`.
    weights: of a timm model: a checkpoint in timm's spelling. Without one, it gets generated
      weights, in which no bias is zero and no scale is one.

  Raises:
    ValueError: `against` is neither, or the factory returns something else.
  """
  kind, _, name = against.partition(':')
  if not kind or not name:
    raise ValueError(
      f'--against is {against!r}; expected timm:NAME, MODULE:FACTORY or FILE.py:FACTORY'
    )
  if kind == 'timm':
    module = optional.require('timm').create_model(name, pretrained=False)
    if weights is None:
      fill_generated(module)
  else:
    is_file = kind.endswith('.py')
    owner = runpy.run_path(kind) if is_file else vars(importlib.import_module(kind))
    if name not in owner:
      raise ValueError(f'--against is {against!r}, but {kind} has no {name!r}')
    module = owner[name]()
  if not isinstance(module, torch.nn.Module):
    raise ValueError(f'{against} gives a {type(module).__name__}, not a torch.nn.Module')
  return module


def fill_generated(torch_module: Any, seed: int = 0) -> None:
  """Gives a module generated weights, as `record` does."""
  state = {}
  for key, tensor in torch_module.state_dict().items():
    if tensor.is_floating_point():
      statistics = record.default_statistics(key, tuple(tensor.shape))
      array = cases.generate(seed, key, tensor.shape, **dataclasses.asdict(statistics))
      state[key] = torch.from_numpy(array)
  torch_module.load_state_dict(state, strict=False)


def compare(
  name: str,
  torch_module: Any,
  *,
  against: str = 'a torch module',
  weights: str | pathlib.Path | None = None,
  precision: str = 'highest',
  overrides: Mapping[str, Any] | None = None,
  seed: int = 0,
) -> Comparison:
  """Compares `create_model(name, **overrides)` with a PyTorch module on generated inputs.

  Args:
    name: of our model.
    torch_module: the other side; left as it is.
    against: how reports call it.
    weights: a checkpoint for both sides; None takes the module's own weights.
    precision: of our side. 'highest' and 'default' compute in float32 with that precision of matrix
      products (they differ on TPUs and GPUs), 'bfloat16' in bfloat16 on both sides.
    overrides: of `create_model`.
    seed: of the generated input.

  Raises:
    mapping.MappingError: the module's weights are not those of our model.
    ValueError: `precision` is unknown.
  """
  if precision not in PRECISIONS:
    raise ValueError(f'precision is {precision!r}; expected one of {", ".join(PRECISIONS)}')
  overrides = dict(overrides or {})
  dtype = 'bfloat16' if precision == 'bfloat16' else 'float32'
  module = registry.create_model(name, **{**overrides, 'dtype': dtype})
  parity = correspondence.describe_model(name, module)
  template = correspondence.model_template(module, parity.call, parity.inputs)

  torch_module = copy.deepcopy(torch_module).eval().requires_grad_(False)
  shapes = {key: tuple(tensor.shape) for key, tensor in torch_module.state_dict().items()}
  mapping = mapping_lib.build_mapping(parity.rules, template, shapes)
  if weights is not None:
    variables = mapping.to_flax(reading.read_checkpoint(weights).state)
    state = {key: torch.from_numpy(np.array(x)) for key, x in mapping.to_torch(variables).items()}
    torch_module.load_state_dict(state, strict=False)
  else:
    state = {key: tensor.numpy() for key, tensor in torch_module.float().state_dict().items()}
    variables = mapping.to_flax(state)
  call, structs = correspondence.bind_examples(parity.call, parity.inputs)
  inputs = {
    key: cases.generate(seed, f'input/{key}', struct.shape) for key, struct in structs.items()
  }

  given = {key: inputs.get(key, example) for key, example in parity.inputs.items()}
  truth = _run_torch(torch_module, given, torch.float64)
  own = _run_torch(torch_module, given, getattr(torch, dtype))
  taps, without = _counterparts(
    module, variables, parity, mapping, {key: x.shape for key, x in truth.items()}
  )
  with contextlib.ExitStack() as stack:
    if precision != 'bfloat16':
      stack.enter_context(jax.default_matmul_precision(precision))
    outputs, found = jax.jit(
      lambda variables, inputs: adapters.run_with_taps(
        module, variables, inputs, call=call, taps=taps
      )
    )(variables, inputs)
  ours = {key: np.asarray(x, np.float64) for key, x in found.items()}
  names = [key for key in truth if key.startswith('out/')]
  ours |= {key: np.asarray(x, np.float64) for key, x in zip(names, outputs.values(), strict=True)}

  layers = []
  for key, expected in truth.items():
    if key not in ours:
      continue
    torch_error = bounds.relative_error(own[key], expected)
    layers.append(
      Layer(
        key,
        taps[key].path if key in taps else '',
        expected.shape,
        bounds.relative_error(ours[key].reshape(expected.shape), expected),
        torch_error,
        bounds.output_bound(dtype, torch_error),
      )
    )
  return Comparison(name, against, precision, tuple(layers), tuple(without))


def _run_torch(module: Any, inputs: Mapping[str, np.ndarray], dtype: Any) -> dict[str, np.ndarray]:
  """What every submodule and the whole ('out/<name>') returned, in execution order."""
  module = copy.deepcopy(module).to(dtype)
  tensors = [torch.from_numpy(x) for x in inputs.values()]
  tensors = [x.to(dtype) if x.is_floating_point() else x for x in tensors]
  with torch.no_grad():
    result, found = hooks.tap_modules(module, lambda: module(*tensors), lambda name: True)
  found |= {f'out/{name}': tensor for name, tensor in hooks.named_outputs(result).items()}
  return {name: tensor.double().numpy() for name, tensor in found.items()}


def _counterparts(
  module: nn.Module,
  variables: Any,
  parity: correspondence.Correspondence,
  mapping: mapping_lib.Mapping,
  torch_shapes: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, correspondence.Tap], list[str]]:
  """Finds for every PyTorch submodule the Flax submodule that owns exactly the same parameters.

  Wrappers may own the same parameters as what they wrap: then a PyTorch leaf goes with the
  innermost Flax module and any other with the outermost one whose result has the right size.

  Returns:
    Taps by PyTorch name, and the names of submodules with parameters but without counterpart.
  """
  flax_shapes = _result_shapes(module, variables, parity)
  owned_by_flax: dict[str, set[str]] = {path: set() for path in flax_shapes}
  owned_by_torch: dict[str, set[str]] = {name: set() for name in torch_shapes}
  for entry in mapping.entries:
    for i in range(len(entry.path)):
      path = '/'.join(entry.path[:i])
      if path in owned_by_flax:
        owned_by_flax[path].add(entry.torch_key)
    parts = entry.torch_key.split('.')
    for i in range(1, len(parts)):
      name = '.'.join(parts[:i])
      if name in owned_by_torch:
        owned_by_torch[name].add(entry.torch_key)

  taps, without = {}, []
  for name, keys in owned_by_torch.items():
    if name in parity.taps:
      if parity.taps[name] is not None:
        taps[name] = correspondence.as_tap(parity.taps[name])
      continue
    if not keys:
      continue
    leaf = not any(other.startswith(f'{name}.') for other in owned_by_torch)
    paths = sorted(
      (path for path, owned in owned_by_flax.items() if owned == keys),
      key=lambda path: path.count('/'),
      reverse=leaf,
    )
    for path in paths:
      layout = _result_layout(flax_shapes[path], torch_shapes[name])
      if layout is not None:
        taps[name] = correspondence.Tap(path, layout)
        break
    else:
      without.append(name)
  return taps, without


def _result_shapes(
  module: nn.Module, variables: Any, parity: correspondence.Correspondence
) -> dict[str, tuple[int, ...]]:
  """The shape of the first array that each Flax submodule returns, by path."""
  call, structs = correspondence.bind_examples(parity.call, parity.inputs)
  _, state = jax.eval_shape(
    lambda variables, inputs: module.apply(
      variables,
      inputs,
      method=call,
      mutable=['intermediates'],
      capture_intermediates=lambda submodule, method: method == '__call__',
    ),
    variables,
    structs,
  )
  flat = traverse_util.flatten_dict(
    state['intermediates'], is_leaf=lambda path, _: path[-1:] == ('__call__',)
  )
  return {'/'.join(path[:-1]): jax.tree.leaves(calls)[0].shape for path, calls in flat.items()}


def _result_layout(
  flax_shape: Sequence[int], torch_shape: Sequence[int]
) -> Callable[[Any], jax.Array] | None:
  """How a Flax result becomes the PyTorch one; None where no layout fits.

  Layouts are: the same; a batch of one here and no batch there; channels last here and first there,
  where the map may be flattened to tokens here; channels split in heads here and together there.
  """
  flax_shape, torch_shape = tuple(flax_shape), tuple(torch_shape)
  if flax_shape == torch_shape:
    return _first_array
  if flax_shape == (1, *torch_shape):
    return lambda result: _first_array(result)[0]
  if flax_shape[0] != torch_shape[0] or len(torch_shape) < 2:
    return None
  if (
    len(torch_shape) > 2
    and flax_shape[-1] == torch_shape[1]
    and math.prod(flax_shape[1:-1]) == math.prod(torch_shape[2:])
  ):
    return lambda result: jnp.moveaxis(_first_array(result), -1, 1).reshape(torch_shape)
  for i in range(1, len(flax_shape)):
    # A single query token may have lost its axis.
    kept = [side for side in flax_shape[1:i] if side > 1]
    expected = [side for side in torch_shape[1:-1] if side > 1]
    if kept == expected and math.prod(flax_shape[i:]) == torch_shape[-1]:
      return lambda result: _first_array(result).reshape(torch_shape)
  return None


def _first_array(result: Any) -> jax.Array:
  return jax.tree.leaves(result)[0]


def plot(comparison: Comparison, path: str | pathlib.Path) -> None:
  """Draws the errors in execution order as a PNG."""
  layers = comparison.layers
  page, (axes,) = drawing.panels(1, 0.5)
  x, floor = np.arange(len(layers)), 1e-17
  for values, style, color, label in (
    ([layer.bound for layer in layers], '-', '0.6', 'bound'),
    ([layer.torch_error for layer in layers], '.', 'C1', "PyTorch's own error"),
    ([layer.error for layer in layers], '.', 'C0', 'error of this library'),
  ):
    axes.semilogy(x, np.maximum(values, floor), style, color=color, label=label)
  first = comparison.first_outside
  if first is not None:
    axes.axvline(
      layers.index(first), color='C3', linestyle='--', label=f'first outside: {first.name}'
    )
  step = -(-len(layers) // _NAMED_LAYERS)
  names = [layer.name for layer in layers][::step]
  axes.set_xticks(x[::step], names, rotation=90, fontsize=drawing.SMALL)
  axes.tick_params(axis='y', labelsize=drawing.SMALL)
  axes.set_ylabel('relative error', fontsize=drawing.TEXT)
  axes.set_title(f'{comparison.name} beside {comparison.against}', fontsize=drawing.TEXT)
  axes.grid(axis='y', alpha=0.3)
  axes.set_ylim(top=8 * axes.get_ylim()[1])  # Room for the legend above the largest error.
  axes.legend(fontsize=drawing.SMALL, loc='upper right', ncols=4)
  caption = (
    'A dot is the result of a layer, from the input on the left to the output on the right; some '
    'are named. Errors are against PyTorch in float64; what lies below the bound is explained by '
    f'rounding. Precision: {comparison.precision}.'
  )
  drawing.save(page, epath.Path(path), caption)
