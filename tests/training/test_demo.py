"""The page of `--mode=demo`: what it stores, what it shows, and the page itself in a browser."""

import importlib.util
import json
import pathlib
import shutil

import jax
import pytest

from configs import crossvit_digits
from crossattn_jax import parallel, tasks
from crossattn_jax.data import samples
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import demo, demo_html

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
DIGITS = samples.FOLDER / 'digits'


@pytest.fixture(scope='module')
def predictor():
  """A classifier of digits that has learnt nothing."""
  config = crossvit_digits.get_config()
  config.model.widths, config.model.depths = (16, 32), ((1, 1, 0),)
  config.dataset.class_names = tuple('0123456789')
  task = tasks.create_task(config)
  return task.Predictor(task, jax.jit(task.init)(jax.random.key(0)))


@pytest.fixture
def page(predictor, tmp_path):
  return demo.Demo(predictor, parallel.create_mesh(devices=jax.devices()[:1]), tmp_path)


def uploaded(path, name=None):
  """What Gradio says of a file."""
  return {'path': str(path), 'orig_name': name or pathlib.Path(path).name}


def files_below(folder):
  return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def test_without_gradio_a_sentence_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(config_lib.ConfigError, match=r"pip install 'crossattn_jax\[demo\]'"):
    demo.check_installed()


def test_records_of_any_task_become_tables():
  shown = demo_html.record(
    {
      'input': 'a.png',
      'classes': [{'index': 3, 'name': '<three>', 'probability': 0.5}],
      'objects': [],
      'metrics': {'mutual_information': 1.23456},
      'sketches': {'/tmp/a_run/my_cup.png': 'lines thinned'},
    },
    '/tmp/run/1',
  )
  assert '&lt;three&gt;' in shown
  assert '50.0%' in shown
  assert 'index' not in shown
  assert '<h2>objects</h2><p>none</p>' in shown
  assert '<td>mutual information</td><td>1.235</td>' in shown
  assert '<td>/tmp/a_run/my_cup.png</td>' in shown
  assert shown.endswith('<p class="place">Written to /tmp/run/1</p>')


@pytest.mark.extended
def test_an_answer_is_what_predict_writes_and_lies_below_the_output(page, tmp_path):
  assert page.answer([None]) == demo.Answer(demo_html.hint(), [None])
  answer = page.answer([uploaded(DIGITS / '3.png', '../my three, drawn.png')])
  (folder,) = tmp_path.iterdir()
  name = '_my_three__drawn'
  assert files_below(folder) == [
    f'1/image/{name}.png',
    f'1/predictions/{name}.png',
    '1/predictions/predictions.json',
  ]
  (record,) = json.loads((folder / '1' / 'predictions' / 'predictions.json').read_text())
  assert answer.pictures == [record['picture']]
  assert f'{record["classes"][0]["probability"]:.1%}' in answer.html
  assert len(answer.files) == 2


@pytest.mark.extended
def test_another_place_that_looks_is_another_prediction(page, predictor, monkeypatch):
  monkeypatch.setattr(predictor, 'looking', 0)
  given = [uploaded(DIGITS / '3.png')]
  answers = [page.answer(given, looking) for looking in (0, 5, 5)]
  assert predictor.looking == 5
  assert answers[0].pictures != answers[1].pictures
  assert answers[1] is answers[2]


@pytest.mark.parametrize(
  ('given', 'stored'),
  [
    ('..', 'image'),
    ('../../a.png', '_.._a.png'),
    ('.a.png', 'a.png'),
    ('', 'image'),
    ('a' * 500 + '.png', 'a' * 56 + '.png'),
  ],
)
def test_files_lie_in_their_folder_whatever_they_are_called(page, tmp_path, given, stored):
  place = tmp_path / '1'
  path = page._store([{'path': str(DIGITS / '3.png'), 'orig_name': given}], place)['image']
  assert files_below(tmp_path) == [f'1/image/{stored}']
  assert pathlib.Path(path).read_bytes() == (DIGITS / '3.png').read_bytes()


@pytest.mark.extended
def test_what_is_no_image_is_said(page, tmp_path):
  (tmp_path / 'notes.png').write_text('no image')
  answer = page.answer([uploaded(tmp_path / 'notes.png')])
  assert (
    'cannot read image &#x27;image/notes.png&#x27;: the file is in no image format' in answer.html
  )
  assert answer.pictures == [None]


@pytest.fixture
def address(page):
  """A page that is served, until the test ends."""
  pytest.importorskip('gradio')
  import gradio

  yield page.launch(wait=False)
  gradio.close_all()


@pytest.mark.extended
def test_the_page_answers_for_uploaded_files_alone(address):
  import gradio_client
  import httpx

  assert address.startswith('http://127.0.0.1:')
  client = gradio_client.Client(address, verbose=False, download_files=False)
  html, picture, files = client.predict(
    gradio_client.handle_file(DIGITS / '3.png'), api_name='/predict'
  )
  assert '<h2>classes</h2>' in html
  assert picture['value']['orig_name'] == '3.png'
  assert [file['orig_name'] for file in files['value']] == ['3.png', 'predictions.json']
  stolen = {'path': str(DIGITS / '3.png'), 'meta': {'_type': 'gradio.FileData'}}
  call = f'{address}gradio_api/call/predict'
  event = httpx.post(call, json={'data': [stolen]}).json()['event_id']
  assert httpx.get(f'{call}/{event}').text.startswith('event: error')
  large = httpx.post(
    f'{address}gradio_api/upload', files={'files': bytes(demo.MAX_FILE_SIZE + 1)}, timeout=60
  )
  assert large.status_code == 413


@pytest.fixture
def browser():
  """A Chromium without a window."""
  sync_api = pytest.importorskip('playwright.sync_api')
  found = next(filter(None, map(shutil.which, BROWSERS)), None)
  if found is None:
    pytest.skip(f'none of {", ".join(BROWSERS)} is installed')
  with sync_api.sync_playwright() as driver:
    yield driver.chromium.launch(executable_path=found, args=['--no-sandbox'])


@pytest.mark.slow
def test_an_image_that_is_dropped_is_classified_in_the_browser(address, browser, tmp_path):
  (tmp_path / 'notes.png').write_text('no image')
  for width in (1280, 400):
    page, foreign = browser.new_page(viewport={'width': width, 'height': 900}), []
    page.on('request', lambda request, urls=foreign: urls.append(request.url))
    page.goto(address)
    page.set_input_files('input[type=file]', DIGITS / '3.png')
    page.wait_for_selector('.result table')
    assert page.locator('.result .share').count() == 5
    picture = page.locator('img[src*="/3.png"]').last
    picture.wait_for()
    assert picture.evaluate('image => image.naturalWidth') > 500
    # Nothing stands out on a narrow screen.
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    page.get_by_label('Remove Image').click()
    page.wait_for_selector('.result .hint')
    page.set_input_files('input[type=file]', tmp_path / 'notes.png')
    problem = page.wait_for_selector('.result .problem').inner_text()
    assert problem.startswith("cannot read image 'image/notes.png'")
    assert not [url for url in foreign if not url.startswith((address, 'data:', 'blob:'))]


class Drawn(tasks.Predictor):
  """Says where the line of a sketch is, which is given beside a photo."""

  fields = (
    tasks.Field('photo', 'image', 'Photo'),
    tasks.Field('sketch', 'drawing', 'Sketch of what to find'),
  )
  predict = predictions = write_samples = write_worst = None

  def input_of(self, files):
    return files['sketch']

  def write_predictions(self, given, output, pictures):
    (line,) = json.loads(given.read_text())
    return [{'points': [{'x': x, 'y': y} for x, y in zip(*line, strict=True)]}]


Drawn.__abstractmethods__ = frozenset()


@pytest.mark.slow
def test_strokes_of_the_mouse_are_the_sketch(predictor, browser, tmp_path):
  gradio = pytest.importorskip('gradio')
  mesh = parallel.create_mesh(devices=jax.devices()[:1])
  address = demo.Demo(Drawn(predictor.task, {}), mesh, tmp_path).launch(wait=False)
  page = browser.new_page(viewport={'width': 1280, 'height': 1200})
  page.goto(address)
  page.set_input_files('input[type=file]', DIGITS / '3.png')
  canvas = page.locator('.canvas svg').bounding_box()
  left, top = canvas['x'] + canvas['width'] / 4, canvas['y'] + canvas['height'] / 4
  page.mouse.move(left, top)
  page.mouse.down()
  page.mouse.move(left + canvas['width'] / 2, top + canvas['height'] / 2, steps=10)
  page.mouse.up()
  page.get_by_role('button', name='Predict').click()
  page.wait_for_selector('.result table')
  rows = page.locator('.result tr').all_inner_texts()[1:]
  gradio.close_all()
  assert len(rows) == 11
  for row, expected in ((rows[0], 64), (rows[-1], 191)):
    assert [float(x) for x in row.split()] == pytest.approx([expected] * 2, abs=2)
