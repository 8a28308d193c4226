"""Weights from wherever they are, as the network was saved.

opened = open_weights('checkpoint.pth', 'crossvit_tiny_240')
print(opened.told)
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any

from flax import traverse_util
import numpy as np

from crossattn_jax.conversion import convert, correspondence, published, reading, recognition
from crossattn_jax.conversion import mapping as mapping_lib
from crossattn_jax.models import registry, variables_io

# Files of weights that a folder may hold; the first that is there is taken.
_FOLDER_FILES = tuple(
  f'{name}{index}'
  for name in ('weights.safetensors', 'model.safetensors', 'pytorch_model.bin')
  for index in ('', '.index.json')
)

# ImageNet's, by which all but a few networks have their images normalised.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class OpenedWeights:
  """Weights as their network was saved.

  Attributes:
    name: of the model. Where the one asked for starts from a classifier, or is a part of what was
      saved, or the other way round, it is another one: the one that was saved.
    overrides: of `create_model`: in what the network that was saved differs from `name`.
    variables: nested dicts of numpy arrays, collections first.
    class_names: in the order of the classifier's outputs; empty where they are not known.
    told: a sentence that says what was taken.
    settings: those of the overrides that the weights mean something else without.
    report: a line per tensor that was converted.
    in_part: whether the variables are those of some parts of the model, which start from them.
  """

  name: str
  overrides: Mapping[str, Any]
  variables: Mapping[str, Any]
  class_names: tuple[str, ...] = ()
  told: str = ''
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  report: tuple[convert.Line, ...] = ()
  in_part: bool = False


def split_source(source: str | os.PathLike) -> list[str]:
  """The paths of several files of weights with commas between them, or the only one."""
  source = os.path.expanduser(source)
  return [source] if os.path.exists(source) else source.split(',')


def open_weights(
  source: str | os.PathLike,
  name: str,
  overrides: Mapping[str, Any] | None = None,
  *,
  which: str = 'auto',
  cache_dir: str | os.PathLike | None = None,
) -> OpenedWeights:
  """Reads weights for a registered model as they were saved: nothing dropped, resized or new.

  Args:
    source: 'official' (the authors' release), 'timm' or 'transformers' (their copy), or a path: of
      a PyTorch checkpoint, of safetensors in the spelling of any of them, of a variables file, of
      the folder of an exported model or of one of Hugging Face. Or several files, with commas
      between them, each of other parts of the model.
    name: of the model.
    overrides: of `create_model`; what the file tells itself wins.
    which: 'ema', 'raw', or 'auto': the average where the file has one. Or the name of the entry
      with the weights.
    cache_dir: of downloads; `published.default_cache_dir()` by default.

  Raises:
    ValueError: the name, a field or the source is unknown, the source has no such weights, or they
      mean something else than the overrides say.
    published.DownloadError: the file cannot be had; says which file to put where.
    mapping.MappingError: the weights are not those of the model; says which they resemble.
    reading.CheckpointError: the file is damaged, or no checkpoint.
  """
  overrides = dict(overrides or {})
  registry.create_model(name, **overrides)  # A wrong name or field shows before any download.
  sources = split_source(source)
  if len(sources) > 1:
    return _join([open_weights(each, name, overrides, which=which) for each in sources])
  (source,) = sources
  if source in published.SOURCES:
    opened = _open_published(name, source, which, cache_dir)
  elif os.path.exists(source):
    opened = _open_path(pathlib.Path(source), name, overrides, which)
  else:
    sources = ' nor '.join(map(repr, published.SOURCES))
    raise ValueError(f'source is {source!r}: neither {sources} nor an existing file')
  for field, value in opened.settings.items():
    if overrides.get(field, value) != value:
      raise ValueError(
        f'{opened.told}: these weights are for {field}={value!r} and mean nothing with '
        f'{overrides[field]!r}; leave {field} out'
      )
  return opened


def _join(opened: Sequence[OpenedWeights]) -> OpenedWeights:
  """Weights of other parts of a model each as one.

  Raises:
    mapping.MappingError: they are of several models, or some parts are in two of them.
  """
  first, flat, report = opened[0], {}, []
  for weights in opened:
    if (weights.name, weights.overrides) != (first.name, first.overrides):
      raise mapping_lib.MappingError(
        f'{weights.told}: is no part of what {first.told} is of; leave one of them out'
      )
    more = traverse_util.flatten_dict(dict(weights.variables))
    if both := sorted(flat.keys() & more.keys()):
      raise mapping_lib.MappingError(
        f'{weights.told}: has {"/".join(both[0])}{f" and {len(both) - 1} more" * (len(both) > 1)}, '
        'which another of the files has too; leave one of them out'
      )
    flat |= more
    report += weights.report
  return dataclasses.replace(
    first,
    variables=traverse_util.unflatten_dict(flat),
    told='; '.join(weights.told for weights in opened),
    report=tuple(report),
  )


def _open_published(
  name: str, source: str, which: str, cache_dir: str | os.PathLike | None
) -> OpenedWeights:
  path = published.fetch(name, source, pathlib.Path(cache_dir or published.default_cache_dir()))
  try:
    return _open_path(path, name, {}, which)
  except (reading.CheckpointError, mapping_lib.MappingError) as error:
    path.unlink()
    url = published.SOURCES[source][name]
    raise published.DownloadError(
      f'what {url} served is not the {source} checkpoint of {name}, and was deleted; try again, or '
      f'put the right file at {path}. {error}'
    ) from error


def _open_path(
  path: pathlib.Path, name: str, overrides: Mapping[str, Any], which: str
) -> OpenedWeights:
  if path.is_dir():
    path = _file_in(path)
  if variables_io.is_variables_file(path):
    saved = variables_io.load_variables(path)
    told = f'{path}: variables of {saved.name}'
    return OpenedWeights(saved.name, saved.overrides, saved.variables, saved.class_names, told)
  return _open_checkpoint(path, name, overrides, which)


def _file_in(folder: pathlib.Path) -> pathlib.Path:
  for file in _FOLDER_FILES:
    if (folder / file).exists():
      return folder / file
  if (folder / 'checkpoints').is_dir():
    raise reading.CheckpointError(
      f'{folder}: is the workdir of a run, which config.weights takes; elsewhere take what '
      f'`python main.py --mode=export --workdir={folder} --output=FOLDER` writes'
    )
  held = ', '.join(sorted(path.name for path in folder.iterdir())[:5]) or 'nothing'
  raise reading.CheckpointError(
    f'{folder}: has none of {", ".join(_FOLDER_FILES)}, but {held}; pass the file of the weights'
  )


def _open_checkpoint(
  path: pathlib.Path, name: str, overrides: Mapping[str, Any], which: str
) -> OpenedWeights:
  checkpoint = reading.read_checkpoint(path, which)
  try:
    start = _start_of(name, checkpoint.state, overrides)
    if start is not None:
      conversion, network = start
      return OpenedWeights(
        name,
        conversion.overrides,
        conversion.variables,
        told=f'{path}: {network}, from which some of {name} starts, {checkpoint.told}',
        report=conversion.report,
        in_part=True,
      )
    name, conversion = _convert(name, checkpoint.state, overrides)
  except mapping_lib.MappingError as error:
    raise mapping_lib.MappingError(f'{path}: {error}') from error
  shapes = {key: x.shape for key, x in checkpoint.state.items()}
  module = registry.create_model(name, **conversion.overrides)
  described = correspondence.describe_model(name, module)
  config = _hugging_face_config(path.parent)
  settings = {**described.settings(shapes), **_configured(config, described, path, name)}
  told = f'{path}: {recognition.owner(described.rules, shapes)}{name}, {checkpoint.told}'
  if settings:
    told += f', for {", ".join(f"{field}={x!r}" for field, x in settings.items())}'
  told += _other_images(config, path.parent)
  default = registry.create_model(name)
  saved = {**conversion.overrides, **settings}
  return OpenedWeights(
    name,
    {f: x for f, x in saved.items() if x != recognition.field_of(default, f)},
    conversion.variables,
    checkpoint.class_names or _labels(config),
    told,
    settings,
    conversion.report,
  )


def _start_of(
  name: str, state: Mapping[str, np.ndarray], overrides: Mapping[str, Any]
) -> tuple[convert.Conversion, str] | None:
  """Some of the model and the name of the network that the state dict is of, if it is of one."""
  starts = correspondence.describe_model(name, registry.create_model(name, **overrides)).starts
  for network, rules in starts.items():
    if all(recognition.knows(rules, key) for key in state):
      return convert.part_to_flax(name, state, rules, overrides), network
  return None


def _convert(
  name: str, state: Mapping[str, np.ndarray], overrides: Mapping[str, Any]
) -> tuple[str, convert.Conversion]:
  """Converts a state dict as the network that was saved, and names that."""
  shapes = {key: x.shape for key, x in state.items()}
  described = correspondence.describe_model(name, registry.create_model(name, **overrides))
  backbone, plus, _ = name.partition('+')
  if plus and all(recognition.knows(described.classifier_rules, key) for key in shapes):
    fields = registry.model_config(backbone)
    name, overrides = backbone, {field: x for field, x in overrides.items() if field in fields}
  try:
    told = {'num_channels', *recognition.told_fields(name, shapes, overrides)}
    untold = {field: x for field, x in overrides.items() if field not in told}
    return name, convert.to_flax(name, state, untold)
  except mapping_lib.MappingError as error:
    found = recognition.recognise(shapes, name)
    if not found and all(recognition.knows(described.classifier_rules, key) for key in shapes):
      raise mapping_lib.MappingError(
        f'holds a classifier that {" and ".join(described.backbones)} of {name!r} can start from: '
        f'`python -m crossattn_jax.parity convert {name} FILE OUTPUT.safetensors --start=CLASSES` '
        'makes weights to start from'
      ) from error
    if not found and not any(recognition.knows(described.rules, key) for key in shapes):
      keys = ', '.join(list(shapes)[:5])
      raise mapping_lib.MappingError(
        f'holds {len(shapes)} arrays of no registered model, none of {name!r}; unexpected: {keys}'
      ) from error
    if not found:
      raise
    if _shares_modules(name, found, described, shapes):
      return found, convert.to_flax(found, state)
    raise mapping_lib.MappingError(
      f'holds weights of {found!r}, not of {name!r}: use that name'
    ) from error


def _shares_modules(
  name: str, found: str, described: correspondence.Correspondence, shapes: correspondence.Shapes
) -> bool:
  """Whether one of two networks is a part of the other, or both have the same backbone."""
  if name != found and name.partition('+')[0] == found.partition('+')[0]:
    return True
  if type(registry.create_model(name)) is type(registry.create_model(found)):
    return False
  rules = [*described.rules, *described.classifier_rules]
  return all(recognition.knows(rules, key) for key in shapes)


def _hugging_face_config(folder: pathlib.Path) -> Mapping[str, Any]:
  """The config.json of Hugging Face or timm beside the weights; empty if there is none."""
  path = folder / 'config.json'
  config = json.loads(path.read_text()) if path.exists() else {}
  return config if {'model_type', 'architectures', 'architecture'} & {*config} else {}


def _configured(
  config: Mapping[str, Any],
  described: correspondence.Correspondence,
  path: pathlib.Path,
  name: str,
) -> dict[str, Any]:
  """The fields that Hugging Face's config.json tells.

  Raises:
    mapping.MappingError: it is of a network that computes something else with such weights.
  """
  fields = {}
  for entry, known in described.config.items():
    if entry in config:
      if config[entry] not in known:
        raise mapping_lib.MappingError(
          f'{path.with_name("config.json")}: {entry} is {config[entry]!r}, but {name} computes '
          f'what {" or ".join(map(repr, known))} stands for'
        )
      fields |= known[config[entry]]
  return fields


def _other_images(config: Mapping[str, Any], folder: pathlib.Path) -> str:
  """What to know of the images, where they are not normalised as this library's configs do it."""
  path = folder / 'preprocessor_config.json'
  images = json.loads(path.read_text()) if path.exists() else config.get('pretrained_cfg', {})
  said = []
  for kind, usual in (('mean', _MEAN), ('std', _STD)):
    value = images.get(f'image_{kind}', images.get(kind))
    if value is not None and tuple(value) != usual:
      said.append(f'{kind} {tuple(value)}')
  return f', for images of {" and ".join(said)}' if said else ''


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
  """The names of the classes in Hugging Face's config.json, but for placeholders."""
  names = config.get('label_names') or []
  if 'id2label' in config:
    names = [name for _, name in sorted((int(i), name) for i, name in config['id2label'].items())]
  return () if all(name.startswith('LABEL_') for name in names) else tuple(names)
