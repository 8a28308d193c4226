"""Which implementation of a kernel runs where."""

from collections.abc import Callable
from typing import Any

import jax
from jax import export
import jax.numpy as jnp

IMPLEMENTATIONS = ('auto', 'reference', 'xla', 'tpu', 'gpu')


def check_implementation(op: str, implementation: str) -> None:
  """Raises ValueError unless `implementation` is one of `IMPLEMENTATIONS`."""
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f'{op}: unknown implementation {implementation!r}; there are {", ".join(IMPLEMENTATIONS)}'
    )


def check_kernel_dtype(op: str, implementation: str, dtype: jnp.dtype) -> None:
  """Raises ValueError where a kernel is asked for in a dtype that it has no code for."""
  if implementation in ('tpu', 'gpu') and dtype not in (jnp.float32, jnp.bfloat16):
    raise ValueError(
      f'{op}: implementation {implementation!r} computes in float32 and bfloat16, not '
      f"{jnp.dtype(dtype).name}; take 'xla' or 'reference', or cast"
    )


def by_platform(
  *args: Any,
  tpu: Callable[..., Any],
  gpu: Callable[..., Any],
  xla: Callable[..., Any],
) -> Any:
  """The result of the form for the platform that the program is lowered for.

  The choice is made at lowering, not where Python runs: a program that is exported, or compiled for
  a TPU that is not here, gets the kernel of its own platform. Kernels need static shapes: where the
  program is exported for any batch size, all platforms get the XLA form.
  """
  if any(export.is_symbolic_dim(side) for leaf in jax.tree.leaves(args) for side in leaf.shape):
    return xla(*args)
  return jax.lax.platform_dependent(*args, tpu=tpu, cuda=gpu, default=xla)
