"""Replays recorded cases: runs the Flax side and judges every array against the record."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import dataclasses
import pathlib
import time
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.parity import adapters, bounds, cases

# Gradients of larger modules are worth optimised code.
_HEAVY_PARAMETERS = 100_000


@dataclasses.dataclass(frozen=True)
class Row:
  """The verdict on one array.

  Attributes:
    array: its name: 'out/logits', 'tap/norm.0', 'grad_input/image', 'grad_param/head.weight',
      'parameter_count'.
    error: relative error, or the absolute one where `note` says so; None where nothing compares.
    torch_error: of PyTorch's own float32 run; None where it was not recorded.
    bound: that `error` must not exceed.
    passed: the verdict.
    note: why there is no error, or what is special about the bound.
  """

  array: str
  error: float | None
  torch_error: float | None
  bound: float | None
  passed: bool
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Result:
  """One case replayed in one precision.

  Attributes:
    case: its name.
    path: of its manifest.
    precision: 'float64' (exactness) or 'float32' (stability).
    rows: the verdicts, in the manifest's order.
    error: why it could not be run; empty where it ran.
    seconds: it took.
  """

  case: str
  path: str
  precision: str
  rows: tuple[Row, ...]
  error: str
  seconds: float

  @property
  def passed(self) -> bool:
    """Whether the case ran and every row passed."""
    return not self.error and all(row.passed for row in self.rows)

  def failures(self) -> str:
    """Why it did not pass, a line per reason."""
    lines = [self.error] if self.error else []
    for row in self.rows:
      if not row.passed:
        lines.append(f'{row.array}: error {row.error}, bound {row.bound} {row.note}'.rstrip())
    return '\n'.join(lines)


@contextlib.contextmanager
def precision_context(precision: str):
  """Runs jax in 'float64' or 'float32', matrix products as exact as the dtype allows."""
  if precision not in bounds.PRECISIONS:
    raise ValueError(f'precision is {precision!r}; expected one of {", ".join(bounds.PRECISIONS)}')
  with jax.enable_x64(precision == 'float64'), jax.default_matmul_precision('highest'):
    yield


def to_precision(tree: Any, precision: str) -> Any:
  """Casts the floating arrays of a tree of numpy arrays to `precision`."""
  return jax.tree.map(
    lambda x: x.astype(precision) if np.issubdtype(x.dtype, np.floating) else x, tree
  )


def _jit_once(function: Callable[..., Any], heavy: bool) -> Callable[..., Any]:
  """Compiles a function that runs once; unless it is `heavy`, without optimising it on CPUs.

  Optimised code takes XLA:CPU twice as long to compile, which only gradients of whole models win
  back: those of CrossViT-Ti take 24 s of processor time with it and 121 s without.
  """
  quick = jax.default_backend() == 'cpu' and not heavy
  return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0 if quick else 3})


def _is_float(x: Any) -> bool:
  return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _same_shape(shape: Sequence[int], recorded: Sequence[int]) -> bool:
  # Records hold scalars as arrays of one element.
  return tuple(shape) == tuple(recorded) or (tuple(shape) == () and tuple(recorded) == (1,))


def run_case(case: cases.Case, adapter: adapters.Adapter, precision: str) -> dict[str, np.ndarray]:
  """Runs the Flax side of a case.

  Returns:
    The arrays by recorded name, and 'grad_param/<key>' as gradients in the original's layout.

  Raises:
    ValueError: the adapter's outputs are not the recorded ones.
  """
  grad_inputs, has_grad_param = case.names('grad_input'), bool(case.manifest['grad_param'])
  with precision_context(precision):
    variables = adapter.mapping.to_flax(case.weights) if adapter.mapping else {}
    variables = to_precision(variables, precision)
    static = {name: np.asarray(x) for name, x in case.inputs.items() if name in adapter.static}
    inputs = {name: x for name, x in case.inputs.items() if name not in static}
    inputs = jax.tree.map(jnp.asarray, to_precision(inputs, precision))
    cotangents = to_precision({name: case.cotangent(name) for name in case.names('out')}, precision)

    def scalar(params, differentiated, others):
      merged = {**others['variables'], 'params': params} if params else others['variables']
      outputs, taps = adapter.run(merged, {**others['inputs'], **differentiated, **static})
      if missing := cotangents.keys() - outputs:
        raise ValueError(
          f'the adapter has no output {", ".join(sorted(missing))}; it has {", ".join(outputs)}'
        )
      outputs = {name: outputs[name] for name in cotangents}
      total = 0.0
      for name, output in outputs.items():
        shape = case.recorded[f'out/{name}'].shape
        if not _same_shape(output.shape, shape):
          raise ValueError(f'output {name!r} has shape {output.shape}; recorded is {shape}')
        if _is_float(output) and name not in adapter.without_gradient:
          total += jnp.sum(output * cotangents[name].reshape(output.shape))
      return total, (outputs, taps)

    params = variables.get('params', {})
    differentiated = {name: inputs[name] for name in grad_inputs}
    others = {
      'variables': {name: tree for name, tree in variables.items() if name != 'params'},
      'inputs': {name: x for name, x in inputs.items() if name not in differentiated},
    }
    arrays = {}
    if grad_inputs or has_grad_param:
      gradient = jax.grad(scalar, argnums=(0, 1), has_aux=True)
      if adapter.jit:
        gradient = _jit_once(gradient, case.manifest['parameter_count'] > _HEAVY_PARAMETERS)
      (grad_params, grads), (outputs, taps) = gradient(params, differentiated, others)
      arrays.update({f'grad_input/{name}': grad for name, grad in grads.items()})
      if has_grad_param:
        flat = traverse_util.flatten_dict(jax.tree.map(np.asarray, grad_params))
        for key in case.manifest['grad_param']:
          # What modules share has several keys in a state dict, any of which the record may have.
          entry = adapter.mapping.find(key)
          if entry is None:
            continue
          # Parameters that the original froze are in other collections and get no gradient.
          gradient = np.zeros(entry.torch_shape)
          if entry.collection == 'params':
            gradient = entry.layout.to_torch(flat[entry.path], entry.torch_shape)
          arrays[f'grad_param/{key}'] = gradient
    else:
      forward = _jit_once(scalar, heavy=False) if adapter.jit else scalar
      _, (outputs, taps) = forward(params, differentiated, others)
    arrays.update({f'out/{name}': output for name, output in outputs.items()})
    arrays.update({f'tap/{name}': tap for name, tap in taps.items()})
    return {name: np.asarray(array) for name, array in arrays.items()}


def _was_rounded(case: cases.Case, name: str) -> bool:
  """Whether the original rounded an array to float32, in any precision."""
  return name in case.manifest.get('recorded_in_float32', ())


def _judge_array(
  case: cases.Case,
  adapter: adapters.Adapter,
  precision: str,
  name: str,
  array: np.ndarray | None,
) -> Row:
  recorded = case.recorded[name]
  errors = case.manifest['float32_relative_error']
  torch_error = errors[name]
  if array is None:
    return Row(name, None, torch_error, None, False, 'the adapter did not return it')
  if not _same_shape(array.shape, recorded.shape):
    note = f'shape {array.shape}, recorded {recorded.shape}'
    return Row(name, None, torch_error, None, False, note)
  actual, expected = recorded.sample(array.reshape(recorded.shape)), recorded.values
  if name in adapter.tolerances:
    error = float(np.max(np.abs(actual.astype(np.float64) - expected), initial=0.0))
    bound = adapter.tolerances[name]
    return Row(name, error, torch_error, bound, error <= bound, "absolute, as the case's notes say")
  if not np.issubdtype(array.dtype, np.floating):
    different = int(np.count_nonzero(actual != expected))
    note = f'{different} of {expected.size} differ' if different else 'equal'
    return Row(name, float(different), torch_error, 0.0, different == 0, note)
  error = bounds.relative_error(actual, expected)
  rounded = _was_rounded(case, name)
  if name.startswith('grad_input/'):
    bound = bounds.gradient_bound(precision, errors, rounded)
  else:
    bound = bounds.output_bound(precision, torch_error, rounded)
  return Row(name, error, torch_error, bound, error <= bound)


def _judge_gradient(case: cases.Case, precision: str, key: str, gradient: np.ndarray | None) -> Row:
  name = f'grad_param/{key}'
  errors = case.manifest['float32_relative_error']
  torch_error = errors.get(name)
  if gradient is None:
    return Row(name, None, torch_error, None, False, 'no gradient for this key')
  gradient = gradient.astype(np.float64)
  probe = case.probe(key, gradient.shape).astype(np.float64)
  actual = np.array([np.linalg.norm(gradient.ravel()), np.sum(gradient * probe)])
  expected = np.array(case.manifest['grad_param'][key], dtype=np.float64)
  error = bounds.relative_error(actual, expected)
  bound = bounds.gradient_bound(precision, errors, _was_rounded(case, name))
  negligible = bounds.negligible_gradient(precision, case.manifest['grad_param'])
  if error > bound and np.linalg.norm(actual - expected) < negligible:
    note = "a negligible share of the case's largest gradient"
    return Row(name, error, torch_error, bound, True, note)
  return Row(name, error, torch_error, bound, error <= bound)


def judge(
  case: cases.Case,
  adapter: adapters.Adapter,
  precision: str,
  arrays: Mapping[str, np.ndarray],
) -> list[Row]:
  """Compares what `run_case` returned with the record, array by array."""
  rows = [_judge_array(case, adapter, precision, name, arrays.get(name)) for name in case.recorded]
  rows += [
    _judge_gradient(case, precision, key, arrays.get(f'grad_param/{key}'))
    for key in case.manifest['grad_param']
  ]
  count, expected = (
    adapters.parameter_count(adapter, case.manifest),
    case.manifest['parameter_count'],
  )
  note = 'equal' if count == expected else f'{count} parameters, recorded {expected}'
  rows.append(
    Row('parameter_count', float(abs(count - expected)), None, 0.0, count == expected, note)
  )
  return rows


def replay_case(case: cases.Case, precision: str) -> Result:
  """Replays one case; an exception becomes the result's `error`."""
  start = time.perf_counter()
  rows, error = (), ''
  try:
    adapter = adapters.find_adapter(case.manifest)
    rows = tuple(judge(case, adapter, precision, run_case(case, adapter, precision)))
  except Exception as exception:
    error = f'{type(exception).__name__}: {exception}'
  seconds = time.perf_counter() - start
  return Result(case.name, str(case.path), precision, rows, error, seconds)


def replay(
  paths: Iterable[str | pathlib.Path], precisions: Sequence[str] = bounds.PRECISIONS
) -> Iterable[Result]:
  """Replays every case under `paths`, yielding a result per case and precision.

  Args:
    paths: folders, searched recursively, or manifests.
    precisions: of 'float64' and 'float32'.

  Raises:
    cases.CaseError: a path does not exist or holds no case. A case that cannot be read is a result.
  """
  for path in cases.find_manifests(paths):
    try:
      case = cases.read_case(path)
    except cases.CaseError as error:
      for precision in precisions:
        yield Result(path.stem, str(path), precision, (), str(error), 0.0)
      continue
    for precision in precisions:
      yield replay_case(case, precision)
