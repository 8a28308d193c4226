r"""Sets where the notebooks come from: `python colabs/address.py https://github.com/ME/crossattn_jax`.

Their first cell installs the library from there, and their badge opens them on Colab. A fork runs
this once, and for each new notebook.
"""

import json
import pathlib
import re
import sys

FOLDER = pathlib.Path(__file__).parent
BADGE = (
  '[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]'
  '(https://colab.research.google.com/github/{}/blob/main/colabs/{})'
)


def set_address(path: pathlib.Path, address: str) -> None:
  """Writes the address into a notebook: the constant, and the badge below its title."""
  book = json.loads(path.read_text())
  title = ''.join(book['cells'][0]['source'])
  title = re.sub(r'\[!\[Open in Colab\].*\n\n', '', title)
  repository = address.removeprefix('https://github.com/').rstrip('/')
  head, _, rest = title.partition('\n\n')
  title = '\n\n'.join([head, BADGE.format(repository, path.name), rest])
  book['cells'][0]['source'] = title.splitlines(keepends=True)
  for cell in book['cells']:
    text = ''.join(cell['source'])
    text = re.sub(r"^REPOSITORY = '.*?'", f"REPOSITORY = '{address}'", text, flags=re.MULTILINE)
    cell['source'] = text.splitlines(keepends=True)
  path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + '\n')


if __name__ == '__main__':
  if len(sys.argv) != 2:
    sys.exit(__doc__)
  for notebook in sorted(FOLDER.glob('*.ipynb')):
    set_address(notebook, sys.argv[1])
