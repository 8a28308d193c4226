"""Start-up of several processes, one per host."""

import jax


def initialize(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Connects the processes of a run; call it before anything touches a device.

  Args:
    coordinator_address: 'host:port' of process 0. On TPU pods, Slurm, Open MPI and Kubernetes the
      three arguments may be left out: jax finds them.
    num_processes: processes in all.
    process_id: of this process, from 0.

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
    jax.distributed.initialize(coordinator_address, num_processes, process_id)
  except ValueError as error:
    if not missing:
      raise
    raise ValueError(
      '--multihost, but no cluster is found here (TPU pod, Slurm, Open MPI, Kubernetes). On one '
      'machine leave --multihost out: all its devices are used. On several, start one process on '
      'each with --coordinator_address=FIRST_MACHINE:1234 --num_processes=COUNT --process_id=0 (on '
      'the others 1, 2, ...)'
    ) from error
