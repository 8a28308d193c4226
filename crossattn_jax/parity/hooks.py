"""What PyTorch modules return on the way, seen through forward hooks."""

from collections.abc import Callable, Mapping
from typing import Any

from crossattn_jax.conversion import optional

torch = optional.require('torch')


def first_tensor(result: Any) -> Any:
  """The first tensor of what a module returned, or None."""
  if isinstance(result, torch.Tensor):
    return result
  if isinstance(result, Mapping):
    result = list(result.values())
  if isinstance(result, (list, tuple)):
    return next((found for found in map(first_tensor, result) if found is not None), None)
  return None


def named_outputs(result: Any) -> dict[str, Any]:
  """Names what a module returned: a dict keeps its keys, a sequence is numbered."""
  if isinstance(result, torch.Tensor):
    return {'y': result}
  if isinstance(result, Mapping):
    return dict(result)
  return {f'y{i}': tensor for i, tensor in enumerate(result)}


def tap_modules(
  module: Any, run: Callable[[], Any], wanted: Callable[[str], bool]
) -> tuple[Any, dict]:
  """Runs `run` and returns its result and what submodules returned, in execution order.

  The first call and the first tensor of each submodule count; the order is that in which
  submodules finish, so the innermost comes first.
  """
  found: dict[str, Any] = {}

  def hook(name):
    def note(submodule, inputs, result):
      del submodule, inputs
      tensor = first_tensor(result)
      if name not in found and tensor is not None:
        # Copied: an in-place operation may follow.
        found[name] = tensor.detach().clone()

    return note

  handles = [
    submodule.register_forward_hook(hook(name))
    for name, submodule in module.named_modules()
    if name and wanted(name)
  ]
  try:
    result = run()
  finally:
    for handle in handles:
      handle.remove()
  return result, found
