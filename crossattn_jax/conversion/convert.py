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
from crossattn_jax.layers import resize
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


def adapt(
  conversion: Conversion,
  *,
  num_classes: int | None = None,
  image_size: tuple[int, int] | None = None,
  seed: int = 0,
) -> Conversion:
  """Prepares converted weights for fine-tuning on other classes or at another image size.

  Args:
    conversion: of the checkpoint as it is.
    num_classes: replaces the classifiers by freshly initialised ones; 0 removes them.
    image_size: (height, width); resizes the position embeddings bicubically, the class token's is
      kept.
    seed: of the new classifiers' initialisation.

  Raises:
    mapping.MappingError: the new model differs in more than what was asked for.
  """
  name = conversion.name
  changes = {'num_classes': num_classes, 'image_size': image_size}
  changes = {field: value for field, value in changes.items() if value is not None}
  overrides = {**conversion.overrides, **changes}
  source = registry.create_model(name, **conversion.overrides)
  target = registry.create_model(name, **overrides)
  described = correspondence.describe_model(name, target)
  template = correspondence.model_template(target, described.call, described.inputs)
  flat = traverse_util.flatten_dict(dict(conversion.variables), sep='/')
  flat_template = traverse_util.flatten_dict(dict(template), sep='/')
  head_paths = [path for path in flat_template if _is_head(path, described.heads)]
  new_heads = _initialise(target, described, seed, head_paths) if num_classes else {}
  lines = {line.flax_path: line for line in conversion.report}

  adapted, problems = {}, []
  for path, leaf in flat_template.items():
    inner = path.split('/', 1)[1]
    if num_classes is not None and _is_head(path, described.heads):
      adapted[path] = new_heads[path]
      lines[path] = Line('', (), path, leaf.shape, _FRESH)
    elif path in flat and flat[path].shape == leaf.shape:
      adapted[path] = flat[path]
    elif path in flat and image_size is not None and inner in described.position_embeddings:
      branch = described.position_embeddings[inner]
      grids = source.grids()[branch], target.grids()[branch]
      adapted[path] = np.asarray(resize.resize_position_embedding(flat[path], *grids))
      action = 'resized from {} to {} patches'.format(*('x'.join(map(str, g)) for g in grids))
      lines[path] = dataclasses.replace(lines[path], flax_shape=leaf.shape, action=action)
    else:
      had = flat[path].shape if path in flat else 'nothing'
      problems.append(f'{path}: {leaf.shape} is wanted, the checkpoint has {had}')
  for path in flat:
    if path not in adapted:
      if num_classes == 0 and _is_head(path, correspondence.describe_model(name, source).heads):
        lines[path] = dataclasses.replace(
          lines[path], flax_path='', flax_shape=(), action='dropped: no classifier wanted'
        )
      else:
        problems.append(f'{path}: the checkpoint has it, the new model has not')
  if problems:
    raise mapping_lib.MappingError(
      f'{name} with {changes} differs from the checkpoint in more than its heads and '
      'position embeddings:\n  ' + '\n  '.join(problems)
    )
  variables = traverse_util.unflatten_dict(adapted, sep='/')
  return Conversion(name, overrides, variables, tuple(lines.values()))


def _is_head(path: str, heads: Any) -> bool:
  inner = path.split('/', 1)[1]
  return any(inner.startswith(f'{head}/') for head in heads)


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
