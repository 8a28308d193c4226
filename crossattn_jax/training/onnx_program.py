"""A forward pass as an ONNX program, for runtimes other than jax's.

jax2onnx (extra `onnx`) translates a program operation by operation. What it cannot translate, or
translates into what onnxruntime refuses, is written in other operations first.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import importlib.util
import logging
from typing import Any

import jax
from jax import export as jax_export
from jax.extend import core
import jax.numpy as jnp
import numpy as np

# Of the largest output. A choice between two nearly equal scores may fall otherwise in one example
# (routing), so the error is that of the middle one.
TOLERANCE = 1e-4

# What runs a function that it names, and nothing else.
_CALLS = ('jit', 'closed_call', 'checkpoint', 'custom_jvp_call', 'custom_vjp_call')
_NOTHING = ('sharding_constraint', 'optimization_barrier', 'name', 'stop_gradient')

Function = Callable[[Mapping[str, jax.Array]], Mapping[str, jax.Array]]


class OnnxError(ValueError):
  """A function that does not become an ONNX program; the message says why."""


def check_installed() -> None:
  """Raises OnnxError unless the extra is there."""
  for package in ('jax2onnx', 'onnxruntime'):
    if importlib.util.find_spec(package) is None:
      raise OnnxError(
        f"ONNX programs need {package}, which is not installed: pip install 'crossattn_jax[onnx]'"
      )


def convert(function: Function, inputs: Mapping[str, jax.ShapeDtypeStruct]) -> bytes:
  """Writes a function of named arrays as an ONNX program, and runs that once.

  It has the forms of all kernels that are for any platform. Loops of known length are written out.

  Args:
    function: what to write; it holds its weights.
    inputs: its argument. Their first size may be symbolic (`jax.export.symbolic_shape`): the batch.

  Returns:
    The program with its weights. Inputs and outputs have the names of the function's.

  Raises:
    OnnxError: an operation has no translation, or the program does not compute in onnxruntime what
      jax computes of the same random inputs.
  """
  import jax2onnx

  names = sorted(inputs)  # As jax orders the values of a dictionary.
  shapes = jax.eval_shape(function, dict(inputs))
  level = logging.getLogger('onnx_ir').level
  logging.getLogger('onnx_ir').setLevel(logging.ERROR)  # It tells of shapes that it leaves open.
  try:
    model = jax2onnx.to_onnx(
      core.jaxpr_as_fun(written_out(function, inputs)),
      [inputs[name] for name in names],
      model_name='crossattn_jax',
      input_names=names,
      output_names=sorted(shapes),
    )
  except Exception as error:  # Whatever its parts raise.
    reason = (str(error).splitlines() or [''])[0]
    raise OnnxError(f'jax2onnx says {type(error).__name__}: {reason}') from error
  finally:
    logging.getLogger('onnx_ir').setLevel(level)
  # Shapes of intermediate results are no part of what is computed, and some of them are wrong.
  del model.graph.value_info[:]
  program = model.SerializeToString()
  _check(program, function, inputs)
  return program


def written_out(function: Function, inputs: Mapping[str, jax.ShapeDtypeStruct]) -> core.ClosedJaxpr:
  """The function in operations that become ONNX, of its inputs in the order of their names."""
  closed = jax.make_jaxpr(function)(dict(inputs))
  specs = [inputs[name] for name in sorted(inputs)]
  return jax.make_jaxpr(lambda *arrays: _evaluate(closed, arrays))(*specs)


def _check(program: bytes, function: Function, inputs: Mapping[str, jax.ShapeDtypeStruct]) -> None:
  """Raises OnnxError unless onnxruntime computes of three examples what jax does."""
  import onnxruntime

  onnxruntime.set_default_logger_severity(4)
  sizes = {x.shape[0] for x in inputs.values()}
  is_open = any(map(jax_export.is_symbolic_dim, sizes))
  rng, errors = np.random.default_rng(0), []
  compiled = jax.jit(function)
  try:
    session = onnxruntime.InferenceSession(program, providers=['CPUExecutionProvider'])
    for size in (1, 2) if is_open else [*sizes] * 3:
      arrays = {
        name: rng.standard_normal((size, *x.shape[1:])).astype(x.dtype)
        for name, x in inputs.items()
      }
      wanted = compiled(arrays)
      found = session.run(sorted(wanted), arrays)
      for name, values in zip(sorted(wanted), found, strict=True):
        exact = np.asarray(wanted[name])
        if values.shape != exact.shape:
          raise OnnxError(f'onnxruntime computes {name} of shape {values.shape}, jax {exact.shape}')
        difference = np.abs(values - exact).reshape(size, -1).max(axis=1)
        errors.extend(difference / np.abs(exact).max())
  except OnnxError:
    raise
  except Exception as error:  # onnxruntime's have no class of their own.
    raise OnnxError(f'onnxruntime refuses what jax2onnx made: {_sentence(error)}') from error
  if not np.median(errors) <= TOLERANCE:
    raise OnnxError(f'onnxruntime computes other numbers than jax: {np.median(errors):.2g} away')


def _sentence(error: Exception) -> str:
  return str(error).splitlines()[0].split(' Status Message: ')[0]


def _evaluate(closed: core.ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
  """Applies a traced function, in operations that become ONNX."""
  jaxpr = closed.jaxpr
  values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
  values |= zip(jaxpr.invars, arguments, strict=True)

  def value(variable):
    return variable.val if isinstance(variable, core.Literal) else values[variable]

  for equation in jaxpr.eqns:
    results = _apply(equation, [*map(value, equation.invars)])
    values |= zip(equation.outvars, results, strict=True)
  return [*map(value, jaxpr.outvars)]


def _closed(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> core.ClosedJaxpr:
  return jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else core.ClosedJaxpr(jaxpr, ())


def _apply(equation: core.JaxprEqn, arguments: list[Any]) -> list[Any]:
  primitive, params = equation.primitive, equation.params
  name = primitive.name
  if name == 'platform_index':
    return [params['platforms'].index(None)]  # The form for all platforms without one of their own.
  if name == 'cond' and isinstance(arguments[0], int):
    return _evaluate(_closed(params['branches'][arguments[0]]), arguments[1:])
  if name in _CALLS:
    called = next(x for x in params.values() if isinstance(x, core.ClosedJaxpr | core.Jaxpr))
    return _evaluate(_closed(called), arguments)
  if name in _NOTHING:
    return arguments
  if name == 'scan':
    return _write_out(equation, arguments)
  if name == 'pad' and not any(interior for _, _, interior in params['padding_config']):
    return [_pad(*arguments, [(low, high) for low, high, _ in params['padding_config']])]
  if name == 'reduce_window_max' and {*params['base_dilation'], *params['window_dilation']} == {1}:
    windows = zip(params['window_dimensions'], params['window_strides'], strict=True)
    return [_max_pool(*arguments, [*windows], params['padding'])]
  results = primitive.bind(*arguments, **params)
  return results if primitive.multiple_results else [results]


def _write_out(equation: core.JaxprEqn, arguments: list[Any]) -> list[Any]:
  """A loop, step after step; one whose steps need nothing of each other as one step of all."""
  params, body = equation.params, _closed(equation.params['jaxpr'])

  def split(inner, outer):  # Where a step has an axis less, it has a row of the whole.
    return sum(a.aval.ndim == b.aval.ndim for a, b in zip(inner, outer, strict=True))

  end = split(body.jaxpr.invars, equation.invars)
  num_constants = end - split(body.jaxpr.outvars, equation.outvars)
  constants, carry = arguments[:num_constants], arguments[num_constants:end]
  rows = arguments[end:]

  def step(*arrays):
    return _evaluate(body, arrays)

  if not carry:
    axes = [None] * len(constants) + [0] * len(rows)
    return jax.vmap(step, axes)(*constants, *rows)
  made, order = [], range(params['length'])
  for i in reversed(order) if params['reverse'] else order:
    results = step(*constants, *carry, *(x[i] for x in rows))
    carry = results[: len(carry)]
    made.append(results[len(carry) :])
  if params['reverse']:
    made.reverse()
  return [*carry, *map(jnp.stack, zip(*made, strict=True))]


def _pad(x: jax.Array, value: Any, margins: Sequence[tuple[int, int]]) -> jax.Array:
  """Pads by concatenation: jax2onnx pads no array whose batch is open. Negative margins cut."""
  for axis, (low, high) in enumerate(margins):
    if low < 0 or high < 0:
      x = jax.lax.slice_in_dim(x, max(0, -low), x.shape[axis] - max(0, -high), axis=axis)
    parts = [x]
    for count, place in ((low, 0), (high, 2)):
      if count > 0:
        shape = (*x.shape[:axis], int(count), *x.shape[axis + 1 :])
        parts.insert(place, jnp.full(shape, value, x.dtype))
    x = jnp.concatenate(parts, axis) if len(parts) > 1 else x
  return x


def _max_pool(
  x: jax.Array, windows: Sequence[tuple[int, int]], margins: Sequence[tuple[int, int]]
) -> jax.Array:
  """Maxima over windows (side, stride): jax2onnx pools over all axes, onnxruntime over three."""
  x = _pad(x, -jnp.inf, margins)
  for axis, (side, stride) in enumerate(windows):
    if side > 1 or stride > 1:
      span = x.shape[axis] - side + 1
      pixels = [jax.lax.slice_in_dim(x, i, i + span, stride, axis) for i in range(side)]
      x = functools.reduce(jnp.maximum, pixels)
  return x
