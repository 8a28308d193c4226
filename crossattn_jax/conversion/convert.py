"""Checkpoints of the PyTorch originals to this library's variables, and back.

Reading a checkpoint never executes it: `.pth` files go through `torch.load(weights_only=True)`,
`.safetensors` files through the safetensors library. What does not fit the model is refused by
name; nothing is dropped, resized or initialised unless asked for.
"""

import argparse
import collections
from collections.abc import Collection, Mapping
import dataclasses
import pathlib
import pickle
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import numpy as np
import safetensors
import safetensors.numpy

from crossattn_jax.conversion import correspondence, optional
from crossattn_jax.conversion import mapping as mapping_lib
from crossattn_jax.models import registry, variables_io

# Keys under which training checkpoints keep the state dict, most specific first.
_WRAPPERS = ('model_state', 'model', 'state_dict')
# What became of an array that the checkpoint lacks.
_FRESH = 'new: freshly initialised'


class CheckpointError(ValueError):
  """A checkpoint that cannot be read, or must not be; the message names the file and the reason."""


@dataclasses.dataclass(frozen=True)
class Line:
  """What became of one tensor.

  Attributes:
    torch_key: in the state dict; '' where the tensor is new.
    torch_shape: its shape there.
    flax_path: in the variables, collection first; '' where the tensor was dropped.
    flax_shape: its shape there.
    action: the layout's name, or what was done instead.
  """

  torch_key: str
  torch_shape: tuple[int, ...]
  flax_path: str
  flax_shape: tuple[int, ...]
  action: str


@dataclasses.dataclass(frozen=True)
class Conversion:
  """A converted checkpoint.

  Attributes:
    name: of the model.
    overrides: of `create_model`.
    variables: nested dicts of numpy arrays.
    report: a line per tensor.
  """

  name: str
  overrides: Mapping[str, Any]
  variables: Mapping[str, Any]
  report: tuple[Line, ...]

  def save(self, path: str | pathlib.Path) -> None:
    """Writes the variables file that `models.variables_io.load_variables` reads."""
    variables_io.save_variables(path, self.variables, self.name, self.overrides)


def read_checkpoint(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a PyTorch state dict without executing anything.

  Training checkpoints (a dict with 'model' or 'state_dict' among other things) are unwrapped, and
  the prefix 'module.' of data-parallel training is removed. Of a list of state dicts, keys are
  prefixed by their place, '0.' the first. Half-precision tensors are widened to float32, which
  loses nothing.

  Args:
    path: `.safetensors`, or what `torch.save` wrote.

  Raises:
    FileNotFoundError: there is no such file.
    CheckpointError: it is unreadable, or loading it would execute code.
    ImportError: the file needs PyTorch, which is not installed.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'{path}: no such checkpoint')
  if path.suffix == '.safetensors':
    try:
      state = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
      raise CheckpointError(
        f'{path}: cannot be read as safetensors ({error}); download it again'
      ) from error
  else:
    state = {key: _to_numpy(tensor) for key, tensor in _load_torch(path).items()}
  if state and all(key.startswith('module.') for key in state):
    state = {key.removeprefix('module.'): value for key, value in state.items()}
  return {
    key: value.astype(np.float32) if value.dtype.name in ('float16', 'bfloat16') else value
    for key, value in state.items()
  }


def _load_torch(path: pathlib.Path) -> dict[str, Any]:
  torch = optional.require('torch')
  try:
    # The options of the run, which training scripts keep beside the weights: plain attributes, or
    # a dict of yacs (torch knows how to fill an OrderedDict, and no class derived from dict).
    options = [argparse.Namespace, (collections.OrderedDict, 'yacs.config.CfgNode')]
    with torch.serialization.safe_globals(options):
      content = torch.load(path, map_location='cpu', weights_only=True)
  except pickle.UnpicklingError as error:
    raise CheckpointError(
      f'{path}: refused: it is damaged, or loading it would execute code (torch.load with '
      f'weights_only=True says: {str(error).splitlines()[0]}). Where you trust it, save its state '
      'dict as .safetensors'
    ) from error
  except (RuntimeError, EOFError, OSError) as error:
    raise CheckpointError(f'{path}: cannot be read ({error}); download it again') from error
  for wrapper in _WRAPPERS:
    wrapped = content.get(wrapper) if isinstance(content, dict) else None
    if isinstance(wrapped, list) and all(isinstance(part, dict) for part in wrapped):
      # State dicts of several modules.
      wrapped = {f'{i}.{key}': x for i, part in enumerate(wrapped) for key, x in part.items()}
    if isinstance(wrapped, dict):
      content = wrapped
      break
  if not isinstance(content, dict) or not all(
    isinstance(value, torch.Tensor) for value in content.values()
  ):
    raise CheckpointError(
      f'{path}: holds no state dict: expected a dict of tensors, or one under '
      f'{" or ".join(map(repr, _WRAPPERS))}'
    )
  return content


def _to_numpy(tensor: Any) -> np.ndarray:
  torch = optional.require('torch')
  if tensor.dtype == torch.bfloat16:
    tensor = tensor.float()
  return tensor.detach().cpu().numpy()


def model_mapping(
  name: str, module: nn.Module, spelling: str = ''
) -> tuple[mapping_lib.Mapping, Mapping[str, Any]]:
  """The mapping of a registered model built as `module`, and the template of its variables."""
  described = correspondence.describe_model(name, module)
  template = correspondence.model_template(module, described.call, described.inputs)
  return mapping_lib.build_mapping(described.rules, template, spelling=spelling), template


def to_flax(
  name: str, state: Mapping[str, np.ndarray], overrides: Mapping[str, Any] | None = None
) -> Conversion:
  """Converts a state dict to the variables of `create_model(name, **overrides)`.

  Args:
    name: of the model.
    state: as `read_checkpoint` returns it, in the original's or in timm's spelling.
    overrides: of `create_model`, such as the number of classes of a fine-tuned checkpoint.

  Raises:
    mapping.MappingError: naming every missing, unexpected and misshapen key.
  """
  overrides = dict(overrides or {})
  described = correspondence.describe_model(name, registry.create_model(name, **overrides))
  overrides = {**described.fields({key: x.shape for key, x in state.items()}), **overrides}
  mapping, _ = model_mapping(name, registry.create_model(name, **overrides))
  try:
    variables = mapping.to_flax(state)
  except mapping_lib.MappingError as error:
    raise mapping_lib.MappingError(f'{name}: {error}') from error
  return Conversion(name, overrides, variables, tuple(_report(mapping, state)))


def _report(mapping: mapping_lib.Mapping, state: Mapping[str, np.ndarray]) -> list[Line]:
  lines = []
  for key, value in state.items():
    entry = mapping.find(key)
    if entry is None:
      lines.append(
        Line(key, value.shape, '', (), 'dropped: the model computes it, or does without it')
      )
    else:
      path = '/'.join((entry.collection, *entry.path))
      lines.append(Line(key, value.shape, path, entry.flax_shape, entry.layout.name))
  return lines


def to_flax_in_part(
  name: str,
  state: Mapping[str, np.ndarray],
  overrides: Mapping[str, Any] | None = None,
  seed: int = 0,
) -> Conversion:
  """Converts a state dict of some of a model's modules and initialises the others, to train them.

  Args:
    name: of the model.
    state: as `read_checkpoint` returns it. A module that it has anything of, it must have whole.
    overrides: of `create_model`.
    seed: of the initialisation.

  Raises:
    mapping.MappingError: naming every missing, unexpected and misshapen key.
  """
  overrides = dict(overrides or {})
  module = registry.create_model(name, **overrides)
  mapping, template = model_mapping(name, module)
  entries = [mapping.find(key) for key in state]
  given = {(entry.collection, entry.path[0]) for entry in entries if entry is not None}
  if not given:
    keys = ', '.join(list(state)[:3])
    raise mapping_lib.MappingError(f'{name}: nothing of it is in the state dict: {keys}, ...')
  part = dataclasses.replace(
    mapping,
    entries=tuple(x for x in mapping.entries if (x.collection, x.path[0]) in given),
  )
  try:
    converted = part.to_flax(state)
  except mapping_lib.MappingError as error:
    raise mapping_lib.MappingError(f'{name}: {error}') from error
  flat = traverse_util.flatten_dict(converted, sep='/')
  lines = _report(part, state)
  fresh = [path for path in traverse_util.flatten_dict(template, sep='/') if path not in flat]
  described = correspondence.describe_model(name, module)
  for path, leaf in _initialise(module, described, seed, fresh).items():
    flat[path] = leaf
    lines.append(Line('', (), path, leaf.shape, _FRESH))
  return Conversion(name, overrides, traverse_util.unflatten_dict(flat, sep='/'), tuple(lines))


def to_torch(
  name: str,
  variables: Mapping[str, Any],
  overrides: Mapping[str, Any] | None = None,
  spelling: str = '',
) -> dict[str, np.ndarray]:
  """Converts variables of `create_model(name, **overrides)` to a PyTorch state dict.

  Args:
    name: of the model.
    variables: nested dicts of arrays.
    overrides: of `create_model`.
    spelling: of the keys: '' is the original's, 'timm' timm's.

  Raises:
    mapping.MappingError: naming every missing, unexpected and misshapen array.
  """
  mapping, _ = model_mapping(name, registry.create_model(name, **dict(overrides or {})), spelling)
  state = mapping.to_torch(jax.tree.map(np.asarray, dict(variables)))
  return {key: np.array(value, order='C') for key, value in state.items()}


def write_torch(path: str | pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
  """Writes a state dict as `.safetensors`, or with `torch.save` under any other suffix."""
  path = pathlib.Path(path)
  if path.suffix == '.safetensors':
    safetensors.numpy.save_file(dict(state), path)
  else:
    torch = optional.require('torch')
    torch.save({key: torch.from_numpy(np.array(value)) for key, value in state.items()}, path)


def _initialise(
  module: nn.Module, described: correspondence.Correspondence, seed: int, paths: Collection[str]
) -> dict[str, np.ndarray]:
  # Compiled, the initialisation of everything else is never computed.
  @jax.jit
  def wanted(inputs):
    variables = module.init(jax.random.key(seed), inputs, method=described.call)
    flat = traverse_util.flatten_dict(dict(variables), sep='/')
    return {path: flat[path] for path in paths}

  zeros = {name: np.zeros(x.shape, x.dtype) for name, x in described.inputs.items()}
  return jax.tree.map(np.asarray, wanted(zeros))
