"""Recorded cases: what a PyTorch module computed, as a manifest (JSON) and its arrays (npz).

`docs/parity.md` documents the format. Weights, generated inputs, cotangents and probes are not
stored: `generate` makes them from their names, bit for bit.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import json
import pathlib
from typing import Any
import zipfile
import zlib

import numpy as np

FIELDS = (
  'system',
  'module',
  'case',
  'constructor',
  'seed',
  'mode',
  'parameter_count',
  'state',
  'inputs',
  'shapes',
  'float32_relative_error',
  'grad_param',
)


class CaseError(ValueError):
  """A recorded case that cannot be read; the message names the file and what is wrong with it."""


def generate(
  seed: int,
  name: str,
  shape: Iterable[int],
  *,
  mean: float = 0.0,
  std: float = 1.0,
  abs: bool = False,
) -> np.ndarray:
  """Generates the float32 tensor that a case calls `name`: the same bits on every machine.

  Args:
    seed: the case's seed.
    name: a state-dict key, `input/<name>`, `cotangent/<output>` or `probe/<key>`.
    shape: of the tensor.
    mean: of the normal distribution.
    std: of the normal distribution.
    abs: whether the absolute value is taken (variances).
  """
  random = np.random.RandomState(zlib.crc32(f'{seed}/{name}'.encode()))
  x = mean + std * random.standard_normal(tuple(shape))
  return np.asarray(np.abs(x) if abs else x, dtype=np.float32)


def _generate_from(seed: int, name: str, entry: Mapping[str, Any]) -> np.ndarray:
  return generate(
    seed,
    name,
    entry['shape'],
    mean=entry['mean'],
    std=entry['std'],
    abs=entry.get('abs', False),
  )


@dataclasses.dataclass(frozen=True)
class Recorded:
  """One recorded array, possibly sub-sampled.

  Attributes:
    values: float64, the truth; flattened where `stride` is not None.
    shape: of the whole array.
    stride: every `stride`-th element of the array flattened in C order was kept; None keeps all.
  """

  values: np.ndarray
  shape: tuple[int, ...]
  stride: int | None

  def sample(self, array: np.ndarray) -> np.ndarray:
    """Picks from a whole array of `shape` the elements that were recorded."""
    return array if self.stride is None else array.reshape(-1)[:: self.stride]


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
  """A recorded case.

  Attributes:
    path: of the manifest.
    manifest: the manifest as parsed.
    stored_inputs: inputs that the npz holds, by name, in their own dtypes.
    recorded: outputs, taps and input gradients by array name (`out/...`, `tap/...`,
      `grad_input/...`).
  """

  path: pathlib.Path
  manifest: Mapping[str, Any]
  stored_inputs: Mapping[str, np.ndarray]
  recorded: Mapping[str, Recorded]

  @property
  def name(self) -> str:
    """The case's name."""
    return self.manifest['case']

  @property
  def seed(self) -> int:
    """The seed of everything that is generated."""
    return self.manifest['seed']

  @functools.cached_property
  def weights(self) -> dict[str, np.ndarray]:
    """The float32 state dict in the original's order, without buffers that the module makes."""
    return {
      entry['key']: _generate_from(self.seed, entry['key'], entry)
      for entry in self.manifest['state']
      if entry['kind'] != 'buffer'
    }

  @functools.cached_property
  def inputs(self) -> dict[str, np.ndarray]:
    """The inputs by name, in the original's layout."""
    return {
      name: self.stored_inputs[name]
      if entry['kind'] == 'stored'
      else _generate_from(self.seed, f'input/{name}', entry)
      for name, entry in self.manifest['inputs'].items()
    }

  def names(self, kind: str) -> list[str]:
    """The names of the recorded arrays of one kind: 'out', 'tap' or 'grad_input'."""
    return [array.split('/', 1)[1] for array in self.recorded if array.startswith(f'{kind}/')]

  def cotangent(self, output: str) -> np.ndarray:
    """The weights of the output `output` in the scalar whose gradients were recorded."""
    return generate(self.seed, f'cotangent/{output}', self.recorded[f'out/{output}'].shape)

  def probe(self, key: str, shape: Iterable[int]) -> np.ndarray:
    """The tensor whose inner product with the gradient of parameter `key` was recorded."""
    return generate(self.seed, f'probe/{key}', shape)


def read_manifest(path: str | pathlib.Path) -> dict[str, Any]:
  """Reads and checks a manifest.

  Raises:
    CaseError: it is not JSON, lacks a field, or has an entry of an unknown kind.
  """
  path = pathlib.Path(path)
  try:
    manifest = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise CaseError(f'{path}: cannot be read as a JSON manifest: {error}') from error
  if not isinstance(manifest, dict):
    raise CaseError(f'{path}: a manifest is a JSON object, this is a {type(manifest).__name__}')
  missing = [field for field in FIELDS if field not in manifest]
  if missing:
    raise CaseError(f'{path}: not a manifest of a recorded case: lacks {", ".join(missing)}')
  if manifest['mode'] not in ('eval', 'train'):
    raise CaseError(f'{path}: mode is {manifest["mode"]!r}; expected eval or train')
  for entry in manifest['state']:
    if entry['kind'] not in ('param', 'stat', 'buffer'):
      raise CaseError(
        f'{path}: state entry {entry["key"]!r} has kind {entry["kind"]!r}; '
        'expected param, stat or buffer'
      )
  for name, entry in manifest['inputs'].items():
    if entry['kind'] not in ('generated', 'stored'):
      raise CaseError(
        f'{path}: input {name!r} has kind {entry["kind"]!r}; expected generated or stored'
      )
  return manifest


def read_case(path: str | pathlib.Path) -> Case:
  """Reads the manifest `path` and the npz beside it.

  Raises:
    CaseError: a file is missing, truncated, or disagrees with the other.
  """
  path = pathlib.Path(path)
  manifest = read_manifest(path)
  arrays_path = path.with_suffix('.npz')
  try:
    with np.load(arrays_path, allow_pickle=False) as npz:
      arrays = {name: npz[name] for name in npz.files}
  except FileNotFoundError as error:
    raise CaseError(
      f'{path}: its arrays are missing: expected {arrays_path.name} beside it'
    ) from error
  except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
    raise CaseError(
      f'{arrays_path}: cannot be read (truncated or not an npz): {error}; copy it again'
    ) from error

  stored = {
    name.removeprefix('input/'): array
    for name, array in arrays.items()
    if name.startswith('input/')
  }
  for name, entry in manifest['inputs'].items():
    if entry['kind'] == 'stored' and name not in stored:
      raise CaseError(f'{arrays_path}: lacks input/{name}, which the manifest says is stored')

  found = {}
  for name, values in arrays.items():
    stride = None
    if name.startswith('sub:'):
      sub, name = name.split('/', 1)
      stride = int(sub.removeprefix('sub:'))
    found[name] = (values, stride)
  recorded = {}
  for name, shape in manifest['shapes'].items():
    if name not in found:
      raise CaseError(f'{arrays_path}: lacks {name}, whose shape the manifest gives')
    values, stride = found[name]
    size = int(np.prod(shape, dtype=np.int64))
    expected = tuple(shape) if stride is None else (-(-size // stride),)
    if values.shape != expected:
      raise CaseError(f'{arrays_path}: {name} holds {values.shape}; the manifest says {expected}')
    if name not in manifest['float32_relative_error']:
      raise CaseError(f'{path}: no float32_relative_error for {name}')
    recorded[name] = Recorded(values, tuple(shape), stride)
  return Case(path, manifest, stored, recorded)


def find_manifests(paths: Iterable[str | pathlib.Path]) -> list[pathlib.Path]:
  """Lists the manifests among `paths`, searching folders recursively, in order, each once.

  The arrays' file stands for its manifest, so that a shell pattern may match both.

  Raises:
    CaseError: a path does not exist or a folder holds no case.
  """
  found: dict[pathlib.Path, None] = {}
  for path in map(pathlib.Path, paths):
    if path.is_dir():
      manifests = [
        file
        for file in sorted(path.rglob('*.json'))
        if file.with_suffix('.npz').exists() or b'"case"' in file.read_bytes()[:4096]
      ]
      if not manifests:
        raise CaseError(f'{path}: no recorded case (NAME.json beside NAME.npz) in this folder')
    elif path.exists():
      manifests = [path.with_suffix('.json') if path.suffix == '.npz' else path]
    else:
      raise CaseError(f'{path}: no such file or folder')
    found.update(dict.fromkeys(manifests))
  return list(found)
