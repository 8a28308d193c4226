"""Which implementation of a kernel runs where."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
from jax import export
import jax.numpy as jnp

IMPLEMENTATIONS = ('auto', 'reference', 'xla', 'tpu', 'gpu')


def require(op: str, holds: bool, message: str) -> None:
  """Raises ValueError, in the name of an operation, unless its arguments hold."""
  if not holds:
    raise ValueError(f'{op}: {message}')


def check_implementation(
  op: str, implementation: str, known: Sequence[str] = IMPLEMENTATIONS
) -> None:
  """Raises ValueError unless an operation has this implementation."""
  require(
    op,
    implementation in known,
    f'unknown implementation {implementation!r}; there are {", ".join(known)}',
  )


def check_kernel_dtype(op: str, implementation: str, dtype: jnp.dtype) -> None:
  """Raises ValueError where a kernel is asked for in a dtype that it has no code for."""
  require(
    op,
    implementation not in ('tpu', 'gpu') or dtype in (jnp.float32, jnp.bfloat16),
    f'implementation {implementation!r} computes in float32 and bfloat16, not '
    f"{jnp.dtype(dtype).name}; take 'xla' or 'reference', or cast",
  )


def by_platform(
  *args: Any,
  xla: Callable[..., Any],
  cpu: Callable[..., Any] | None = None,
  tpu: Callable[..., Any] | None = None,
  gpu: Callable[..., Any] | None = None,
  **static: Any,
) -> Any:
  """The result of the form for the platform that the program is lowered for.

  The choice is made at lowering, not where Python runs: a program that is exported, or compiled for
  a TPU that is not here, gets the kernel of its own platform. Kernels need static shapes: where the
  program is exported for any batch size, TPUs and GPUs get the XLA form.

  Args:
    *args: arrays, or trees of them, that each form takes.
    xla: the form for all platforms that have none of their own.
    cpu: that of CPUs.
    tpu: that of TPUs.
    gpu: that of NVIDIA's GPUs.
    **static: further arguments of each, which are no arrays.
  """
  if any(export.is_symbolic_dim(side) for leaf in jax.tree.leaves(args) for side in leaf.shape):
    tpu = gpu = None
  forms = {'default': xla, 'cpu': cpu, 'tpu': tpu, 'cuda': gpu}
  forms = {name: functools.partial(form, **static) for name, form in forms.items() if form}
  if len(forms) == 1:
    return xla(*args, **static)
  return jax.lax.platform_dependent(*args, **forms)
