"""Start-up of several processes, one per host, and texts that they exchange."""

from collections.abc import Callable
import contextlib
import threading

import jax
from jax.experimental import multihost_utils
import numpy as np

# How long the first process waits for the last one. Past it jax aborts the program.
_START_SECONDS = 300
_SAY_AFTER_SECONDS = 10


def initialize(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  on_wait: Callable[[str, bool], None] = lambda message, final: None,
) -> None:
  """Connects the processes of a run; call it before anything touches a device.

  Args:
    coordinator_address: 'host:port' of process 0. On TPU pods, Slurm, Open MPI and Kubernetes the
      three arguments may be left out: jax finds them.
    num_processes: processes in all.
    process_id: of this process, from 0.
    on_wait: is called, from a thread, with what to tell while the others have not started, and
      whether that is final: then it must end this process, before jax aborts it.

  Raises:
    ValueError: some but not all of the arguments are given, or none and there is no cluster.
  """
  given = {
    '--coordinator_address': coordinator_address,
    '--num_processes': num_processes,
    '--process_id': process_id,
  }
  missing = [flag for flag, value in given.items() if value is None]
  if missing and len(missing) != len(given):
    raise ValueError(
      f'{" and ".join(missing)} missing: give all three of {", ".join(given)}, or none of them '
      'where jax detects the cluster (TPU pod, Slurm, Open MPI, Kubernetes)'
    )
  if jax.config.jax_platforms == 'cpu':
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    with contextlib.ExitStack() as timers:
      for seconds in (_SAY_AFTER_SECONDS, _START_SECONDS):
        timer = threading.Timer(seconds, _still_waiting, (on_wait, coordinator_address, seconds))
        timer.daemon = True
        timer.start()
        timers.callback(timer.cancel)
      jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        initialization_timeout=_START_SECONDS + _SAY_AFTER_SECONDS,
      )
  except ValueError as error:
    if not missing:
      raise
    raise ValueError(
      '--multihost, but no cluster is found here (TPU pod, Slurm, Open MPI, Kubernetes). On one '
      'machine leave --multihost out: all its devices are used. On several, start one process on '
      'each with --coordinator_address=FIRST_MACHINE:1234 --num_processes=COUNT --process_id=0 (on '
      'the others 1, 2, ...)'
    ) from error


def _still_waiting(
  on_wait: Callable[[str, bool], None], coordinator_address: str | None, seconds: float
) -> None:
  where = 'the first process' if coordinator_address is None else coordinator_address
  if seconds < _START_SECONDS:
    on_wait(f'waiting for all processes to start and to reach {where}', False)
  else:
    on_wait(
      f'not all processes of the run started within {seconds:.0f} s. Start each one, with the same '
      f'number of processes and its own id, where it can reach {where}',
      True,
    )


def gather_texts(text: str) -> list[str]:
  """Returns the text of every process of the run, by process; all must call it."""
  if jax.process_count() == 1:
    return [text]
  own = np.frombuffer(text.encode(), np.uint8)
  sizes = np.asarray(multihost_utils.process_allgather(np.asarray(own.size))).ravel()
  padded = np.zeros(sizes.max() + 1, np.uint8)
  padded[: own.size] = own
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]
