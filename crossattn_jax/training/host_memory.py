"""Memory of programs that run on the CPU."""

import ctypes
import importlib.metadata
import pathlib

import jax

# Of control groups, version 2: a number of bytes, or 'max'.
_CONTAINER_LIMIT = pathlib.Path('/sys/fs/cgroup/memory.max')
# glibc, malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
  """Makes the process keep the memory that it frees, where programs run on the CPU.

  XLA:CPU allocates all temporaries of a program at each call. glibc returns blocks of that size to
  the system, and the next call faults every page in again: a fifth of the time of a training step.

  Call it before anything asks JAX for its devices: threads that JAX has started already allocate
  blocks above 64 MiB as before.

  Returns:
    Whether that was done: not where JAX may use an accelerator, and not without glibc.
  """
  if not _runs_on_cpu():
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return False
  # One arena, for those of threads cannot hold large blocks.
  options = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_ARENA_MAX: 1}
  return all(mallopt(option, value) for option, value in options.items())


def available() -> int | None:
  """Bytes that this process can still allocate without swapping; None where nobody says."""
  try:
    lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
  except OSError:
    return None
  fields = dict(line.split(':') for line in lines)
  found = int(fields['MemAvailable'].split()[0]) * 1024
  limit = _CONTAINER_LIMIT.read_text().strip() if _CONTAINER_LIMIT.exists() else 'max'
  return found if limit == 'max' else min(found, int(limit))


def _runs_on_cpu() -> bool:
  """Whether JAX has only the CPU, told without starting it."""
  if jax.config.jax_platforms:
    return jax.config.jax_platforms == 'cpu'
  return not importlib.metadata.entry_points(group='jax_plugins') and not _is_installed('libtpu')


def _is_installed(distribution: str) -> bool:
  try:
    importlib.metadata.version(distribution)
  except importlib.metadata.PackageNotFoundError:
    return False
  return True
