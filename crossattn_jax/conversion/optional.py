"""PyTorch and timm, which only the tools that touch PyTorch objects need."""

import importlib
import types


def require(name: str) -> types.ModuleType:
  """Imports an optional package.

  Raises:
    ImportError: it is not installed; the message names the extra that installs it.
  """
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name != name:
      raise
    raise ImportError(
      f"this needs {name}, which is not installed: pip install 'crossattn_jax[torch]'"
    ) from error
