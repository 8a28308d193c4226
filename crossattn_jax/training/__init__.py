"""The single training loop, its state, optimizers, schedules, checkpoints and writers."""

import importlib
import typing

if typing.TYPE_CHECKING:
  from crossattn_jax.training.aot import compile_report

__all__ = ['compile_report']


def __getattr__(name: str):
  # Loaded only when asked for: the modules of this package import one another.
  if name == 'compile_report':
    return importlib.import_module('crossattn_jax.training.aot').compile_report
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
