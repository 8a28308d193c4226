"""Reads the text of a program that XLA compiled for TPUs: its collectives, its estimated cycles.

The text is a list of computations, each a list of instructions. Loops, branches and fusions are
instructions that name the computations that they run.
"""

import collections
from collections.abc import Iterator
import dataclasses
import functools
import math
import re

KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
)

_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)')
_ARRAY = re.compile(r'\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]')
_OPERAND = re.compile(r'%([\w.\-]+)')
_CHANNEL = re.compile(r'channel_id=(\d+)')
_CALLED = re.compile(
  r'(calls|body|condition|to_apply|branch_computations|\w+_computation)=([^,{]+|\{[^}]*\})'
)
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_DECLARED = re.compile(r'"(flops|bytes_accessed)":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')
# What jax adds to the path of an operation: transformations, and functions that it compiles.
_WRAPPED = re.compile(r'^\w+\((.*)\)$')
_CONTROL = re.compile(r'cond|branch_\d+_fun|while|body|closed_call')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# The compiler's estimate of an operation that it cannot estimate.
_UNKNOWN_CYCLES = 2**62


@dataclasses.dataclass(frozen=True)
class Collective:
  """Collectives of one kind in one execution of a program.

  Attributes:
    count: how many run.
    bytes: of the whole arrays, summed: what an all-gather makes, what an all-reduce reduces, what a
      reduce-scatter is given, and what one device holds in the other kinds.
  """

  count: int = 0
  bytes: int = 0

  def __add__(self, other: 'Collective') -> 'Collective':
    return Collective(self.count + other.count, self.bytes + other.bytes)


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A Pallas kernel, as its author declares it (`cost_estimate`).

  Attributes:
    flops: floating-point operations.
    bytes: read and written in HBM.
  """

  flops: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class Operation:
  """An operation of the program that takes time.

  Attributes:
    name: in the program.
    source: path of the module and of the operation of jax that it comes from, with 'backward' in
      front in the gradient; of a fusion those of its result. Empty where the compiler made it.
    kernel: that it runs.
  """

  name: str
  source: str = ''
  kernel: Kernel | None = None


@dataclasses.dataclass(frozen=True)
class Costs:
  """What one execution of a computation costs on one device.

  Attributes:
    collectives: by kind.
    cycles: sum of the compiler's estimates. It has none for collectives and for Pallas kernels,
      whose time is not in it.
    unestimated: other operations that it has none for.
    unbounded_loops: loops whose number of iterations is not known, counted as one.
    kernels: how often each Pallas kernel runs.
    operations: cycles of each with an estimate, how often it runs of each kernel.
  """

  collectives: dict[str, Collective] = dataclasses.field(default_factory=dict)
  cycles: int = 0
  unestimated: int = 0
  unbounded_loops: int = 0
  kernels: collections.Counter[Kernel] = dataclasses.field(default_factory=collections.Counter)
  operations: collections.Counter[Operation] = dataclasses.field(
    default_factory=collections.Counter
  )

  def __add__(self, other: 'Costs') -> 'Costs':
    kinds = self.collectives | other.collectives
    return Costs(
      {
        kind: self.collectives.get(kind, Collective()) + other.collectives.get(kind, Collective())
        for kind in kinds
      },
      self.cycles + other.cycles,
      self.unestimated + other.unestimated,
      self.unbounded_loops + other.unbounded_loops,
      self.kernels + other.kernels,
      # There are many: most sums are with nothing.
      self.operations + other.operations if other.operations else self.operations,
    )

  def repeated(self, times: int) -> 'Costs':
    """The costs of `times` executions; a loop stays one loop."""
    return Costs(
      {
        kind: Collective(each.count * times, each.bytes * times)
        for kind, each in self.collectives.items()
      },
      self.cycles * times,
      self.unestimated * times,
      self.unbounded_loops,
      *(
        collections.Counter({key: count * times for key, count in counter.items()})
        for counter in (self.kernels, self.operations)
      ),
    )


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  type: str
  opcode: str
  rest: str

  @property
  def kind(self) -> str | None:
    """The kind of collective that starts here."""
    kind = self.opcode.removesuffix('-start')
    return kind if kind in KINDS else None

  @property
  def kernel(self) -> Kernel | None:
    """The Pallas kernel that runs here; one that declares nothing costs nothing."""
    if 'custom_call_target="tpu_custom_call"' not in self.rest:
      return None
    declared = {name: int(value) for name, value in _DECLARED.findall(self.rest)}
    return Kernel(declared.get('flops', 0), declared.get('bytes_accessed', 0))

  @property
  def operation(self) -> Operation:
    """What it is called, and where in the model it is from."""
    found = _SOURCE.search(self.rest)
    return Operation(self.name, _place(found.group(1)) if found else '', self.kernel)

  def called(self, *attributes: str) -> list[str]:
    """Names of the computations in some attributes."""
    return [
      name.strip(' %')
      for attribute, names in _CALLED.findall(self.rest)
      if attribute in attributes
      for name in names.strip('{}').split(',')
    ]


def program_costs(text: str) -> Costs:
  """Adds up a compiled program.

  Bodies of loops count as often as they run, if the text says how often; of the branches of a
  conditional the one with the most cycles counts. A collective that the compiler spreads over
  several fusions, to overlap it with their work, counts once.

  Args:
    text: `compiled.as_text()`.

  Returns:
    Costs of one execution on one device.

  Raises:
    ValueError: the text has no entry computation.
  """
  computations, entry = _parse(text)
  if entry is None:
    raise ValueError('the program has no ENTRY computation; give the text of a compiled program')

  @functools.cache
  def costs(name: str) -> Costs:
    total, carried, operations = Costs(), set(), collections.Counter()
    types = {instruction.name: instruction.type for instruction in computations[name]}
    for instruction in computations[name]:
      if estimate := _CYCLES.search(instruction.rest):
        cycles = int(estimate.group(1))
        known = cycles < _UNKNOWN_CYCLES
        total += Costs(cycles=cycles) if known else Costs(unestimated=1)
        operations[instruction.operation] += cycles if known else 0
      if instruction.kind:
        moved = Collective(1, _moved_bytes(instruction, types))
        total += Costs({instruction.kind: moved})
      elif instruction.opcode == 'while':
        trips = _trip_count(instruction, name, computations)
        called = instruction.called('body', 'condition')
        once = sum(map(costs, called), Costs(unbounded_loops=int(trips is None)))
        total += once.repeated(1 if trips is None else trips)
      elif instruction.opcode == 'conditional':
        branches = instruction.called(
          'branch_computations', 'true_computation', 'false_computation'
        )
        total += max(map(costs, branches), key=lambda branch: branch.cycles)
      elif instruction.opcode == 'custom-call' and (kernel := instruction.kernel):
        total += Costs(kernels=collections.Counter([kernel]))
        operations[instruction.operation] += 1
      elif instruction.opcode in ('call', 'async-start'):
        total += sum(map(costs, instruction.called('calls', 'to_apply')), Costs())
      elif instruction.opcode == 'fusion':
        for kind, moved, channel in fused(instruction.called('calls')[0]):
          if channel is None or (kind, channel) not in carried:
            total += Costs({kind: moved})
          carried.add((kind, channel))
    return total + Costs(operations=operations)

  def fused(name: str) -> Iterator[tuple[str, Collective, str | None]]:
    """Yields the collectives inside a fusion: kind, size, and the channel if it is only a part."""
    types = {instruction.name: instruction.type for instruction in computations[name]}
    for instruction in computations[name]:
      if instruction.kind:
        moved = Collective(1, _moved_bytes(instruction, types))
        if name.startswith('all-reduce-scatter'):
          yield 'reduce-scatter', moved, None
        else:
          channel = _CHANNEL.search(instruction.rest)
          yield instruction.kind, moved, channel and channel.group(1)
      elif instruction.opcode == 'fusion':
        yield from fused(instruction.called('calls')[0])

  return costs(entry)


def _place(op_name: str) -> str:
  """The path of `op_name` without transformations, compiled functions, loops and choices."""
  parts = []
  for part in op_name.split('/'):
    named = part
    while match := _WRAPPED.match(named):
      named = match.group(1)
    # A transformed module keeps its name; `jit(step)` and `transpose(jvp())` have none of one.
    if named and not part.startswith('jit(') and not _CONTROL.fullmatch(named):
      parts.append(named)
  return ('backward: ' if 'transpose(' in op_name else '') + '/'.join(parts)


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str | None]:
  computations, entry, current = {}, None, []
  for line in text.splitlines():
    if header := _COMPUTATION.match(line):
      current = computations.setdefault(header.group(2), [])
      entry = header.group(2) if header.group(1) else entry
    elif instruction := _INSTRUCTION.match(line):
      current.append(_Instruction(*instruction.groups()))
  return computations, entry


def _trip_count(
  loop: _Instruction, caller: str, computations: dict[str, list[_Instruction]]
) -> int | None:
  """How often a loop runs: as annotated, or as its counter says; None if neither is known.

  XLA does not annotate loops that it makes itself, such as products that are overlapped with the
  transfer of their operands. Their counters go from a constant to a constant in constant steps.
  """
  if annotated := _TRIP_COUNT.search(loop.rest):
    return int(annotated.group(1))
  (condition,), (body,) = loop.called('condition'), loop.called('body')
  scopes = {
    name: {instruction.name: instruction for instruction in computations[name]}
    for name in (caller, condition, body)
  }

  def operand(scope: str, instruction: _Instruction, position: int) -> _Instruction | None:
    names = _OPERAND.findall(instruction.rest.split(')')[0])
    found = scopes[scope].get(names[position]) if position < len(names) else None
    while found and found.opcode in ('copy', 'bitcast'):
      found = scopes[scope].get(_OPERAND.findall(found.rest)[0])
    return found

  def constant(instruction: _Instruction | None) -> int | None:
    literal = (
      instruction and instruction.opcode == 'constant' and re.match(r'(-?\d+)\)', instruction.rest)
    )
    return int(literal.group(1)) if literal else None

  def element(instruction: _Instruction | None) -> int | None:
    index = instruction and re.search(r'\), index=(\d+)', instruction.rest)
    return int(index.group(1)) if index else None

  test, new_state = computations[condition][-1], computations[body][-1]
  state = operand(caller, loop, 0)
  counter = element(operand(condition, test, 0)) if test.opcode == 'compare' else None
  if counter is None or 'direction=LT' not in test.rest or state is None:
    return None
  increment = operand(body, new_state, counter)
  if state.opcode != 'tuple' or increment is None or increment.opcode != 'add':
    return None
  start = constant(operand(caller, state, counter))
  end = constant(operand(condition, test, 1))
  step = constant(operand(body, increment, 1))
  if element(operand(body, increment, 0)) != counter or None in (start, end) or not step:
    return None
  return max(0, -(-(end - start) // step))


def _moved_bytes(instruction: _Instruction, types: dict[str, str]) -> int:
  """Bytes of the whole arrays of a collective; see `Collective`."""
  if instruction.kind == 'reduce-scatter':
    operands = _OPERAND.findall(instruction.rest.split(')')[0])
    return sum(_bytes(types.get(operand, '')) for operand in operands)
  sizes = list(map(_bytes, _elements(instruction.type)))
  if instruction.opcode in ('all-gather-start', 'collective-permute-start') and len(sizes) > 1:
    return sizes[1]  # (operands, results, ...)
  return sum(sizes)


def _elements(type_text: str) -> list[str]:
  """Splits a tuple's type into those of its elements; any other type is its own element."""
  if not type_text.startswith('('):
    return [type_text]
  elements, depth, start = [], 0, 1
  for position, character in enumerate(type_text):
    depth += (character in '([{') - (character in ')]}')
    if (character == ',' and depth == 1) or depth == 0:
      elements.append(type_text[start:position])
      start = position + 1
      if depth == 0:
        break
  return elements


def _bytes(type_text: str) -> int:
  """Bytes of all arrays in a type, without the padding of their layouts."""
  total = 0
  for name, bits, shape in _ARRAY.findall(type_text):
    size = math.prod(map(int, filter(None, shape.split(','))))
    total += size * (8 if name == 'pred' else int(bits)) // 8
  return total
