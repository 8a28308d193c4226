r"""What the TPU compiler says about the kernels, beside the jnp forms and the roofline floor.

  python -m benchmarks.kernels --json kernels.json [--only routed/224 ...] [--topology v5e:2x2]

Prints the tables of docs/measurements. Needs no TPU but libtpu, and minutes. All figures are
static: cycles are XLA's estimates of its fusions plus, for every Pallas kernel, the bundles of its
schedule times the steps of its grid; transfers that arrive late are not in them. Code that a kernel
runs only in some steps (`pl.when`) counts in all.
"""

import argparse
import collections
from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import glob
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp

from crossattn_jax import kernels
from crossattn_jax.training.compile import aot, hlo

TOPOLOGIES = ('v5e:2x2', 'v6e:2x2')
DIRECTIONS = ('forward', 'gradient')


@dataclasses.dataclass(frozen=True)
class Case:
  """One operation at one set of shapes.

  Attributes:
    op: name of the operation.
    name: of the shapes.
    call: takes the name of a form and the arguments.
    arguments: of the operation; the floating ones are differentiated.
    output: of the operation.
    flops: that the forward pass needs; the gradient needs 2.5 times as many besides.
    forms: name of a form -> implementation; all but 'tpu' are jnp.
    row_major: whether arguments and results lie in memory as their shapes say, as what is around
      the operation in a model leaves them. Alone, XLA may choose an order without padding, such as
      batch last of all but the channels, which a kernel copies.
  """

  op: str
  name: str
  call: Callable[..., jax.Array]
  arguments: tuple[jax.ShapeDtypeStruct, ...]
  output: jax.ShapeDtypeStruct
  flops: float
  forms: tuple[str, ...] = ('reference', 'xla', 'tpu')
  row_major: bool = False

  def function(self, form: str, direction: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What is compiled: the operation, or the operation and its vector-Jacobian product."""
    call = functools.partial(self.call, form)
    if direction == 'forward':
      return call, self.arguments
    floating = [i for i, x in enumerate(self.arguments) if jnp.issubdtype(x.dtype, jnp.floating)]

    def with_gradient(cotangent: jax.Array, *arguments: jax.Array) -> Any:
      def of_floating(*values: jax.Array) -> jax.Array:
        filled = list(arguments)
        for i, value in zip(floating, values, strict=True):
          filled[i] = value
        return call(*filled)

      output, pull_back = jax.vjp(of_floating, *(arguments[i] for i in floating))
      return output, pull_back(cotangent)

    return with_gradient, (self.output, *self.arguments)

  def floor_seconds(self, direction: str, chip: aot.Chip) -> float:
    """The least time: arguments and results pass the memory once, or the products are computed."""
    once = sum(x.size * x.dtype.itemsize for x in (*self.arguments, self.output))
    moved, flops = once, self.flops
    if direction == 'gradient':
      # Again all of that, and the gradients of the arguments.
      moved += once + sum(x.size * x.dtype.itemsize for x in self.arguments)
      flops *= 3.5
    return max(moved / chip.hbm_bandwidth, flops / chip.peak_flops)


# --- Routed attention ------------------------------------------------------------------------


def _routed_case(
  name: str, batch: int, regions: int, tokens: int, channels: int, num_heads: int, top_k: int
) -> Case:
  x = jax.ShapeDtypeStruct((batch, regions, tokens, channels), jnp.bfloat16)
  routing = jax.ShapeDtypeStruct((batch, regions, top_k), jnp.int32)

  def call(form: str, query, key, value, routing) -> jax.Array:
    return kernels.routed_attention(
      query,
      key,
      value,
      routing,
      num_heads=num_heads,
      scale=channels**-0.5,
      implementation=form,
    )

  flops = 4.0 * batch * regions * tokens * top_k * tokens * channels
  return Case('routed', name, call, (x, x, x, routing), x, flops)


# Stages 1 to 3 of BiFormer-S, bfloat16.
_ROUTED = (
  _routed_case('224 stage 1, batch 32', 32, 49, 64, 64, 2, 1),
  _routed_case('224 stage 2, batch 32', 32, 49, 16, 128, 4, 4),
  _routed_case('224 stage 3, batch 32', 32, 49, 4, 256, 8, 16),
  _routed_case('512x2048 stage 1', 1, 64, 1024, 64, 2, 1),
  _routed_case('512x2048 stage 2', 1, 64, 256, 128, 4, 4),
  _routed_case('512x2048 stage 3', 1, 64, 64, 256, 8, 16),
)


# --- Criss-cross attention -------------------------------------------------------------------


def _criss_cross_case(name: str, batch: int, height: int, width: int) -> Case:
  key_channels, channels = 64, 512
  positions = (batch, height, width)
  query = jax.ShapeDtypeStruct((*positions, key_channels), jnp.bfloat16)
  value = jax.ShapeDtypeStruct((*positions, channels), jnp.bfloat16)

  def call(form: str, query, key, value) -> jax.Array:
    return kernels.criss_cross_attention(query, key, value, implementation=form)

  pairs = batch * height * width * (height + width - 1)
  flops = 2.0 * pairs * (key_channels + channels)
  return Case('criss_cross', name, call, (query, query, value), value, flops, row_major=True)


# CCNet's maps of 769 x 769 crops and of whole Cityscapes images, bfloat16.
_CRISS_CROSS = (
  _criss_cross_case('97x97, batch 2', 2, 97, 97),
  _criss_cross_case('128x256', 1, 128, 256),
  _criss_cross_case('129x257', 1, 129, 257),
)

# --- Sparse convolution ----------------------------------------------------------------------


def _neighbours_case(cells: int, channels: int, features: int) -> Case:
  x = jax.ShapeDtypeStruct((1, cells, channels), jnp.bfloat16)
  kernel = jax.ShapeDtypeStruct((27, channels, features), jnp.bfloat16)
  table = jax.ShapeDtypeStruct((1, 27, cells), jnp.int32)
  out = jax.ShapeDtypeStruct((1, cells, features), jnp.bfloat16)

  def call(form: str, x, kernel, table) -> jax.Array:
    return kernels.sparse_convolution(x, kernel, table, implementation=form)

  # Of 27 neighbours about 8 are there. XLA has no estimate for its gathers, which 'xla' is made of.
  flops = 2.0 * cells * 8 * channels * features
  name = f'{cells} cells, {channels} to {features}'
  return Case('neighbours', name, call, (x, kernel, table), out, flops, ('xla', 'tpu'), True)


# Of MinkUNet18A on a scene in voxels of 2 cm: the finest level, and the next one.
_NEIGHBOURS = (
  _neighbours_case(98304, 128, 96),
  _neighbours_case(98304, 96, 96),
  _neighbours_case(32768, 32, 32),
)

CASES: Mapping[str, Case] = {
  f'{case.op}/{case.name}': case for case in (*_ROUTED, *_CRISS_CROSS, *_NEIGHBOURS)
}


# --- Measuring one compiled function ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Measurement:
  """What the compiler says about one function.

  Attributes:
    cycles: of everything.
    kernel_cycles: the part of the Pallas kernels.
    hbm_bytes: as XLA and the kernels' cost estimates count them.
    temporaries: bytes.
    mxu_share: bundles of the kernels, as often as they run, that use a matrix unit; None without
      kernels.
    spill_share: bundles that store a spilled register, likewise.
  """

  cycles: int
  kernel_cycles: int
  hbm_bytes: float
  temporaries: int
  mxu_share: float | None
  spill_share: float | None


@dataclasses.dataclass(frozen=True)
class _Kernel:
  """A `pallas_call`: steps of its grid, trip counts of the loops inside in program order."""

  steps: int
  loops: tuple[int, ...]


def measure(
  function: Callable[..., Any],
  arguments: tuple[Any, ...],
  topology: str,
  dump: str,
  row_major: bool = False,
) -> Measurement:
  """Compiles `function` for the first chip of `topology`.

  Args:
    function: to jit.
    arguments: shapes; those without a sharding are placed on the first chip.
    topology: as libtpu names them.
    dump: the folder to which `LIBTPU_INIT_ARGS` makes the compiler write its schedules.
    row_major: see `Case`.

  Returns:
    The compiler's figures.
  """
  from jax.experimental import layout, topologies

  devices = topologies.get_topology_desc(platform='tpu', topology_name=topology).devices
  chip = jax.sharding.SingleDeviceSharding(devices[0])
  arguments = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or chip), arguments
  )
  for path in glob.glob(f'{dump}/*'):
    os.remove(path)
  if row_major:
    order = lambda x: layout.Format(layout.Layout(tuple(range(x.ndim))), chip)
    results = jax.eval_shape(function, *arguments)
    in_order, out_order = jax.tree.map(order, (arguments, results))
    function = jax.jit(function, in_shardings=in_order, out_shardings=out_order)
  else:
    function = jax.jit(function)
  traced = function.trace(*arguments)
  compiled = traced.lower().compile()
  text = compiled.as_text()
  described = collections.defaultdict(set)
  for name, kernel in _kernels_of(traced.jaxpr.jaxpr):
    described[name].add(kernel)
  totals = collections.Counter()
  for instance in re.findall(r'%([\w.\-]+) = [^\n]*?custom_call_target="tpu_custom_call"', text):
    # Autodiff wraps names: transpose_jvp_NAME__.1 is an instance of NAME.
    found = max((name for name in described if name in instance), key=len, default='')
    if len(described[found]) != 1:
      raise ValueError(f'{instance}: kernels of different grids need different names')
    totals += _schedule(dump, instance, next(iter(described[found])))
  cost = compiled.cost_analysis() or {}
  share = lambda unit: totals[unit] / totals['cycles'] if totals['cycles'] else None
  return Measurement(
    cycles=hlo.program_costs(text).cycles + totals['cycles'],
    kernel_cycles=totals['cycles'],
    hbm_bytes=cost.get('bytes accessed', 0.0),
    temporaries=compiled.memory_analysis().temp_size_in_bytes,
    mxu_share=share('MXU'),
    spill_share=share('VSTORE_SPILL'),
  )


def _kernels_of(jaxpr: Any) -> Iterator[tuple[str, _Kernel]]:
  """Yields name and loops of every `pallas_call`."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'pallas_call':
      steps = 1
      for size in equation.params['grid_mapping'].grid:
        steps *= size
      name = equation.params.get('name') or equation.params['name_and_src_info'].name
      yield name, _Kernel(steps, tuple(_loops_of(equation.params['jaxpr'])))
    else:
      for inner in _inner_jaxprs(equation):
        yield from _kernels_of(inner)


def _loops_of(jaxpr: Any) -> Iterator[int]:
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'scan':
      yield equation.params['length'] // equation.params.get('unroll', 1)
    for inner in _inner_jaxprs(equation):
      yield from _loops_of(inner)


def _inner_jaxprs(equation: Any) -> Iterator[Any]:
  for value in equation.params.values():
    for each in value if isinstance(value, tuple | list) else (value,):
      each = getattr(each, 'jaxpr', each)
      if hasattr(each, 'eqns'):
        yield each


def _schedule(dump: str, instance: str, kernel: _Kernel) -> collections.Counter:
  """Cycles of a kernel, and those of them in which each unit is used."""
  depths = []
  for line in _dumped(dump, instance, 'final_bundles').splitlines():
    bundle = re.match(r'\s*(?:0x)?[0-9a-f]+ +(?:[A-Z]{2})?\s*:\s*(>*)\s*\{', line)
    if bundle:
      depths.append(len(bundle.group(1)))
  table = _dumped(dump, instance, 'final_hlo-static-per-bundle-utilization')
  units = ('MXU', 'XLU', 'VALU', 'VPOP', 'EUP', 'VLOAD', 'VLOAD_FILL', 'VSTORE', 'VSTORE_SPILL')
  used = [
    [int(x) for x in line.split()]
    for line in table.split('== UTILIZATION:')[-1].splitlines()
    if re.match(r'^\s*\d+( \d+)+\s*$', line)
  ]
  grid_depth = int(kernel.steps > 1)
  loops, total, previous = list(kernel.loops), collections.Counter(), 0
  trips = [1]
  for depth, usage in zip(depths, used, strict=True):
    inner = max(0, depth - grid_depth)
    if inner > max(0, previous - grid_depth):
      # The compiler adds loops of its own, which copy blocks that lie in VMEM already.
      trips = trips[:inner] + [trips[-1] * (loops.pop(0) if loops else 1)]
    times = trips[inner] * (kernel.steps if depth >= grid_depth else 1)
    total['cycles'] += times
    for unit, count in zip(units, usage, strict=False):
      total[unit] += times * (count > 0)
    previous = depth
  return total


def _dumped(dump: str, instance: str, stage: str) -> str:
  return pathlib.Path(max(glob.glob(f'{dump}/*-{instance}-*-{stage}.txt'))).read_text()


# --- Command line ----------------------------------------------------------------------------


def make(name: str, form: str, topology: str) -> dict[str, dict[str, Any]]:
  """Measures one form of a case, in both directions, in a process of its own.

  In that process the compiler writes its schedules, if there are kernels in the form: it writes
  those of XLA's fusions too, which takes longer than to compile them.
  """
  with tempfile.TemporaryDirectory() as dump:
    flags = f'--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true' if form == 'tpu' else ''
    environment = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'TPU_SKIP_MDS_QUERY': '1',
      'TPU_WORKER_HOSTNAMES': 'localhost',
      'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
      'LIBTPU_INIT_ARGS': f'{os.environ.get("LIBTPU_INIT_ARGS", "")} {flags}'.strip(),
    }
    command = [sys.executable, '-m', 'benchmarks.kernels', '--child', name, form, dump]
    result = subprocess.run(
      [*command, '--topology', topology],
      cwd=pathlib.Path(__file__).parents[1],
      env=environment,
      stdout=subprocess.PIPE,
      text=True,
      check=True,
    )
  return json.loads(result.stdout.splitlines()[-1])


def _child(name: str, form: str, dump: str, topology: str) -> dict[str, Any]:
  case, measured = CASES[name], {}
  for direction in DIRECTIONS:
    try:
      measured[direction] = dataclasses.asdict(
        measure(*case.function(form, direction), topology, dump, case.row_major)
      )
    except jax.errors.JaxRuntimeError as error:  # Does not fit, or the compiler gives up.
      measured[direction] = {'error': str(error).splitlines()[0]}
  return measured


def table(records: dict[str, dict[str, Any]]) -> str:
  """The table of docs/measurements."""
  lines = [
    '| case | chip | best jnp (kcycles) | kernel (kcycles) | ratio | floor (kcycles) | x floor '
    '| HBM MB, jnp -> kernel | temporaries MB, jnp -> kernel | MXU share |',
    '|---|---|---|---|---|---|---|---|---|---|',
  ]
  for key, record in records.items():
    case, chip = key.rsplit('/', 1)
    forms = {form: each for form, each in record.items() if form != 'floor' and 'error' not in each}
    jnp_forms = [each for form, each in forms.items() if form != 'tpu']
    if 'tpu' not in forms or not jnp_forms:
      lines.append(f'| {case} | {chip} | {record} |')
      continue
    best, kernel = min(jnp_forms, key=lambda each: each['cycles']), forms['tpu']
    share = f'{kernel["mxu_share"]:.0%}' if kernel['mxu_share'] is not None else '-'
    cells = (
      case,
      chip,
      f'{best["cycles"] / 1e3:,.0f}',
      f'{kernel["cycles"] / 1e3:,.0f}',
      f'1/{best["cycles"] / kernel["cycles"]:.1f}',
      f'{record["floor"] / 1e3:,.0f}',
      f'{kernel["cycles"] / record["floor"]:.1f}',
      f'{best["hbm_bytes"] / 1e6:,.0f} -> {kernel["hbm_bytes"] / 1e6:,.0f}',
      f'{best["temporaries"] / 1e6:,.0f} -> {kernel["temporaries"] / 1e6:,.0f}',
      share,
    )
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--json', help='file to which results are written; cases in it are kept')
  parser.add_argument('--only', nargs='*', default=[''], help='prefixes of names of cases')
  parser.add_argument('--topology', nargs='*', default=TOPOLOGIES)
  parser.add_argument('--forms', nargs='*', help='all forms of a case by default')
  parser.add_argument('--force', action='store_true', help='measure again what is in the file')
  parser.add_argument('--child', nargs=3, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.child:
    print(json.dumps(_child(*arguments.child, arguments.topology[0])))
    return
  path = pathlib.Path(arguments.json) if arguments.json else None
  records = json.loads(path.read_text()) if path and path.exists() else {}
  for topology in arguments.topology:
    chip = aot.CHIPS[topology.split(':')[0]]
    for name, case in CASES.items():
      if not name.startswith(tuple(arguments.only)):
        continue
      for form in arguments.forms or case.forms:
        keys = {direction: f'{name}/{direction}/{chip.name}' for direction in DIRECTIONS}
        if not arguments.force and form in records.get(keys['forward'], {}):
          continue
        for direction, measured in make(name, form, topology).items():
          floor = round(case.floor_seconds(direction, chip) * chip.clock)
          records.setdefault(keys[direction], {})['floor'] = floor
          records[keys[direction]][form] = measured
          print(keys[direction], form, measured, file=sys.stderr, flush=True)
        if path:
          path.write_text(json.dumps(records, indent=1) + '\n')
  print(table(records))


if __name__ == '__main__':
  main()
