"""Builds the pages of the site that are no files in docs/: overview, notebooks, API reference."""

import ast
import base64
import json
import pathlib
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'crossattn_jax'

# Not for readers: they are copied into exported models.
_HIDDEN = 'serving_script'

# Escape sequences of terminals in the text of notebooks.
_COLORS = re.compile(r'\x1b\[[\d;]*m')

# What cells show, and how its files end.
_PICTURES = {'image/png': '.png', 'image/jpeg': '.jpg'}

# How a block of commands begins.
_COMMAND = re.compile(
  r'( *#.*\n)*( *\w+=\S+)* *(python3?|pip|crossattn|tfds|git|gcloud|\S*/bin/\S+) '
)

# Its picture would come from elsewhere when a page is read.
_BADGE = re.compile(r'\[!\[Open in Colab\].*\n\n')


# The index of the API begins with what is called first, by what it is for, ...
_FIRST = {
  'Models and weights': (
    'models.registry.create_model',
    'list_models',
    'conversion.pretrained.load_pretrained',
    'models.registry.model_config',
    'models.registry.register',
    'models.registry.register_head',
    'models.variables_io.save_variables',
    'models.variables_io.load_variables',
  ),
  'Runs': (
    'training.config.default_config',
    'training.loop.train',
    'training.loop.evaluate',
    'training.loop.predict',
    'training.export.export_model',
    'training.compile.aot.compile_report',
    'training.demo.serve',
  ),
  'Beside PyTorch': (
    'parity.record.record',
    'parity.replay.replay',
    'parity.compare.compare',
    'conversion.reading.read_checkpoint',
    'conversion.convert.to_flax',
    'conversion.convert.to_torch',
  ),
}
# ... then come packages, most used first, the first of them with all that their modules hold.
_IN_FULL = ('attention', 'kernels', 'layers', 'heads', 'geometry', 'metrics')
_PACKAGES = (*_IN_FULL, 'models', 'data', 'tasks', 'training', 'parallel', 'conversion', 'parity')


def public_modules() -> list[str]:
  """Returns the dotted names of public modules, and of packages that say something themselves."""
  names = []
  for path in sorted(PACKAGE.rglob('*.py')):
    parts = path.relative_to(ROOT).with_suffix('').parts
    if parts[-1] == '__init__':
      parts = parts[:-1]
    name = '.'.join(parts)
    is_bare = path.stem == '__init__' and len(parts) > 2 and len(path.read_text().splitlines()) < 2
    if not is_bare and not any(part.startswith('_') or part == _HIDDEN for part in parts):
      names.append(name)
  return sorted(names)


def page_of(module: str) -> str:
  """Returns the page of a module, relative to the site."""
  page = 'api/' + module.removeprefix('crossattn_jax.').replace('.', '/')
  return page + ('/index.md' if '.' in module and _file(module).stem == '__init__' else '.md')


def _file(module: str) -> pathlib.Path:
  path = ROOT / module.replace('.', '/')
  return path / '__init__.py' if path.is_dir() else path.with_suffix('.py')


def contents(module: str) -> dict[str, str]:
  """Returns the first sentence on a module, as '', and on its public classes and functions."""
  tree = ast.parse(_file(module).read_text())
  nodes = {'': tree} | {node.name: node for node in tree.body if hasattr(node, 'decorator_list')}
  docstrings = {name: ast.get_docstring(node) or '' for name, node in nodes.items()}
  return {
    name: re.split(r'(?<!\bal\.)(?<=[.?!])\s|\n\n', text, maxsplit=1)[0].replace('\n', ' ')
    for name, text in docstrings.items()
    if text and not name.startswith('_')
  }


def exports(package: str) -> list[str]:
  """Returns the lines of what a package takes from its modules by `import NAME as NAME`."""
  tree = ast.parse(_file(package).read_text())
  imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
  return [
    line_of(node.module, alias.name)
    for node in imports
    for alias in node.names
    if alias.asname == alias.name
  ]


def line_of(module: str, name: str) -> str:
  """Returns a line of the index: a linked name and what it is."""
  return f'- [`{name}`][{module}.{name}]: {contents(module)[name]}'


def list_of(package: str, page: str, in_full: bool = False) -> list[str]:
  """Returns the lines of a package's modules for a page, in full with those of what they hold."""
  lines = []
  for module in public_modules():
    if not module.startswith(f'{package}.') or _file(module).stem == '__init__':
      continue
    texts = contents(module)
    link = posixpath.relpath(page_of(module), posixpath.dirname(page))
    lines.append(f'- [`{module.removeprefix(package)[1:]}`]({link}): {texts.pop("")}')
    if in_full:
      lines += [f'    {line_of(module, name)}' for name in texts]
  return lines


def api_index() -> str:
  """Returns the index of the API."""
  parts = [
    '# API',
    'What the library has, most used first. Its pages show arguments, shapes and errors.',
  ]
  for title, names in _FIRST.items():
    lines = [line_of(*f'crossattn_jax.{name}'.rsplit('.', 1)) for name in names]
    parts += [f'## {title}', '\n'.join(lines)]
  for package in (f'crossattn_jax.{name}' for name in _PACKAGES):
    name = package.removeprefix('crossattn_jax.')
    lines = exports(package) or list_of(package, 'api/index.md', name in _IN_FULL)
    lines = [line for line in lines if not line.startswith('- [`systems.')]
    parts += [f'## [{name}]({name}/index.md)', contents(package)[''], '\n'.join(lines)]
  return '\n\n'.join(parts)


def api_page(module: str) -> str:
  """Returns the page of a module or package."""
  parts = [f'# `{module}`', f'::: {module}']
  if _file(module).stem == '__init__':
    parts += ['\n'.join(exports(module)), '\n'.join(list_of(module, page_of(module)))]
  return '\n\n'.join(parts)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
  """Appends to the navigation what mkdocs.yml does not name: documents, and the API reference."""
  named = str(config.nav)
  documents = [path.name for path in sorted((ROOT / 'docs').glob('*.md'))]
  documents = [name for name in documents if repr(name) not in named]
  if documents:
    config.nav.append({'More': documents})
  modules = public_modules()
  packages = [f'crossattn_jax.{name}' for name in _PACKAGES]
  sections = []
  for package in packages:
    inner = [name for name in modules if name.startswith(f'{package}.')]
    pages = [{name.removeprefix(f'{package}.'): page_of(name)} for name in inner]
    sections.append({package.split('.')[-1]: [page_of(package), *pages]})
  rest = [name for name in modules if not name.startswith(tuple(packages))]
  sections.append({'more': [{name: page_of(name)} for name in rest]})
  config.nav.append({'API': ['api/index.md', *sections]})
  return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
  """Adds the overview, the notebooks and a page per module."""
  files.append(File.generated(config, 'index.md', content=overview()))
  for path in sorted((ROOT / 'colabs').glob('*.ipynb')):
    text, images = notebook(path)
    files.append(File.generated(config, f'colabs/{path.stem}.md', content=text))
    for name, image in images.items():
      files.append(File.generated(config, f'colabs/{name}', content=image))
  files.append(File.generated(config, 'api/index.md', content=api_index()))
  for module in public_modules():
    files.append(File.generated(config, page_of(module), content=api_page(module)))
  return files


def on_page_markdown(markdown: str, **_) -> str:
  """Names documents by their titles, and marks commands, which may be wrapped, as such."""

  def title(match: re.Match) -> str:
    path = ROOT / 'docs' / f'{match[1]}.md'
    return f'[{path.read_text().splitlines()[0].lstrip("# ")}](' if path.exists() else match[0]

  def block(match: re.Match) -> str:
    is_command = not match[2] and _COMMAND.match(match[3])
    return f'{match[1]}```sh\n{match[3]}' if is_command else match[0]

  markdown = re.sub(r'\[(?:docs/)?([\w/]+)\.md\]\(', title, markdown)
  return re.sub(r'^( *)```([^\n]*)\n(.*?\n *```)$', block, markdown, flags=re.MULTILINE | re.DOTALL)


def on_page_content(html: str, **_) -> str:
  """Keeps flags whole: browsers would begin a line between '--' and a name."""

  def whole(match: re.Match) -> str:
    return match[0] if match[0].startswith('<') else f'<span class="flag">{match[0]}</span>'

  return re.sub(r'<[^>]*>|(?<![^\s>])--\w+', whole, html)


def overview() -> str:
  """Returns the README with links as the site has them."""
  text = (ROOT / 'README.md').read_text()
  text = text.replace('](docs/', '](')
  text = re.sub(r'\]\(colabs/(\w+)\.ipynb\)', r'](colabs/\1.md)', text)
  modules = {name.replace('.', '/') + '.py': name for name in public_modules()}

  def link(match: re.Match) -> str:
    return f']({page_of(modules[match.group(1)])})'

  return re.sub(r'\]\((crossattn_jax/[\w/]+\.py)\)', link, text)


def notebook(path: pathlib.Path) -> tuple[str, dict[str, bytes]]:
  """Returns a notebook as Markdown, and its pictures by file name."""
  parts, images = [], {}
  for cell in json.loads(path.read_text())['cells']:
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'markdown':
      parts.append(_BADGE.sub('', source))
      continue
    parts.append(f'```python\n{source}\n```')
    text, shown = '', []
    for output in cell['outputs']:
      data = output.get('data', {})
      kind = next((kind for kind in _PICTURES if kind in data), None)
      if kind is None:
        text += ''.join(output.get('text', data.get('text/plain', ''))).rstrip() + '\n'
        continue
      name = f'{path.stem}_{len(images)}{_PICTURES[kind]}'
      images[name] = base64.b64decode(data[kind])
      shown.append(f'![Result of the cell above]({name})')
    if text:
      parts.append(f'```text\n{_COLORS.sub("", text)}```')
    parts.extend(shown)
  return '\n\n'.join(parts), images
