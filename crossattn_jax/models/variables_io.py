"""Variables of a model as one self-describing file.

The file is safetensors: every array under its Flax path joined by '/', collection first
('params/head_0/kernel'), and in the metadata the model's registered name and the fields that were
overridden, so that `create_model(name, **overrides)` rebuilds the module, and the names of its
classes where they are known. Reading one executes nothing.
"""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
from typing import Any, NamedTuple

from flax import traverse_util
import jax
import numpy as np
import safetensors
import safetensors.numpy

_FORMAT = 'crossattn_jax.variables.1'


class SavedModel(NamedTuple):
  """What a variables file holds.

  Attributes:
    name: of the model in the registry.
    overrides: keyword arguments of `create_model` besides the name.
    variables: nested dicts of numpy arrays, collections first.
    class_names: in the order of the outputs; none where they are not known.
  """

  name: str
  overrides: dict[str, Any]
  variables: dict[str, Any]
  class_names: tuple[str, ...] = ()


def save_variables(
  path: str | os.PathLike,
  variables: Mapping[str, Any],
  model_name: str,
  overrides: Mapping[str, Any] | None = None,
  class_names: Sequence[str] = (),
) -> None:
  """Writes `variables` with the name and the overrides that rebuild their model.

  The file appears under its name only when it is complete.

  Args:
    path: of the file; `.safetensors` by convention.
    variables: nested dicts of arrays, collections first.
    model_name: in the registry.
    overrides: keyword arguments of `create_model`; JSON values (tuples become lists).
    class_names: in the order of the outputs, where the model has classes and they are known.

  Raises:
    ValueError: an override is not a JSON value.

  Examples:
    >>> variables = {'params': {'head': {'kernel': np.zeros((64, 10), np.float32)}}}
    >>> save_variables('head.safetensors', variables, 'swiftformer_xs', {'num_classes': 10})
    >>> load_variables('head.safetensors').overrides
    {'num_classes': 10}
  """
  path = pathlib.Path(path)
  try:
    overrides = json.dumps(dict(overrides or {}))
  except TypeError as error:
    raise ValueError(f'overrides of {model_name!r} must be plain JSON values: {error}') from error
  arrays = {
    '/'.join(keys): np.array(jax.device_get(leaf), order='C')
    for keys, leaf in traverse_util.flatten_dict(dict(variables)).items()
  }
  metadata = {'format': _FORMAT, 'model': model_name, 'overrides': overrides}
  if class_names:
    metadata['class_names'] = json.dumps(list(class_names))
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  try:
    safetensors.numpy.save_file(arrays, temporary, metadata=metadata)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def is_variables_file(path: str | os.PathLike) -> bool:
  """Whether `path` is a file that `save_variables` wrote."""
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      return (file.metadata() or {}).get('format') == _FORMAT
  except (OSError, safetensors.SafetensorError):
    return False


def load_variables(path: str | os.PathLike) -> SavedModel:
  """Reads a file that `save_variables` wrote.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is truncated, not safetensors, or not of this library.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'{path}: no such variables file')
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      metadata = file.metadata() or {}
      if metadata.get('format') != _FORMAT:
        raise ValueError(
          f'{path}: safetensors, but not a variables file of this library; convert a PyTorch '
          'checkpoint with `python -m crossattn_jax.parity convert MODEL FILE OUTPUT`'
        )
      flat = {tuple(key.split('/')): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
  except safetensors.SafetensorError as error:
    raise ValueError(f'{path}: cannot be read as safetensors ({error}); copy it again') from error
  overrides = json.loads(metadata['overrides'])
  class_names = tuple(json.loads(metadata.get('class_names', '[]')))
  return SavedModel(metadata['model'], overrides, traverse_util.unflatten_dict(flat), class_names)
