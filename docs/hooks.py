"""Builds the pages of the site that are no files in docs/: overview, notebooks, API reference."""

import base64
import json
import pathlib
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

# Its picture would come from elsewhere when a page is read.
_BADGE = re.compile(r'\[!\[Open in Colab\].*\n\n')


def public_modules() -> list[str]:
  """Returns the dotted names of all modules and packages whose names do not start with '_'."""
  names = []
  for path in sorted(PACKAGE.rglob('*.py')):
    parts = path.relative_to(ROOT).with_suffix('').parts
    if parts[-1] == '__init__':
      parts = parts[:-1]
    name = '.'.join(parts)
    if not any(part.startswith('_') or part == _HIDDEN for part in parts):
      names.append(name)
  return sorted(names)


def page_of(module: str) -> str:
  """Returns the page of a module, relative to the site."""
  return 'api/' + module.removeprefix('crossattn_jax').strip('.').replace('.', '/') + '.md'


def on_config(config: MkDocsConfig) -> MkDocsConfig:
  """Appends to the navigation what mkdocs.yml does not name: documents, and the API reference."""
  named = str(config.nav)
  documents = [path.name for path in sorted((ROOT / 'docs').glob('*.md'))]
  documents = [name for name in documents if repr(name) not in named]
  if documents:
    config.nav.append({'More': documents})
  modules = public_modules()
  sections = []
  for package in [name for name in modules if name.count('.') == 1]:
    inner = [name for name in modules if name.startswith(f'{package}.')]
    pages = [{name.removeprefix(f'{package}.'): page_of(name)} for name in inner]
    sections.append({package.split('.')[-1]: [page_of(package), *pages]})
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
  for module in public_modules():
    page = 'api/index.md' if module == 'crossattn_jax' else page_of(module)
    files.append(File.generated(config, page, content=f'# `{module}`\n\n::: {module}\n'))
  return files


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
