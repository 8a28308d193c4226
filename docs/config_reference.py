"""Writes docs/config.md, every key of an experiment: `python docs/config_reference.py`.

What a key means is said once, in the source that gives it its default: in the comment before it,
or under `Keys:` (`Attributes:` of a model) in the docstring.
"""

import ast
from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
import importlib
import inspect
import itertools
import pathlib
import re
import textwrap
import typing
from typing import Any

import ml_collections

from crossattn_jax import models, tasks
from crossattn_jax.training import config as config_lib

PAGE = pathlib.Path(__file__).with_name('config.md')
TASKS = tasks.list_tasks()

_ABOUT = """# Config

<!-- Written by `python docs/config_reference.py` from comments in the source; change those. -->

Every key of an experiment. `--config.KEY=VALUE` changes one, such as
`--config.dataset.augmentation.flip=0`. A key that is not here is refused, with what was probably
meant. The `config.json` of a run has all of its keys with their values;
[Training](training.md#the-command-line) says how values are written.

Beside a key stand its type and its default. Keys of type `... | None` may be unset. Sizes of images
are (height, width) in pixels. A *pattern* is a regular expression that matches the whole path of a
parameter, such as `head/kernel`.
"""

_SECTIONS = (
  'dataset',
  'optimizer',
  'schedule',
  'ema',
  'evaluation',
  'checkpoint',
  'mesh',
  'sharding',
)

_OF_TASKS = """`task.name` is one of these. Each adds keys of its own, those of its data among
them; [Data](data.md) says more."""

_OF_MODELS = """The fields of the model that `model.name` names, as
`--config.model.FIELD=VALUE`. They are `None` unless they are set, which stands for the value of the
variant: `crossattn_jax.create_model(NAME)` prints all. A backbone with a head, `BACKBONE+HEAD`, has
the fields of both; those that both have are the head's. Every model has:"""

# Every model has them.
OF_EVERY_MODEL = {
  'dtype': "Of the computation: 'float32', 'bfloat16' or 'float64'.",
  'param_dtype': 'Of the parameters.',
}
_VALUE = re.compile(r"(?<!\w)'[\w./+@\[\]{}>%:*-]+'(?!\w)|\b(None|True|False)\b")
_BACKBONE, _HEADS = 'resnet50', ('semantic_fpn', 'upernet', 'retinanet', 'mask_rcnn')


def listed(docstring: str, title: str) -> Iterable[tuple[str, str]]:
  """Names and meanings of the entries 'name, name: meaning' below a title such as 'Keys:'."""
  _, _, section = docstring.partition(f'\n{title}\n')
  section = textwrap.dedent(re.split(r'\n(?=\S)', section)[0]).strip()
  for entry in filter(None, re.split(r'\n(?=\S)', section)):
    names, _, meaning = entry.partition(':')
    for name in names.split(','):
      yield name.strip(), _sentence(meaning)


def documented(function: Callable[..., Any], task: str) -> Iterable[tuple[str, str]]:
  """Keys and sections that a function sets in a config, with what they mean, '' where unsaid."""
  source = textwrap.dedent(inspect.getsource(function))
  lines = [line.strip() for line in source.splitlines()]

  def comment(node: ast.AST) -> str:
    start = node.lineno - 1
    while lines[start - 1].startswith('# '):
      start -= 1
    return _sentence(' '.join(line[2:] for line in lines[start : node.lineno - 1]))

  def entry(name: str, node: ast.AST, value: ast.AST, above: str = '') -> Iterable[tuple[str, str]]:
    meaning = comment(node) or above
    yield name, meaning
    yield from below(f'{name}.', value, meaning)

  def below(prefix: str, node: ast.AST, meaning: str = '') -> Iterable[tuple[str, str]]:
    """What a value holds. The keys of a section in one line share its comment."""
    match node:
      case ast.Dict():
        for key, value in zip(node.keys, node.values, strict=True):
          shared = meaning if key.lineno == node.end_lineno else ''
          yield from entry(prefix + key.value, key, value, shared)
      case ast.Call(func=ast.Attribute(attr='ConfigDict'), args=[inner]):
        yield from below(prefix, inner, meaning)
      case ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr='default_config')):
        for name, meaning in called(module, 'default_config'):
          yield prefix + name, meaning

  def called(module: str, name: str) -> Iterable[tuple[str, str]]:
    owner = function.__globals__[module]
    if owner is tasks:
      owner = importlib.import_module(f'crossattn_jax.tasks.{task}.task')
    return documented(getattr(owner, name), task)

  for node in ast.parse(source).body[0].body:
    match node:
      case ast.Assign(targets=[ast.Attribute() as target], value=value):
        yield from entry(ast.unparse(target).removeprefix('config.'), node, value)
      case ast.Assign(targets=[ast.Name(id='config')], value=value):
        yield from below('', value)
      case ast.Expr(value=ast.Call(func=ast.Attribute(attr='update'), args=[value])):
        yield from below('', value)
      case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr=name))):
        if name == 'add_options':
          yield from called(module, name)
  yield from listed(inspect.getdoc(function), 'Keys:')


Entry = tuple[str, str]  # A name with type and default, and what it means.


@functools.cache
def keys_of(task: str) -> dict[str, Entry]:
  """The keys of an experiment of a task, in the order of the source."""
  config, meaning = config_lib.default_config(task), {}
  for key, text in documented(config_lib.default_config, task):
    meaning[key] = text or meaning.get(key, '')
  optional, values = config_lib.optional_keys(config), config_lib.flat(config)
  entries = {}
  for key, text in meaning.items():
    if isinstance(values.get(key, values), Mapping | ml_collections.ConfigDict):
      continue  # A section, or a key that the task takes away again.
    *sections, name = key.split('.')
    owner = functools.reduce(getattr, sections, config)
    kind = owner.get_ref(name).get_type().__name__ + ' | None' * (key in optional)
    entries[key] = f'{key}: {kind} = {_shown(values[key])}', text
  return entries


def fields_of(name: str) -> dict[str, Entry]:
  """The fields of a model that its config has."""
  kind = type(models.create_model(name))
  owner = typing.get_type_hints(kind).get('options', kind)
  meaning = {}
  for base in owner.__mro__[::-1]:
    meaning |= listed(inspect.getdoc(base) or '', 'Attributes:')
  config = models.model_config(name)
  entries = {}
  for field in (field.name for field in dataclasses.fields(owner)):
    if field not in config or field in ('name', *OF_EVERY_MODEL):
      continue
    plain = config.get_ref(field).get_type().__name__
    entries[field] = f'{field}: {plain}', meaning.get(field, '')
  return entries


def page() -> str:
  """The whole page."""
  by_task = {task: keys_of(task) for task in TASKS}
  common = set.intersection(*(set(entries.items()) for entries in by_task.values()))
  every = {key: entry for key, entry in by_task[TASKS[0]].items() if (key, entry) in common}

  def of(*sections: str) -> str:
    return _list(entry for key, entry in every.items() if key.partition('.')[0] in sections)

  rest = {key.partition('.')[0] for key in every} - {*_SECTIONS}
  named = [name for name in models.list_models() if not name.startswith('test_')]
  parts = [_ABOUT.rstrip(), '## Every experiment', of(*rest)]
  parts += [f'### `{section}`\n\n{of(section)}' for section in _SECTIONS]
  parts += ['## Tasks', _OF_TASKS]
  for task, entries in by_task.items():
    own = [entry for key, entry in entries.items() if key not in every and key != 'task.name']
    parts += [f'### `{task}`', _list(own)]
  parts += ['## Models', _OF_MODELS, _list(OF_EVERY_MODEL.items())]
  of_class = {}
  for name in (*named, *(f'{_BACKBONE}+{head}' for head in _HEADS)):
    of_class.setdefault(type(models.create_model(name)), []).append(name)
  for kind, names in of_class.items():
    entries = fields_of(names[0])
    names = [name.replace(f'{_BACKBONE}+', 'BACKBONE+') for name in names]
    shown = ', '.join(f'`{name}`' for name in names[:3]) + ', ...' * (len(names) > 3)
    parts += [f'### {kind.__name__}', f'`model.name`: {shown}', _list(entries.values())]
  return '\n\n'.join(parts) + '\n'


def _list(entries: Iterable[Entry]) -> str:
  """Markdown, a line of those that mean the same."""
  lines = []
  for meaning, group in itertools.groupby(entries, lambda entry: entry[1]):
    names = ', '.join(f'`{name}`' for name, _ in group)
    lines.append(f'- {names}: {_marked(meaning)}')
  return '\n'.join(
    textwrap.fill(line, 120, subsequent_indent='  ', break_long_words=False, break_on_hyphens=False)
    for line in lines
  )


def _marked(text: str) -> str:
  """Markdown of a comment: values as code, documents as links, nothing on who computes it."""
  text = re.sub(r' \(see `[^`]+`\)|; see `[^`]+`', '', text)
  text = re.sub(r'docs/(\w+)\.md', r'[\1.md](\1.md)', text)
  parts = text.split('`')
  for i in range(0, len(parts), 2):
    parts[i] = _VALUE.sub(r'`\g<0>`', parts[i])
  return '`'.join(parts)


def _shown(value: Any) -> str:
  """A value as a person writes it."""
  if isinstance(value, tuple):
    items = [_shown(item) for item in value]
    items[3:-1] = ['...'] if len(items) > 6 else items[3:-1]
    return f'({", ".join(items)}{"," * (len(items) == 1)})'
  return repr(float(f'{value:.4g}')) if isinstance(value, float) else repr(value)


def _sentence(text: str) -> str:
  text = ' '.join(text.split())
  return text[:1].upper() + text[1:]


if __name__ == '__main__':
  PAGE.write_text(page())
