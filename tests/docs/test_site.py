"""The documentation as a site: complete, without warnings, without the network."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

# The build takes half a minute.
pytestmark = pytest.mark.extended

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """The folder of a strict build that could not reach the network."""
  folder = tmp_path_factory.mktemp('site')
  nowhere = 'http://127.0.0.1:9'
  result = subprocess.run(
    [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(folder)],
    cwd=ROOT,
    env=os.environ | {'http_proxy': nowhere, 'https_proxy': nowhere, 'NO_MKDOCS_2_WARNING': '1'},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 0, result.stdout + result.stderr
  return folder


def test_builds_without_warnings_and_shows_the_readme_first(site):
  page = (site / 'index.html').read_text()
  assert 'Published cross-attention vision systems' in page
  assert 'src="images/digits.jpg"' in page
  assert (site / 'images' / 'digits.jpg').exists()


def test_every_public_module_has_a_page_of_its_docstrings(site):
  for path in (ROOT / 'crossattn_jax').rglob('*.py'):
    parts = path.relative_to(ROOT / 'crossattn_jax').with_suffix('').parts
    if parts[-1].startswith('_') or parts[-1] == 'serving_script':
      continue
    assert (site / 'api' / pathlib.Path(*parts).with_suffix('.html')).exists(), path
  page = (site / 'api' / 'models' / 'crossvit' / 'classifier.html').read_text()
  assert 'crossattn_jax.models.crossvit.classifier.CrossViT.__call__' in page
  assert 'stochastic depth, growing linearly' in page


def test_every_document_is_in_the_navigation(site):
  documents = [path.relative_to(ROOT / 'docs') for path in (ROOT / 'docs').rglob('*.md')]
  notebooks = [path.relative_to(ROOT) for path in (ROOT / 'colabs').glob('*.ipynb')]
  for path in (*documents, *notebooks):
    # Pages show the part of the navigation that they are in.
    assert 'md-nav__item--active' in (site / path.with_suffix('.html')).read_text(), path


def test_the_index_of_the_api_begins_with_what_is_called_first(site):
  page = (site / 'api' / 'index.html').read_text()
  names = ['registry.create_model', 'list_models', 'load_pretrained', 'loop.train']
  names += ['cross_attention.ClassTokenAttention', 'criss_cross.api.criss_cross_attention']
  places = [page.index(f'.{name}') for name in names]
  assert places == sorted(places)


def test_pages_of_modules_begin_with_their_contents_and_show_examples(site):
  page = (site / 'api' / 'geometry' / 'boxes.html').read_text()
  assert page.index('Functions:') < page.index('id="crossattn_jax.geometry.boxes.to_center_size"')
  assert page.count('<code>[..., 4]</code>') > 5
  assert '&gt;&gt;&gt; ' in page


def test_pages_load_nothing_from_elsewhere(site):
  for path in site.rglob('*.html'):
    for tag in re.findall(r'<(?:script|link|img|iframe)\b[^>]*>', path.read_text()):
      assert not re.search(r'(src|href)="?(https?:)?//', tag), (path, tag)
