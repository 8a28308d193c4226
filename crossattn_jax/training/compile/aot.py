"""Compiles the training step for a TPU slice that is not here, and reports what the compiler says.

The compiler is the real one, out of libtpu; nothing runs. So all figures are static estimates.
"""

import collections
from collections.abc import Sequence
import dataclasses
import importlib.util
import math
import os
import re
import time
from typing import Any

import jax
import jax.experimental.topologies
import ml_collections
import rich.table

from crossattn_jax import parallel
from crossattn_jax.training import device_memory, preflight
from crossattn_jax.training.compile import flops, hlo

# What models call layers that there are several of, in a row.
_NUMBERED = re.compile(r'\b(block|encoder|layer)_\d+')


class CompileError(ValueError):
  """No compiler, an unknown topology, or a step that does not fit; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one chip can do.

  Attributes:
    name: of the generation.
    dimensions: of its torus.
    largest_slice: chips.
    hbm_bytes: capacity of the memory.
    hbm_bandwidth: bytes per second.
    interconnect_bandwidth: bytes per second out of one chip, over all links.
    peak_flops: bfloat16 floating-point operations per second.
    clock: cycles per second.
    config_name: libtpu's name of the mode in which a chip is one device.
  """

  name: str
  dimensions: int
  largest_slice: int
  hbm_bytes: int
  hbm_bandwidth: float
  interconnect_bandwidth: float
  peak_flops: float
  clock: float
  config_name: str


# cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, where the interconnect's bandwidth counts both
# directions. The clock is the peak over the FLOPs per cycle of the matrix units: eight of 128 x 128
# in v4 and v5p, four in v5e, four of 256 x 256 in v6e.
CHIPS = {
  chip.name: chip
  for chip in (
    Chip('v4', 3, 4096, 32 * 2**30, 1.2e12, 300e9, 275e12, 1.05e9, 'megacore'),
    Chip('v5e', 2, 256, 16 * 2**30, 819e9, 200e9, 197e12, 1.5e9, 'default'),
    Chip('v5p', 3, 6144, 95 * 2**30, 2.765e12, 600e9, 459e12, 1.75e9, 'megacore'),
    Chip('v6e', 2, 256, 32 * 2**30, 1.6e12, 400e9, 918e12, 1.75e9, 'default'),
  )
}


@dataclasses.dataclass(frozen=True)
class Costly:
  """Operations of equal layers that together take longest; see `hlo.Operation`.

  Attributes:
    name: in the program, of the costliest of them.
    source: where in the model they are from, with a star for the numbers of blocks.
    cycles: of all, per step and device; of a Pallas kernel at least, see
      `CompileReport.kernel_seconds`.
    share: of the step.
    count: how many they are.
  """

  name: str
  source: str
  cycles: int
  share: float
  count: int


@dataclasses.dataclass(frozen=True)
class CompileReport:
  """What the compiler says about one training step. "Per device" means per chip.

  Attributes:
    model: name of the model.
    topology: as given.
    chip: of the topology.
    devices: chips.
    hosts: processes of the run.
    mesh: devices along each axis.
    batch_size: global, in examples.
    parameters: of the model.
    memory: of one device.
    arguments: bytes of the parts of `memory.arguments`, by name: parameters, optimizer, batch, ...
    flops: floating-point operations per device, as XLA counts them: everything that is computed,
      rematerialisation included. Loops that are not annotated with their length count once: with
      `fsdp` those are the products that overlap with the transfer of their operands.
    model_flops: floating-point operations that the model needs, in all; see `training_flops`.
    hbm_bytes: read and written per device, as XLA counts them; for loops see `flops`.
    collectives: by kind, per device.
    estimated_cycles: per device, the sum of the compiler's estimates; collectives and Pallas
      kernels have none.
    kernels: Pallas kernels that run per step and device.
    kernel_seconds: what they take at least, per step and device: the larger of their declared
      FLOPs at the chip's peak and their declared bytes at its bandwidth, each for itself.
    unestimated: other operations that the compiler has no estimate for.
    unbounded_loops: loops of unknown length, counted as one iteration.
    compile_seconds: from the traced step to the program.
    effort: of the compiler, as given.
    costliest: operations, as many as were asked for.
  """

  model: str
  topology: str
  chip: Chip
  devices: int
  hosts: int
  mesh: dict[str, int]
  batch_size: int
  parameters: int
  memory: device_memory.Memory
  arguments: dict[str, int]
  flops: float
  model_flops: float
  hbm_bytes: float
  collectives: dict[str, hlo.Collective]
  estimated_cycles: int
  kernels: int
  kernel_seconds: float
  unestimated: int
  unbounded_loops: int
  compile_seconds: float
  effort: float = 0.0
  costliest: Sequence[Costly] = ()

  @property
  def fits(self) -> bool:
    """Whether the step fits into the memory of a chip."""
    return self.memory.total <= self.chip.hbm_bytes

  @property
  def step_seconds(self) -> float:
    """Static estimate: cycles over clock, plus the kernels', with all communication hidden."""
    return self.estimated_cycles / self.chip.clock + self.kernel_seconds

  @property
  def communication_seconds(self) -> float:
    """Least time for the collectives: bytes over the full bandwidth, twice for an all-reduce."""
    moved = sum(
      each.bytes * (2 if kind == 'all-reduce' else 1) for kind, each in self.collectives.items()
    )
    return moved / self.chip.interconnect_bandwidth

  @property
  def images_per_second(self) -> float:
    """Examples per second of the whole slice, if the step took `step_seconds`."""
    return self.batch_size / self.step_seconds

  @property
  def mfu(self) -> float:
    """Model FLOPs utilisation of the same: `model_flops` over what all chips could do."""
    return self.model_flops / (self.step_seconds * self.devices * self.chip.peak_flops)

  def to_dict(self) -> dict[str, Any]:
    """Everything, the derived figures too, as JSON can hold it."""
    record = dataclasses.asdict(self)
    record['memory']['total'] = self.memory.total
    for name in ('fits', 'step_seconds', 'communication_seconds', 'images_per_second', 'mfu'):
      record[name] = getattr(self, name)
    return record

  def table(self) -> rich.table.Table:
    """Returns the report as a table for a terminal."""
    size = device_memory.size_string
    mesh = ', '.join(f'{axis} {count}' for axis, count in self.mesh.items() if count > 1)
    table = rich.table.Table(
      title=f'{self.model} on {self.topology}: static estimates of the compiler', show_header=False
    )
    table.add_column()
    table.add_column(justify='right')
    table.add_column()
    share = self.memory.total / self.chip.hbm_bytes
    verdict = 'fits' if self.fits else 'does NOT fit'
    table.add_row('devices', str(self.devices), f'{self.hosts} hosts, mesh {mesh or "of one"}')
    table.add_row('batch', str(self.batch_size), f'{self.batch_size / self.devices:g} per device')
    table.add_row('parameters', f'{self.parameters:,}', '')
    table.add_section()
    table.add_row('arguments', size(self.memory.arguments), 'per device: state and batch')
    for name, part in self.arguments.items():
      table.add_row(f'  {name}', size(part), 'of it')
    table.add_row('new outputs', size(self.memory.outputs - self.memory.aliased), 'not in place')
    table.add_row(
      'temporaries', size(self.memory.temporaries), 'activations, gradients, ... at their peak'
    )
    table.add_row('code', size(self.memory.code), '')
    table.add_row(
      'total', size(self.memory.total), f'{verdict}: {share:.1%} of {size(self.chip.hbm_bytes)}'
    )
    table.add_section()
    table.add_row('computed', f'{self.flops / 1e12:.4g} TFLOP', 'per device and step')
    table.add_row(
      'needed by the model', f'{self.model_flops / self.devices / 1e12:.4g} TFLOP', 'the same'
    )
    table.add_row('HBM traffic', size(self.hbm_bytes), 'the same')
    for kind, collective in sorted(self.collectives.items()):
      table.add_row(kind, size(collective.bytes), f'{collective.count} per step')
    table.add_section()
    if self.kernels:
      table.add_row(
        'Pallas kernels',
        f'{self.kernel_seconds * 1e3:.4g} ms',
        f'at least; {self.kernels} per step',
      )
    if self.unestimated:
      table.add_row('no estimate for', f'{self.unestimated:,}', 'operations: not in the step')
    table.add_row(
      'step', f'{self.step_seconds * 1e3:.4g} ms', 'cycles / clock + kernels; no communication'
    )
    table.add_row(
      'communication', f'{self.communication_seconds * 1e3:.4g} ms', 'at full bandwidth'
    )
    table.add_row('images/s', f'{self.images_per_second:.4g}', 'of the slice, if so')
    table.add_row('MFU', f'{self.mfu:.1%}', f'of {self.chip.peak_flops / 1e12:g} TFLOP/s')
    table.add_section()
    quick = f'with effort {self.effort:g}; a run has another program' if self.effort else ''
    table.add_row('compiled in', f'{self.compile_seconds:.0f} s', quick)
    return table

  def costliest_table(self) -> rich.table.Table:
    """Returns the costliest operations as a table for a terminal."""
    table = rich.table.Table(title=f'the {len(self.costliest)} costliest operations of the step')
    for column in ('share', 'cycles', 'ms', 'of'):
      table.add_column(column, justify='right', no_wrap=True)
    for column in ('operation', 'in the model'):
      table.add_column(column, overflow='fold')
    for each in self.costliest:
      milliseconds = f'{1e3 * each.cycles / self.chip.clock:.3g}'
      source = each.source or "the compiler's own"
      figures = f'{each.share:.1%}', f'{each.cycles:,}', milliseconds, f'{each.count}'
      table.add_row(*figures, each.name, source)
    return table


def compile_report(
  config: ml_collections.ConfigDict, topology: str, effort: float = 0.0, top: int = 0
) -> CompileReport:
  """Compiles the training step of an experiment for a TPU slice; no TPU and no data set needed.

  Args:
    config: of the experiment. `config.mesh` is laid over the topology.
    topology: chip and shape of the slice, such as 'v5e:4x4', 'v5p:4x4x4'.
    effort: of the compiler for a fast program, from -1 to 1; 0 is what a run has. -1 halves the
      time of compiling. What is computed and communicated stays, memory nearly so; cycles are up to
      2.5 times as many.
    top: how many of the costliest operations to list.

  Returns:
    The report.

  Raises:
    CompileError: libtpu is not installed, the topology is not known, or the step needs more memory
      than a chip has.
    ValueError: the config cannot be run on that many devices.
  """
  chip, devices = topology_devices(topology)
  mesh = parallel.create_mesh(**config.mesh, devices=devices)
  # The length of an epoch changes constants of the schedule, and no data set is needed to count it.
  experiment = preflight.setup(config, mesh, with_data=False)
  with jax.set_mesh(mesh):
    lowered = experiment.traced_step.lower()
    start = time.monotonic()
    try:
      options = {'exec_time_optimization_effort': effort} if effort else None
      compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
      first, *_ = str(error).splitlines()
      # A kernel that wants too much vector memory is exhausted too, and is not the user's to mend.
      if not (first.startswith('RESOURCE_EXHAUSTED') and 'HBM' in first):
        raise
      raise CompileError(
        f'the step does not fit into the HBM of a {chip.name}; lower config.batch_size, raise '
        'config.accumulation_steps or config.mesh.fsdp, or set config.model.remat=True. The '
        f'compiler says: {first.removeprefix("RESOURCE_EXHAUSTED: ")}'
      ) from error
  seconds = time.monotonic() - start
  analysis = compiled.cost_analysis()
  costs = hlo.program_costs(compiled.as_text())
  report = CompileReport(
    model=config.model.name,
    topology=topology,
    chip=chip,
    devices=len(devices),
    hosts=len({device.process_index for device in devices}),
    mesh=dict(mesh.shape),
    batch_size=config.batch_size,
    parameters=sum(leaf.size for leaf in jax.tree.leaves(experiment.abstract_state.params)),
    memory=device_memory.Memory.of(compiled),
    arguments=device_memory.arguments(experiment),
    flops=analysis['flops'],
    model_flops=flops.training_flops(experiment),
    hbm_bytes=analysis['bytes accessed'],
    collectives=costs.collectives,
    estimated_cycles=costs.cycles,
    kernels=costs.kernels.total(),
    kernel_seconds=sum(
      times * _least_seconds(kernel, chip) for kernel, times in costs.kernels.items()
    ),
    unestimated=costs.unestimated,
    unbounded_loops=costs.unbounded_loops,
    compile_seconds=seconds,
    effort=effort,
  )
  return dataclasses.replace(report, costliest=costliest(costs, chip, report.step_seconds, top))


def costliest(costs: hlo.Costs, chip: Chip, step_seconds: float, count: int) -> list[Costly]:
  """The operations of a program that take longest, those of equal layers as one, longest first.

  Equal are those at one place of layers that differ in the numbers of their blocks, and what the
  compiler made, such as copies, by kind.
  """
  equal = collections.defaultdict(list)
  for operation, value in costs.operations.items():
    if operation.kernel:
      value = round(value * _least_seconds(operation.kernel, chip) * chip.clock)
    place = _NUMBERED.sub(r'\1_*', operation.source)
    kind = '' if place else operation.name.partition('.')[0]
    equal[place, kind, operation.kernel is None].append((value, operation.name))
  found = []
  for (place, *_), operations in equal.items():
    cycles = sum(value for value, _ in operations)
    share = cycles / (step_seconds * chip.clock)
    found.append(Costly(max(operations)[1], place, cycles, share, len(operations)))
  return sorted(found, key=lambda each: -each.cycles)[:count]


def _least_seconds(kernel: hlo.Kernel, chip: Chip) -> float:
  return max(kernel.flops / chip.peak_flops, kernel.bytes / chip.hbm_bandwidth)


def parse_topology(topology: str) -> tuple[Chip, tuple[int, ...]]:
  """The kind of chip of a TPU slice, and the slice's shape.

  Args:
    topology: such as 'v5e:4x4'.

  Raises:
    CompileError: it is not known.
  """
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', topology)
  chip = CHIPS.get(match.group(1)) if match else None
  shape = tuple(map(int, match.group(2).split('x'))) if match else ()
  if chip is None or len(shape) != chip.dimensions:
    raise CompileError(
      f'unknown topology {topology!r}: expected CHIP:SHAPE, such as v4:2x2x4, v5e:4x4, v5e:16x16, '
      'v5p:4x4x4 or v6e:8x8'
    )
  if math.prod(shape) > chip.largest_slice:
    raise CompileError(
      f'topology {topology!r} has {math.prod(shape)} chips; the largest {chip.name} slice has '
      f'{chip.largest_slice}'
    )
  return chip, shape


def topology_devices(topology: str) -> tuple[Chip, list[Any]]:
  """The chips of a TPU slice that need not be here, to build a mesh from.

  Args:
    topology: such as 'v5e:4x4'.

  Returns:
    The kind of chip, and the devices.

  Raises:
    CompileError: libtpu is not installed, or the topology is not known.
  """
  chip, shape = parse_topology(topology)
  if importlib.util.find_spec('libtpu') is None and 'TPU_LIBRARY_PATH' not in os.environ:
    raise CompileError(
      "compiling for TPUs needs libtpu, which is not installed: pip install 'crossattn_jax[tpu]'"
    )
  # Read when libtpu is loaded, which happens below at the earliest: else it waits for a metadata
  # server that is not there, and lets only one process of this machine load it.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  try:
    described = jax.experimental.topologies.get_topology_desc(
      platform='tpu',
      topology_name=topology,
      chip_config_name=chip.config_name,
      # A host has 2 x 2 chips, and of a smaller slice all.
      chips_per_host_bounds=(min(shape[0], 2), min(shape[1], 2), 1),
    )
  except jax.errors.JaxRuntimeError as error:
    raise CompileError(f'libtpu refuses topology {topology!r}: {error}') from error
  return chip, described.devices
