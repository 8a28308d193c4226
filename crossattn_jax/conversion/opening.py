"""Weights from wherever they are, as the network was saved.

opened = open_weights('checkpoint.pth', 'crossvit_tiny_240')
print(opened.told)
"""

from collections.abc import Mapping
import dataclasses
import os
import pathlib
from typing import Any

from crossattn_jax.conversion import convert, published
from crossattn_jax.conversion import mapping as mapping_lib
from crossattn_jax.models import registry, variables_io

# Files of weights that a folder may hold, the first that is there is taken.
_FOLDER_FILES = ('weights.safetensors', 'model.safetensors', 'pytorch_model.bin')


@dataclasses.dataclass(frozen=True)
class OpenedWeights:
  """Weights as their network was saved.

  Attributes:
    name: of the model.
    overrides: of `create_model`: in what the network that was saved differs from `name`.
    variables: nested dicts of numpy arrays, collections first.
    class_names: in the order of the classifier's outputs; empty where they are not known.
    told: a sentence that says what was taken.
    report: a line per tensor that was converted.
  """

  name: str
  overrides: Mapping[str, Any]
  variables: Mapping[str, Any]
  class_names: tuple[str, ...] = ()
  told: str = ''
  report: tuple[convert.Line, ...] = ()


def open_weights(
  source: str | os.PathLike,
  name: str,
  overrides: Mapping[str, Any] | None = None,
  *,
  which: str = 'auto',
  cache_dir: str | os.PathLike | None = None,
) -> OpenedWeights:
  """Reads weights of a registered model, nothing dropped, resized or initialised.

  Args:
    source: 'official' (the authors' release), 'timm' or 'transformers' (their copy), or a path: of
      a PyTorch checkpoint, of safetensors in the spelling of any of them, of a variables file, of
      the folder of an exported model or of one of Hugging Face.
    name: of the model.
    overrides: of `create_model`; what the file tells itself wins.
    which: 'ema', 'raw', or 'auto': the average where the file has one.
    cache_dir: of downloads; `published.default_cache_dir()` by default.

  Raises:
    ValueError: the name, a field or the source is unknown, or the source has no such weights.
    published.DownloadError: the file cannot be had; says which file to put where.
    mapping.MappingError: the weights are not those of the model.
    convert.CheckpointError: the file is damaged, or no checkpoint.
  """
  overrides = dict(overrides or {})
  registry.create_model(name, **overrides)  # A wrong name or field shows before any download.
  if source in published.SOURCES:
    return _open_published(name, str(source), overrides, which, cache_dir)
  if not os.path.exists(source):
    sources = ' nor '.join(map(repr, published.SOURCES))
    raise ValueError(f'source is {str(source)!r}: neither {sources} nor an existing file')
  path = pathlib.Path(source)
  if path.is_dir():
    path = _file_in(path)
  return _open_file(name, path, overrides, which)


def _open_published(
  name: str,
  source: str,
  overrides: Mapping[str, Any],
  which: str,
  cache_dir: str | os.PathLike | None,
) -> OpenedWeights:
  cache = pathlib.Path(cache_dir or published.default_cache_dir())
  path = published.fetch(name, source, cache)
  weights = published.SOURCES[source][name]
  try:
    opened = _open_file(name, path, {**overrides, **dict(weights.overrides)}, which)
  except (convert.CheckpointError, mapping_lib.MappingError) as error:
    path.unlink()
    raise published.DownloadError(
      f'what {weights.url} served is not the {source} checkpoint of {name}, and was deleted; try '
      f'again, or put the right file at {path}. {error}'
    ) from error
  return dataclasses.replace(opened, told=f'{name}, {source}: {weights.url}')


def _file_in(folder: pathlib.Path) -> pathlib.Path:
  for file in _FOLDER_FILES:
    if (folder / file).exists():
      return folder / file
  held = ', '.join(sorted(path.name for path in folder.iterdir())[:5]) or 'nothing'
  raise convert.CheckpointError(
    f'{folder}: holds none of {", ".join(_FOLDER_FILES)}, but {held}; pass the file of the weights'
  )


def _open_file(
  name: str, path: pathlib.Path, overrides: Mapping[str, Any], which: str
) -> OpenedWeights:
  if variables_io.is_variables_file(path):
    saved = variables_io.load_variables(path)
    told = f'{saved.name}: {path}'
    return OpenedWeights(
      saved.name, saved.overrides, saved.variables, tuple(saved.class_names), told
    )
  conversion = convert.to_flax(name, convert.read_checkpoint(path), overrides)
  return OpenedWeights(
    name,
    conversion.overrides,
    conversion.variables,
    told=f'{name}: {path}',
    report=conversion.report,
  )
