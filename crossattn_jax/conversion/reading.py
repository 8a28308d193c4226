"""State dicts of files, whoever wrote them, unwrapped: nothing is executed, no PyTorch needed."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any
import zipfile

import numpy as np
import safetensors.numpy

from crossattn_jax.conversion import torch_files

# Under which names training scripts keep the weights, the most specific first: of the average over
# the steps, which is what they evaluate, and as the optimizer has them. Prefixes of keys as well.
_AVERAGES = (
  *('model_ema', 'state_dict_ema', 'ema_state_dict', 'model_ema_state_dict', 'model_ema_state'),
  *('params_ema', 'ema_model', 'ema'),
)
_RAW = (
  *('model_state', 'model_state_dict', 'online_model', 'model', 'state_dict', 'net', 'network'),
  *('params', 'weights', 'student', 'module', '_orig_mod', 'backbone', 'encoder'),
)
# Prefixes that stand beside those of a network.
_BESIDE = ('criterion', 'loss', 'loss_fn', 'n_averaged', 'initted', 'step')

# The first bytes of what is downloaded or copied by mistake.
_NO_WEIGHTS = (
  (b'version https://', 'a pointer of git-LFS, not the file: `git lfs pull` gets it'),
  (b'<', 'a web page, not weights: get the file itself, in a browser if need be'),
  (b'{', 'JSON, not weights'),
  (b'\x1f\x8b', 'compressed: unpack it with gunzip or tar'),
  (b'\x89HDF', 'HDF5, as Keras writes it; only files of PyTorch and safetensors are read'),
)

_TENSORS = (torch_files.Tensor, np.ndarray)
_Path = tuple[str, ...]


class CheckpointError(ValueError):
  """A checkpoint that cannot be read, or must not be; the message names the file and the reason."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A state dict and where it was found.

  Attributes:
    state: arrays by their keys. Half precision is widened to float32, which loses nothing.
    told: what was taken, such as "EMA weights ('model_ema') of epoch 299".
    class_names: in the order of the classifier's outputs; empty where the file does not say.
  """

  state: dict[str, np.ndarray]
  told: str
  class_names: tuple[str, ...] = ()


def read_checkpoint(path: str | os.PathLike, which: str = 'auto') -> Checkpoint:
  """Finds the weights in a file of PyTorch or of safetensors.

  Those of training checkpoints, wrapped networks and pickled ones are unwrapped: entries such as
  'model' and 'state_dict', within each other, and prefixes such as 'module.' that all keys have. Of
  a list of state dicts, keys are prefixed by their place, '0.' the first.

  Args:
    path: of the file, or of the index of one in several parts.
    which: 'ema', 'raw', or 'auto': the average over the steps where there is one. Or the name of
      the entry that holds the weights.

  Raises:
    FileNotFoundError: there is no such file.
    CheckpointError: it is damaged or something else, or holds no such weights.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'{path}: no such checkpoint')
  content = _read(path)
  at = () if which in ('auto', 'ema', 'raw') else (which,)
  if at and which not in _dict(content):
    raise CheckpointError(f'{path}: has no entry {which!r}, but {_entries(content)}')
  try:
    found = list(_state_dicts(content[which] if at else content, at))
  except RecursionError as error:
    raise CheckpointError(f'{path}: is no checkpoint: it contains itself') from error
  averages = [entry for entry in found if _is_average(entry[0])]
  raw = [entry for entry in found if not _is_average(entry[0])]
  wanted = {'ema': averages, 'raw': raw}.get(which, averages or raw)
  if not wanted:
    raise CheckpointError(_no_state_dict(path, content, which, found))
  taken, tensors = wanted[0]
  told = _tell(taken, [names for names, _ in found], content)
  return Checkpoint(_arrays(path, tensors), told, _class_names(content))


def _no_state_dict(
  path: pathlib.Path, content: Any, which: str, found: Sequence[tuple[_Path, Any]]
) -> str:
  if found:
    return f'{path}: has no {which!r} weights, only {".".join(found[0][0]) or "one state dict"}'
  holds = f'{path}: holds no state dict that is recognised, but {_entries(content)}'
  entries = content if isinstance(content, dict) else {'': content}
  named = [name for name, x in entries.items() if any(_state_dicts(x))]
  if named:
    return f'{holds}. There are weights in {" and ".join(map(repr, named))}: which={named[0]!r}'
  made = [type(x) for x in entries.values() if isinstance(x, torch_files.Foreign)]
  foreign = {f'{kind.__module__}.{kind.__name__}' for kind in made}
  if foreign:
    return f'{path}: refused: it would have to execute {", ".join(sorted(foreign))}. {holds}'
  return holds


def _read(path: pathlib.Path) -> Any:
  """The content of a file: containers with tensors, wherever they are."""
  if path.name.endswith('.index.json'):
    parts = sorted(set(json.loads(path.read_text())['weight_map'].values()))
    return {key: x for part in parts for key, x in _read(path.with_name(part)).items()}
  with open(path, 'rb') as file:
    start = file.read(64)
  if not start:
    raise CheckpointError(f'{path}: is empty; copy it again')
  is_safetensors = start[6:9] == b'\0\0{'  # after the length of the header
  try:
    if start[:2] == b'PK' or (start[:1] == b'\x80' and not is_safetensors):
      return torch_files.load(path)
    if is_safetensors:
      _refuse_narrow(path)
      return safetensors.numpy.load_file(path)
  except safetensors.SafetensorError as error:
    raise CheckpointError(
      f'{path}: cannot be read as safetensors ({error}); download it again'
    ) from error
  except torch_files.UnreadableTorchFile as error:
    raise CheckpointError(f'{path}: cannot be read: {error}; download it again') from error
  text = start.removeprefix(b'\xef\xbb\xbf').lstrip()
  problem = next((what for magic, what in _NO_WEIGHTS if text.startswith(magic)), '')
  raise CheckpointError(
    f'{path}: is {problem}'
    if problem
    else f'{path}: is no file of PyTorch or safetensors, or is damaged; it begins {start[:16]}'
  )


def _refuse_narrow(path: pathlib.Path) -> None:
  """Refuses numbers of 4 to 8 bits, which mean nothing without scales that are kept elsewhere."""
  with safetensors.safe_open(path, 'numpy') as file:
    for key in file.keys():  # noqa: SIM118  (it is no mapping)
      dtype = file.get_slice(key).get_dtype()
      if dtype.startswith('F') and dtype not in ('F16', 'F32', 'F64'):
        raise CheckpointError(
          f'{path}: {key!r} is {dtype}; take a file of float32, float16 or bfloat16'
        )


def _state_dicts(content: Any, path: _Path = ()) -> Iterator[tuple[_Path, dict[str, Any]]]:
  """The state dicts in a checkpoint, and the names that lead to them; the best guess first."""
  content = _spelt_out(content)
  if not isinstance(content, dict):
    return
  tensors = {key: x for key, x in content.items() if isinstance(x, _TENSORS)}
  content = {**content, **_by_prefix(tensors)}
  # A teacher without a student beside it is another network.
  names = (*_AVERAGES, *(('teacher',) if 'student' in content else ()), *_RAW)
  inner = [
    found
    for name in names
    if name in content
    for found in _state_dicts(content[name], (*path, name))
  ]
  if inner:
    yield from inner
  elif tensors:
    yield path, tensors


def _spelt_out(content: Any) -> Any:
  """Pickled networks and lists of state dicts as dicts."""
  if isinstance(content, torch_files.Foreign):
    return _module_state(content)
  if isinstance(content, list) and all(isinstance(part, dict) for part in content):
    return {f'{i}.{key}': x for i, part in enumerate(content) for key, x in part.items()}
  return content


def _module_state(module: torch_files.Foreign) -> dict[str, Any]:
  """The state dict of a pickled network; empty if it is something else."""
  state = _attributes(module)
  transient = state.get('_non_persistent_buffers_set', ())
  parameters, buffers, children = (
    _dict(state.get(kind)) for kind in ('_parameters', '_buffers', '_modules')
  )
  found = {key: x for key, x in buffers.items() if key not in transient}
  found = {key: x for key, x in {**parameters, **found}.items() if x is not None}
  for name, child in children.items():
    if isinstance(child, torch_files.Foreign):
      found |= {f'{name}.{key}': x for key, x in _module_state(child).items()}
  return found


def _attributes(pickled: torch_files.Foreign) -> dict[str, Any]:
  """What a file sets as attributes of an object."""
  return _dict(pickled.state)


def _dict(content: Any) -> dict[str, Any]:
  return content if isinstance(content, dict) else {}


def _by_prefix(tensors: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Tensors by the wrapper that their keys begin with; empty unless all begin with one."""
  wrapped: dict[str, dict[str, Any]] = {}
  for key, x in tensors.items():
    prefix, _, rest = str(key).partition('.')
    if prefix == 'model' and rest[:1].isdigit():
      return {}  # YOLOv5 calls the row of its layers so.
    if prefix in (*_AVERAGES, *_RAW, 'teacher') and rest:
      wrapped.setdefault(prefix, {})[rest] = x
    elif prefix not in _BESIDE:
      return {}
  return wrapped


def _is_average(path: _Path) -> bool:
  return any(name in _AVERAGES or name == 'teacher' for name in path)


def _tell(taken: _Path, found: Sequence[_Path], content: Any) -> str:
  others = [path for path in found if _is_average(path) != _is_average(taken)]
  kind = 'EMA weights' if _is_average(taken) else 'raw weights' if others else 'weights'
  told = f'{kind} ({".".join(taken)!r})' if taken else kind
  for unit in ('epoch', 'iter', 'step', 'global_step'):
    if isinstance(content, dict) and type(content.get(unit)) is int and content[unit] >= 0:
      told += f' of {unit} {content[unit]}'
      break
  same = [path for path in found if path != taken and path not in others]
  if same:
    told += f', without {", ".join(repr(".".join(path)) for path in same)}'
  if others:
    other = 'raw' if _is_average(taken) else 'ema'
    told += f'; which={other!r} takes {".".join(others[0])!r}'
  return told


def _class_names(content: Any) -> tuple[str, ...]:
  """What a checkpoint, or the network in it, says of its classes: names, or names and numbers."""
  networks = content.values() if isinstance(content, dict) else (content,)
  holders = [content, *(_attributes(x) for x in networks if isinstance(x, torch_files.Foreign))]
  for part in ('meta', 'dataset_meta'):
    holders += [holder[part] for holder in holders if isinstance(holder, dict) and part in holder]
  for holder in holders:
    for key in ('class_names', 'classes', 'CLASSES', 'names', 'class_to_idx'):
      named = holder.get(key) if isinstance(holder, dict) else None
      if isinstance(named, dict):
        pairs = [(k, v) if isinstance(k, int) else (v, k) for k, v in named.items()]
        numbers = [number for number, _ in pairs if isinstance(number, int)]
        if sorted(numbers) == list(range(len(pairs))):
          named = [name for _, name in sorted(pairs)]
      if isinstance(named, (list, tuple)) and all(isinstance(name, str) for name in named):
        return tuple(named)
  return ()


def _arrays(path: pathlib.Path, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
  arrays = {}
  for key, x in tensors.items():
    try:
      array = x.numpy() if isinstance(x, torch_files.Tensor) else x
    except (ValueError, OverflowError, MemoryError, zipfile.BadZipFile, KeyError) as error:
      raise CheckpointError(f'{path}: is damaged at {key} ({error}); download it again') from error
    half = array.dtype.name in ('float16', 'bfloat16')
    arrays[key] = array.astype(np.float32) if half else array
  return arrays


def _entries(content: Any) -> str:
  """What a checkpoint holds, for an error."""
  if isinstance(content, dict):
    return f'the entries {", ".join(map(repr, list(content)[:12]))}'
  return f'a {type(content).__name__}'
