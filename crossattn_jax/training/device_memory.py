"""Whether a run fits into the memory of its devices, and what to change where it does not."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import math
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from crossattn_jax import tasks
from crossattn_jax.training import experiment as experiment_lib
from crossattn_jax.training import host_memory

# Of the free memory that an estimate fills.
_SHARE = 0.9


class OutOfMemoryError(RuntimeError):
  """A run needs more memory than there is; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device while a program runs.

  Attributes:
    arguments: such as state and batch.
    outputs: such as the new state and the metrics.
    aliased: outputs that take the place of arguments, because the step consumes its state.
    temporaries: activations, gradients, gathered parameters.
    code: of the program.
  """

  arguments: int
  outputs: int
  aliased: int
  temporaries: int
  code: int

  @classmethod
  def of(cls, compiled: jax.stages.Compiled) -> 'Memory':
    """What the compiler says."""
    memory = compiled.memory_analysis()
    return cls(
      arguments=memory.argument_size_in_bytes,
      outputs=memory.output_size_in_bytes,
      aliased=memory.alias_size_in_bytes,
      temporaries=memory.temp_size_in_bytes,
      code=memory.generated_code_size_in_bytes,
    )

  @property
  def total(self) -> int:
    """All that must be there at once."""
    return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


def arguments(experiment: experiment_lib.Experiment) -> dict[str, int]:
  """Bytes on one device of what a training step is given: the parts of the state, and the batch."""
  state = experiment.abstract_state
  parts = {
    'parameters': state.params,
    'optimizer': state.opt_state,
    'average': state.ema,
    'running statistics': state.model_state,
    'frozen models': state.frozen,
    'batch': experiment.abstract_batch,
  }
  return {name: size for name, part in parts.items() if (size := _bytes(part))}


def free(device: jax.Device) -> int | None:
  """Bytes that a device of this process can still hold; None where nobody says.

  CPU devices share the memory of the machine evenly.
  """
  if device.platform == 'cpu':
    available = host_memory.available()
    return available and available // jax.local_device_count()
  stats = device.memory_stats() or {}
  if 'bytes_limit' not in stats:
    return None
  return stats['bytes_limit'] - stats.get('bytes_in_use', 0)


def check_step(experiment: experiment_lib.Experiment) -> None:
  """Refuses a training step that needs more memory than is free beside the state, on any process.

  Args:
    experiment: whose state is on the devices; its step is compiled.

  Raises:
    OutOfMemoryError: the message says which batch would fit, by estimate.
  """
  device = experiment.mesh.local_devices[0]
  available, state = free(device), _bytes(experiment.abstract_state)
  needed = Memory.of(experiment.compiled_step).total - state
  available = math.inf if available is None else available
  if jax.process_count() > 1:
    # All processes go on, or none does.
    available = float(multihost_utils.process_allgather(np.float32(available)).min())
  if needed <= available:
    return
  # Gradients are as large as parameters; the rest is the batch's.
  fixed = _bytes(experiment.abstract_state.params)
  rows = _rows(experiment)
  fitting = int((_SHARE * available - fixed) * rows / max(needed - fixed, 1))
  raise OutOfMemoryError(
    f'a training step needs {size_string(needed)} on each device ({device.device_kind}), beside '
    f'the {size_string(state)} of the state; {size_string(available)} are free. '
    + _training_advice(experiment, min(fitting, rows - 1), 'By estimate it fits with')
  )


@contextlib.contextmanager
def explained(advice: Callable[[], str]) -> Iterator[None]:
  """Turns what is raised where memory is exhausted into an `OutOfMemoryError`.

  Args:
    advice: makes the sentences that say what to change.
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, MemoryError) as error:
    first, *_ = str(error).splitlines() or ['']
    exhausted = isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in first
    # A kernel that wants too much vector memory is exhausted too, and no batch mends that.
    if not exhausted or 'vmem' in first:
      raise
    reason = first.removeprefix('RESOURCE_EXHAUSTED: ').rstrip('.')
    raise OutOfMemoryError(f'out of memory: {reason}. {advice()}') from error


def training_advice(experiment: experiment_lib.Experiment) -> str:
  """What to change where training exhausts the memory: half as many examples at a time."""
  return _training_advice(experiment, _rows(experiment) // 2, 'Set')


def evaluation_advice(experiment: experiment_lib.Experiment) -> str:
  """What to change where evaluation exhausts the memory."""
  size, shards = experiment_lib.eval_batch_size(experiment.config), _shards(experiment)
  half = max(size // 2 // shards, 1) * shards
  return f'Evaluation takes {size} examples at a time: set config.evaluation.batch_size={half}'


def _training_advice(experiment: experiment_lib.Experiment, rows: int, begin: str) -> str:
  """How each device gets at most so many examples at a time, and what else saves memory."""
  config, mesh = experiment.config, experiment.mesh
  advice = []
  if rows >= 1:
    batch_size = rows * _shards(experiment) * config.accumulation_steps
    advice.append(f'{begin} config.batch_size={batch_size}')
    parts = _accumulation_steps(experiment, rows)
    if parts is not None:
      advice[0] += (
        f', or config.accumulation_steps={parts}, which takes the batch of {config.batch_size} in '
        f'{parts} parts'
      )
  else:
    advice.append('Fewer examples at a time are not enough')
  if config.model.get('remat', True) is not True:
    advice.append('config.model.remat=True computes blocks again instead of keeping them')
  if mesh.shape['data'] > 1 and mesh.shape['fsdp'] == 1:
    advice.append(
      f'config.mesh.fsdp={mesh.shape["data"]} splits parameters and optimizer over the devices'
    )
  return '. '.join(advice)


def _accumulation_steps(experiment: experiment_lib.Experiment, rows: int) -> int | None:
  """In how few parts of at most so many examples per device the task takes the batch."""
  config, shards = experiment.config.copy_and_resolve_references(), _shards(experiment)
  sizes = range(shards, rows * shards + 1, shards)
  parts = [config.batch_size // size for size in sizes if config.batch_size % size == 0]
  if not parts:
    return None
  config.accumulation_steps = min(parts)
  try:
    tasks.create_task(config)
  except ValueError:
    return None
  return min(parts)


def _rows(experiment: experiment_lib.Experiment) -> int:
  """Examples that a device has at a time."""
  config = experiment.config
  return config.batch_size // config.accumulation_steps // _shards(experiment)


def _shards(experiment: experiment_lib.Experiment) -> int:
  return experiment.mesh.shape['data'] * experiment.mesh.shape['fsdp']


def _bytes(tree: Any) -> int:
  """Of abstract arrays, on one device."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def size_string(size: float) -> str:
  """A number of bytes for people."""
  for unit in ('B', 'KiB', 'MiB'):
    if size < 1024:
      return f'{size:.4g} {unit}'
    size /= 1024
  return f'{size:.4g} GiB'
