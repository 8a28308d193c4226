"""The single training loop, its state, optimizers, schedules, checkpoints and writers."""

import importlib
import typing

if typing.TYPE_CHECKING:
  from crossattn_jax.training.compile.aot import compile_report
  from crossattn_jax.training.export import export_model

__all__ = ['compile_report', 'export_model']

_MODULES = {'compile_report': 'compile.aot', 'export_model': 'export'}


def __getattr__(name: str):
  # Loaded only when asked for: the modules of this package import one another.
  if name in _MODULES:
    module = importlib.import_module(f'crossattn_jax.training.{_MODULES[name]}')
    return getattr(module, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
