"""What a command line says of a config: FILE.py or FILE.py:ARGUMENT, and `--config.KEY=VALUE`."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
import contextlib
import difflib
import importlib.util
import inspect
import pathlib
import re
import runpy
import sys
import traceback
from typing import Any

from absl import flags
from etils import epath
import ml_collections
from ml_collections import config_flags

from crossattn_jax.training import config as config_lib
from crossattn_jax.training import suggestions

_PACKAGE = pathlib.Path(__file__).parents[1]
# Where `configs` is: beside the package in a clone, inside of it where it is installed.
ROOT = _PACKAGE.parent if (_PACKAGE.parent / 'configs/recipes.py').is_file() else _PACKAGE

_OVERRIDE = re.compile(r'--?(?:no)?config\.(?P<key>[\w.]+)')


def read_file(source: str) -> ml_collections.ConfigDict:
  """Makes the config of a file: calls its `get_config`, or reads the JSON that a run wrote.

  A file that is not in the current folder is looked for among those of the library, which are known
  by their names too: `crossvit_digits` is `configs/crossvit_digits.py`. It is printed then.

  Args:
    source: FILE.py, FILE.py:ARGUMENT, FILE.json, NAME or NAME:ARGUMENT.

  Raises:
    ConfigError: there is no such file, it takes no or another argument, or is wrong Python.
  """
  name, colon, argument = source.partition(':')
  path = _find(name, colon + argument)
  if path.suffix == '.json':
    return config_lib.load(epath.Path(path))
  _make_importable()
  with _in_one_line(path):
    get_config = runpy.run_path(str(path), run_name='config').get('get_config')
  if get_config is None:
    raise config_lib.ConfigError(f'{path} has no function get_config, which returns the config')
  parameters = inspect.signature(get_config).parameters
  if colon and not parameters:
    raise config_lib.ConfigError(f'{path} takes no argument: leave out {colon + argument!r}')
  taken = f'{argument!r} was given to get_config({", ".join(map(str, parameters.values()))})'
  with _in_one_line(path, taken if colon else None):
    config = get_config(*([argument] if colon else []))
  if not isinstance(config, ml_collections.ConfigDict):
    raise config_lib.ConfigError(f'{path}: get_config() must return a ConfigDict, not {config!r}')
  return config


def _find(name: str, argument: str) -> pathlib.Path:
  path = pathlib.Path(name).expanduser()
  if path.is_file():
    return path
  for own in (ROOT / path, ROOT / 'configs' / f'{name}.py'):
    if own.is_file():
      print(f'config: {own}', file=sys.stderr)
      return own
  raise config_lib.ConfigError(_missing_file_message(name, argument))


def _make_importable() -> None:
  """Lets files import `configs`, wherever that is, unless a package of this name is imported."""
  if 'configs' not in sys.modules:
    file = ROOT / 'configs' / '__init__.py'
    spec = importlib.util.spec_from_file_location('configs', file)
    sys.modules['configs'] = importlib.util.module_from_spec(spec)


def _missing_file_message(name: str, argument: str) -> str:
  path = pathlib.Path(name)
  files = {
    file.stem: file
    for folder in (ROOT / 'configs', ROOT / path.parent, path.expanduser().parent)
    for file in folder.glob('*.py')
  }
  near = difflib.get_close_matches(path.stem, files, n=1)
  if (ROOT / path.expanduser() / 'config.json').is_file():
    return f'--config={name} is the workdir of a run; did you mean --workdir={name}?'
  if not near:
    return f'--config={name}: no such file; {ROOT / "configs"} holds the experiments'
  file = files[near[0]]
  shown = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
  return f'--config={name}: no such file; did you mean --config={shown}{argument}?'


@contextlib.contextmanager
def _in_one_line(path: pathlib.Path, context: str | None = None) -> Iterator[None]:
  """Turns an error into the last line of its traceback and the file's own last line in it."""
  try:
    yield
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), 1)
    message = ' '.join(str(error).split())
    if isinstance(error, SyntaxError) and error.filename == str(path):
      line, message = error.lineno, error.msg
    elif unknown := re.search(r'Key "(\w+)" does not exist and cannot be added', message):
      # ml_collections goes on with the whole config, and at last with a near key of the section.
      near = re.search(r'Did you mean "(\w+)"', message)
      keys = config_lib.flat(config_lib.default_config())
      hint = f'did you mean {near[1]!r}?' if near else suggestions.suggestion(unknown[1], keys)
      message = '; '.join(filter(None, (f'unknown config key {unknown[1]!r}', hint)))
    if not isinstance(error, ValueError):  # Which says by itself what is wrong.
      message = '; '.join(filter(None, (f'{type(error).__name__}: {message}', context)))
    raise config_lib.ConfigError(f'{path}:{line}: {message}') from error


def override(config: ml_collections.ConfigDict, arguments: Sequence[str]) -> None:
  """Sets keys of a config, in place.

  Args:
    config: of an experiment.
    arguments: `--config.KEY=VALUE` in any form that `config_flags` takes. None is a value of each
      key whose default is a placeholder, or another reference.

  Raises:
    ConfigError: a key is unknown, a value is of another type, or an argument is no override.
  """
  before = config_lib.flat(config)
  arguments = _clear(config, arguments)
  values = flags.FlagValues()
  values.set_gnu_getopt()
  try:
    config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=arguments)
    words = values(['', *arguments])[1:]
  except (flags.Error, ValueError) as error:
    raise config_lib.ConfigError(_wrong_value_message(str(error), config)) from error
  if words:
    raise config_lib.ConfigError(f'unexpected argument {words[0]!r}; see --help')
  after = config_lib.flat(config)
  given = {match['key'] for match in map(_OVERRIDE.match, arguments) if match}
  _refuse_epochs_without_effect(after, given)
  for key, value in after.items():
    example = before.get(key)
    if isinstance(value, tuple) and example and _has_text(value) > _has_text(example):
      raise config_lib.ConfigError(f'config.{key} must be numbers, such as {example!r}')


def _clear(config: ml_collections.ConfigDict, arguments: Sequence[str]) -> list[str]:
  """Sets keys to None; returns the arguments that are then left, whose keys are all known."""
  known = config_lib.flat(config)
  optional = config_lib.optional_keys(config_lib.complete_default(config))
  left: list[str] = []
  problems = []
  for argument in arguments:
    match = _OVERRIDE.match(argument)
    key = match['key'] if match else None
    if key and key not in known:
      problems.append(suggestions.unknown_key_message(key, known))
    elif not key or not argument.endswith(f'{key}=None'):
      left.append(argument)
    elif key in optional:
      config.update_from_flattened_dict({key: None})
      left = [other for other in left if other.partition('=')[0] != argument.partition('=')[0]]
    else:
      problems.append(f'config.{key} cannot be None; it is {known[key]!r}')
  if problems:
    raise config_lib.ConfigError('\n'.join(problems))
  return left


def _refuse_epochs_without_effect(values: Mapping[str, Any], given: Collection[str]) -> None:
  """Steps win where both are set, which whoever sets epochs may not know of."""
  for key in given:
    steps = re.sub(r'\b(num|every)_epochs$', r'\1_steps', key)
    if steps not in given and values[key] and values.get(steps):
      raise config_lib.ConfigError(
        f'config.{key}={values[key]} has no effect beside config.{steps}={values[steps]}; add '
        f'--config.{steps}=None'
      )


def _has_text(values: Iterable[Any]) -> bool:
  return any(isinstance(x, str) or (isinstance(x, tuple) and _has_text(x)) for x in values)


def _wrong_value_message(error: str, config: ml_collections.ConfigDict) -> str:
  match = re.match(r'flag --config\.(?P<key>[\w.]+)=', error)
  if match is None:
    return error
  entries = {'': config, **config_lib.flat(config)}
  section, _, name = match['key'].rpartition('.')
  kind, value = entries[section].get_type(name), entries[match['key']]
  if issubclass(kind, ml_collections.ConfigDict):
    hint = f'did you mean config.{match["key"]}.name? ' if 'name' in value else ''
    return f'config.{match["key"]} is a section; {hint}it has {", ".join(value)}'
  example = '' if value in (None, ()) else f', such as {value!r}'
  return f'config.{match["key"]} must be of type {kind.__name__}{example}; {error}'


def unknown_flag_message(name: str, known: Sequence[str]) -> str:
  """Says that a flag is unknown, and which flag or key is meant.

  Args:
    name: without dashes.
    known: the flags that there are.
  """
  keys = config_lib.flat(config_lib.default_config())
  near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
  if f'{name}.name' in keys or name in keys:
    hint = f'did you mean --config.{name}{".name" if f"{name}.name" in keys else ""}?'
  elif near:
    hint = f'did you mean --{near[0]}?'
  elif key := suggestions.suggestion(name, keys):
    hint = key.replace('config.', '--config.')
  else:
    hint = 'keys of the experiment are set by --config.KEY=VALUE; --help shows all flags'
  return f'unknown flag --{name}; {hint}'
