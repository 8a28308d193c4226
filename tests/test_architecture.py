"""The arrows that docs/architecture.md draws are the ones between the package's rooms."""

import ast
from collections.abc import Iterator
import itertools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'crossattn_jax'
FILES = sorted(PACKAGE.rglob('*.py'))
PAGE = (ROOT / 'docs/architecture.md').read_text()

MOST_LINES = 600
PLATFORM_WORDS = {'custom_vjp', 'custom_jvp', 'platform_dependent', 'by_platform', 'pallas'}
PLATFORM_WORDS |= {'shard_map', 'map_shards'}
LONG = {'parity/systems/biformer/adapters.py'}  # Until it is split.
EQUATION_ROOMS = ('layers', 'attention', 'heads', 'models')


def below(page: str) -> dict[str, set[str]]:
  """For each room of the page's diagram, the rooms from which a way of arrows leads to it."""
  (diagram,) = re.findall(r'## Who may import whom\n+```text\n(.*?)```', page, re.DOTALL)
  chains = [
    [step.replace(',', ' ').split() for step in line.split('->')] for line in diagram.splitlines()
  ]
  rooms = {room: set() for chain in chains for step in chain for room in step}
  for _ in rooms:
    for chain in chains:
      for sources, targets in itertools.pairwise(chain):
        for source, target in itertools.product(sources, targets):
          rooms[target] |= {source} | rooms[source]
  return rooms


def room_of(parts: tuple[str, ...]) -> str:
  """The room of a file or module, whose path within the package has these parts."""
  name = parts[0].removesuffix('.py') if parts else '__init__'
  is_room = (PACKAGE / name).is_dir() or (PACKAGE / f'{name}.py').is_file()
  return name if is_room and name != '__init__' else '__init__.py'


def imports(tree: ast.AST) -> Iterator[str]:
  """The modules of the package that a file names: at its top, in functions, for types, lazily."""
  for node in ast.walk(tree):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, 'imports are absolute'
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith('import_module'):
      names = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
    yield from (name for name in names if name.split('.')[0] == PACKAGE.name)


def modules_imported(file: pathlib.Path) -> list[tuple[str, ...]]:
  return [tuple(name.split('.')[1:]) for name in imports(ast.parse(file.read_text()))]


def test_an_arrow_leads_to_every_import():
  rooms = below(PAGE)
  files = {file: room_of(file.relative_to(PACKAGE).parts) for file in FILES}
  files[ROOT / 'main.py'] = 'main.py'
  upward = [
    f'{file.relative_to(ROOT)} imports {".".join(module)}, and no arrow leads to {room} from there'
    for file, room in files.items()
    for module in modules_imported(file)
    if room_of(module) not in rooms[room] | {room}
  ]
  assert not upward, '\n'.join(upward)


def test_no_arrow_leads_back():
  assert not [room for room, sources in below(PAGE).items() if room in sources]


def test_the_loop_knows_no_single_model_and_no_single_task():
  tasks = {('tasks', path.name) for path in (PACKAGE / 'tasks').iterdir() if path.is_dir()}
  models = {
    file.relative_to(PACKAGE).with_suffix('').parts
    for file in (PACKAGE / 'models').rglob('*.py')
    if 'registry.register(' in file.read_text()
  }
  assert tasks
  assert models
  for file in (PACKAGE / 'training').rglob('*.py'):
    for module in modules_imported(file):
      starts = set(itertools.accumulate((part,) for part in module))
      assert not starts & (tasks | models), f'{file} imports {".".join(module)}'


@pytest.mark.parametrize('room', EQUATION_ROOMS)
def test_forms_for_platforms_are_kernels(room):
  found = [
    f'{file.relative_to(ROOT)}:{node.lineno} {word}'
    for file in (PACKAGE / room).rglob('*.py')
    for node in ast.walk(ast.parse(file.read_text()))
    for word in PLATFORM_WORDS & {getattr(node, 'attr', None), getattr(node, 'id', None)}
  ]
  assert not found, '\n'.join(found)


def test_files_are_short_and_use_what_jax_promises():
  for file in [ROOT / 'main.py', *FILES]:
    text = file.read_text()
    assert 'jax._src' not in text, file
    in_an_op = file.parents[1] == PACKAGE / 'kernels'
    lines = len(text.splitlines())
    awaited = str(file.relative_to(ROOT)).removeprefix('crossattn_jax/') in LONG
    assert in_an_op or awaited or lines <= MOST_LINES, f'{file} has {lines} lines'


def test_an_import_is_seen_wherever_it_stands():
  source = """
if TYPE_CHECKING:
  from crossattn_jax.tasks import base
def f():
  import crossattn_jax.data.sources
importlib.import_module(f'crossattn_jax.parity.{name}')
"""
  assert list(imports(ast.parse(source))) == [
    'crossattn_jax.tasks.base',
    'crossattn_jax.data.sources',
    'crossattn_jax.parity.',
  ]
