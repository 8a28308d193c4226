"""The pages can be read as they are: no line is too long."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
MOST_COLUMNS = 120


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_are_short(page):
  long = [line for line in page.read_text().splitlines() if len(line) > MOST_COLUMNS]
  # A command that installs and runs is pasted as one line.
  assert not [line for line in long if not line.startswith('python3 -m venv')]
