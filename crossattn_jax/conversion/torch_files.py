"""Files that `torch.save` wrote, read without PyTorch and without executing anything.

A file is a pickle of nested containers, in which tensors refer to storages, and the bytes of the
storages. Here the pickle may make containers and tensors, and nothing else: whatever else it names
is never looked up and becomes a `Foreign`, which holds what the file says of it. So the weights are
also found in a file that holds a whole pickled network, its optimizer or its options.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
import os
import pathlib
import pickle
import sys
from typing import Any, BinaryIO
import zipfile

import jax.numpy as jnp
import numpy as np

# A storage's class in torch -> the numbers in it.
_STORAGES = {
  'DoubleStorage': np.float64,
  'FloatStorage': np.float32,
  'HalfStorage': np.float16,
  'BFloat16Storage': jnp.bfloat16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
  'ComplexDoubleStorage': np.complex128,
  'ComplexFloatStorage': np.complex64,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class UnreadableTorchFile(ValueError):
  """The file is damaged, or not one of `torch.save`; the message says what is wrong with it."""


class Foreign:
  """What a pickle makes of a class or function that is not PyTorch's way to store tensors.

  Attributes:
    __qualname__: of its class, the name that the file gives.
    state: what the file sets as its attributes; None where it sets none.
  """

  state: Any = None

  def __init__(self, *args: Any, **kwargs: Any):
    del args, kwargs

  def __setstate__(self, state: Any):
    self.state = state

  def _ignore(self, *args: Any): ...

  # What pickles call of containers of a class of their own.
  __setitem__ = append = extend = add = _ignore


class _Sealed:
  """What a pickle makes but must not change: memory is read by its sizes."""

  def __setstate__(self, state: Any):
    raise UnreadableTorchFile('it changes a tensor that it has made')


@dataclasses.dataclass
class _Storage(_Sealed):
  """The numbers that tensors are views of.

  Attributes:
    dtype: of the numbers.
    size: how many they are.
    read: their bytes.
  """

  dtype: np.dtype
  size: int
  read: Callable[[], bytes]

  @functools.cached_property
  def numbers(self) -> np.ndarray:
    content = self.read()
    if len(content) < self.size * self.dtype.itemsize:
      raise UnreadableTorchFile('a tensor is cut short')
    return np.frombuffer(content, self.dtype, self.size)


@dataclasses.dataclass(frozen=True)
class Tensor(_Sealed):
  """A tensor whose numbers are still in the file.

  Attributes:
    storage: what it is a view of.
    offset: of its first number.
    shape: its shape.
    strides: in numbers.
  """

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def numpy(self) -> np.ndarray:
    """Reads it.

    Raises:
      UnreadableTorchFile: it is damaged.
    """
    integers = (self.offset, *self.shape, *self.strides)
    if any(type(number) is not int or not 0 <= number <= sys.maxsize for number in integers):
      raise UnreadableTorchFile('a tensor has no sensible shape')
    last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
    if math.prod(self.shape) and last >= self.storage.size:
      raise UnreadableTorchFile('a tensor is larger than its storage')
    numbers = self.storage.numbers[self.offset :] if math.prod(self.shape) else np.empty(0)
    steps = [step * self.storage.dtype.itemsize for step in self.strides]
    view = np.lib.stride_tricks.as_strided(
      numbers.astype(self.storage.dtype, copy=False), self.shape, steps, writeable=False
    )
    return np.ascontiguousarray(view).reshape(self.shape)


def _tensor(storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int], *_: Any):
  if not isinstance(storage, _Storage) or len(shape) != len(strides):
    raise UnreadableTorchFile('a tensor has no storage')
  return Tensor(storage, offset, tuple(shape), tuple(strides))


# All that a pickle may call, besides the classes of storages.
_ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = {
  ('collections', 'OrderedDict'): collections.OrderedDict,
  ('builtins', 'set'): set,
  ('__builtin__', 'set'): set,
  ('torch', 'Size'): tuple,
  ('torch._utils', '_rebuild_tensor'): _tensor,
  ('torch._utils', '_rebuild_tensor_v2'): _tensor,
  ('torch._utils', '_rebuild_parameter'): lambda data, *_: data,
  ('torch._utils', '_rebuild_parameter_with_state'): lambda data, *_: data,
  ('torch._tensor', '_rebuild_from_type_v2'): lambda make, _, arguments, *__: make(*arguments),
}


@dataclasses.dataclass
class _Numbers(_Sealed):
  """Stands for a class of storages."""

  dtype: np.dtype


class _Unpickler(pickle.Unpickler):
  """Makes containers, tensors and `Foreign` objects.

  Args:
    file: the pickle.
    find_storage: (key, dtype, size) -> the storage of that key.
  """

  def __init__(self, file: BinaryIO, find_storage: Callable[[str, np.dtype, int], _Storage]):
    # Strings of Python 2 are bytes; keys are ASCII.
    super().__init__(file, encoding='latin-1')
    self._find_storage = find_storage

  def find_class(self, module: str, name: str) -> Any:
    if module == 'torch' and name in _STORAGES:
      return _Numbers(np.dtype(_STORAGES[name]))
    if (module, name) in _ALLOWED:
      made = _ALLOWED[module, name]
      # A pickle can set attributes of functions: each gets its own.
      return made if isinstance(made, type) else functools.partial(made)
    return type(name, (Foreign,), {'__module__': module})

  def persistent_load(self, pid: Any) -> Any:
    match pid:
      case ('module', kind, *_):
        return kind  # The class of a pickled network, with its source beside it.
      case ('storage', _Numbers(dtype=dtype), key, _, int(size), *view) if view in ([], [None]):
        return self._find_storage(str(key), dtype, size)
    raise UnreadableTorchFile(f'it holds a storage of an unknown kind: {str(pid)[:80]}')


def load(path: str | os.PathLike) -> Any:
  """Reads what `torch.save` wrote.

  Returns:
    Its containers and plain values, with a `Tensor` for each tensor and parameter, and a `Foreign`
    for everything else.

  Raises:
    UnreadableTorchFile: it is damaged, or something else.
  """
  path = pathlib.Path(path)
  with open(path, 'rb') as file:
    is_zip = file.read(2) == b'PK'
  try:
    return _load_zip(path) if is_zip else _load_legacy(path)
  except (UnreadableTorchFile, OSError):
    raise
  except Exception as error:  # A damaged pickle may do anything wrong.
    raise UnreadableTorchFile(f'it is damaged ({type(error).__name__}: {error})') from error


def _load_zip(path: pathlib.Path) -> Any:
  archive = zipfile.ZipFile(path)
  names = archive.namelist()
  root = names[0].split('/')[0]
  if f'{root}/data.pkl' not in names:
    raise UnreadableTorchFile(f'it is a zip archive of {", ".join(names[:3])}; unpack it')
  if f'{root}/constants.pkl' in names:
    raise UnreadableTorchFile('it is a TorchScript program; save the state_dict() of its module')
  order = 'little'
  if f'{root}/byteorder' in names:
    order = archive.read(f'{root}/byteorder').decode()

  @functools.cache
  def storage(key: str, dtype: np.dtype, size: int) -> _Storage:
    ordered = dtype if order == sys.byteorder else dtype.newbyteorder()
    return _Storage(ordered, size, lambda: archive.read(f'{root}/data/{key}'))

  return _Unpickler(archive.open(f'{root}/data.pkl'), storage).load()


def _load_legacy(path: pathlib.Path) -> Any:
  """Reads a file of PyTorch before 1.6: pickles in a row, then the storages."""
  storages: dict[str, _Storage] = {}
  starts: dict[str, int] = {}

  def storage(key: str, dtype: np.dtype, size: int) -> _Storage:
    def read() -> bytes:
      with open(path, 'rb') as file:
        file.seek(starts[key])
        return file.read(size * dtype.itemsize)

    return storages.setdefault(key, _Storage(dtype, size, read))

  with open(path, 'rb') as file:
    if _Unpickler(file, storage).load() != _LEGACY_MAGIC:
      raise UnreadableTorchFile('it is a pickle, but not of torch.save')
    version, system, content, keys = (_Unpickler(file, storage).load() for _ in range(4))
    del version
    if not system['little_endian']:
      raise UnreadableTorchFile('it was written by a big-endian machine')
    position, length = file.tell(), path.stat().st_size
    for key in keys:
      # Its length stands before it.
      starts[key] = position + 8
      position += 8 + storages[key].size * storages[key].dtype.itemsize
    if position > length:
      raise UnreadableTorchFile(f'it is cut short: {length} bytes of {position}')
  return content
