"""Checkpoints of the PyTorch originals to this library's variables, and back.

What does not fit the model is refused by name; nothing is dropped, resized or initialised unless
asked for.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from flax import traverse_util
import jax
import numpy as np
import safetensors
import safetensors.numpy

from crossattn_jax.conversion import correspondence, optional, recognition
from crossattn_jax.conversion import mapping as mapping_lib
from crossattn_jax.models import registry, variables_io

# What became of an array that the checkpoint lacks.
_FRESH = 'new: freshly initialised'


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
    class_names: in the order of the classifier's outputs; empty where they are not known.
  """

  name: str
  overrides: Mapping[str, Any]
  variables: Mapping[str, Any]
  report: tuple[Line, ...]
  class_names: tuple[str, ...] = ()

  def save(self, path: str | pathlib.Path) -> None:
    """Writes the variables file that `models.variables_io.load_variables` reads."""
    variables_io.save_variables(path, self.variables, self.name, self.overrides, self.class_names)


def to_flax(
  name: str, state: Mapping[str, np.ndarray], overrides: Mapping[str, Any] | None = None
) -> Conversion:
  """Converts a state dict to the variables of `create_model(name, **overrides)`.

  Args:
    name: of the model.
    state: in the original's spelling or in another that is known.
    overrides: of `create_model`, for what the state dict does not tell.

  Raises:
    mapping.MappingError: naming every missing, unexpected and misshapen key.
  """
  shapes = {key: x.shape for key, x in state.items()}
  overrides, mapping = recognition.match(name, shapes, overrides or {})
  module = registry.create_model(name, **overrides)
  overrides |= correspondence.describe_model(name, module).buffers(state)
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
    state: a module that it has anything of, it must have whole.
    overrides: of `create_model`.
    seed: of the initialisation.

  Raises:
    mapping.MappingError: naming every missing, unexpected and misshapen key.
  """
  overrides = dict(overrides or {})
  module = registry.create_model(name, **overrides)
  mapping, template = correspondence.model_mapping(name, module)
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
  initial = correspondence.initialise(module, described.call, described.inputs, fresh, seed)
  for path, leaf in initial.items():
    flat[path] = leaf
    lines.append(Line('', (), path, leaf.shape, _FRESH))
  return Conversion(name, overrides, traverse_util.unflatten_dict(flat, sep='/'), tuple(lines))


def part_to_flax(
  name: str,
  state: Mapping[str, np.ndarray],
  rules: Sequence[mapping_lib.Rule],
  overrides: Mapping[str, Any] | None = None,
) -> Conversion:
  """Converts the state dict of a network that some of a model starts from.

  Args:
    name: of the model.
    state: of the other network.
    rules: of `Correspondence.starts`: what they are for, the state dict must have.
    overrides: of `create_model`.

  Returns:
    The conversion, whose variables are those of the rules alone.

  Raises:
    mapping.MappingError: naming every missing, unexpected and misshapen key.
  """
  overrides = dict(overrides or {})
  module = registry.create_model(name, **overrides)
  described = correspondence.describe_model(name, module)
  template = correspondence.model_template(module, described.call, described.inputs)
  part = {
    path: leaf
    for path, leaf in traverse_util.flatten_dict(dict(template)).items()
    if any(rule.collection == path[0] and rule.key_of('/'.join(path[1:])) for rule in rules)
  }
  mapping = mapping_lib.build_mapping(rules, traverse_util.unflatten_dict(part))
  return Conversion(name, overrides, mapping.to_flax(state), tuple(_report(mapping, state)))


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
  module = registry.create_model(name, **dict(overrides or {}))
  mapping, _ = correspondence.model_mapping(name, module, spelling)
  state = mapping.to_torch(jax.tree.map(np.asarray, dict(variables)))
  state = {**correspondence.describe_model(name, module).besides(state), **state}
  return {key: np.array(value, order='C') for key, value in state.items()}


def write_torch(path: str | pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
  """Writes a state dict as `.safetensors`, or with `torch.save` under any other suffix."""
  path = pathlib.Path(path)
  if path.suffix == '.safetensors':
    safetensors.numpy.save_file(dict(state), path)
  else:
    torch = optional.require('torch')
    torch.save({key: torch.from_numpy(np.array(value)) for key, value in state.items()}, path)
