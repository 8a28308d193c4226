"""Memory of programs that run on the CPU."""

import ctypes

import jax

# glibc, malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
  """Makes the process keep the memory that it frees, where programs run on the CPU.

  XLA:CPU allocates all temporaries of a program at each call. glibc returns blocks of that size to
  the system, and the next call faults every page in again: a fifth of the time of a training step.

  Returns:
    Whether that was done: not on other platforms, and not without glibc.
  """
  if jax.default_backend() != 'cpu':
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return False
  return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
