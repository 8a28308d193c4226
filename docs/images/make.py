r"""Makes pictures of these pages again: all of them, or those that are named.

  python docs/images/make.py --runs=/tmp/runs digits ccnet_shapes

What is drawn are runs of the experiments in configs/. Those that the folder has no finished run of
are trained first: all together they take two hours on two cores. `layer_errors` needs the extra
`torch`, `mit_page` and `demo` the extras `points` and `demo`, the package `playwright` and a
browser for it (`CHROMIUM=/usr/bin/chromium` names one).
"""

import argparse
from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from etils import epath
import jax
import numpy as np
from PIL import Image

from crossattn_jax.training import config as config_lib
from crossattn_jax.training import loop

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SAMPLES = 'crossattn_jax/samples'
# Pages show pictures at about 800 pixels; files have at most that many bytes.
WIDTH, MOST_BYTES = 1200, 250_000
PORT = 7861


def command(*arguments: str) -> None:
  """Runs Python from the root of the repository."""
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, check=True)


def finished(workdir: pathlib.Path, config: str, *options: str) -> pathlib.Path:
  """The workdir, where a run of an experiment is trained first if need be."""
  if not (workdir / 'predictions.png').exists():
    command('main.py', f'--config=configs/{config}', f'--workdir={workdir}', *options)
  return workdir


def trained(runs: pathlib.Path, config: str) -> pathlib.Path:
  """The workdir of a finished run of `configs/CONFIG.py`."""
  workdir = runs / config
  if config != 'minkunet_rooms':
    return finished(workdir, f'{config}.py')
  first = trained(runs, 'mit_rooms')
  if not workdir.exists():
    command('main.py', '--mode=label', f'--workdir={first}')
  return finished(
    workdir, 'minkunet_rooms.py:pseudo', f'--config.dataset.labels_dir={first / "labels"}'
  )


@dataclasses.dataclass(frozen=True)
class Samples:
  """Evaluation examples of a run, as `predictions.png` shows them."""

  config: str

  def __call__(self, runs: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Draws them again, since the run may be older than the code that draws."""
    workdir = epath.Path(trained(runs, self.config))
    experiment = loop.setup_prediction(config_lib.load(workdir / 'config.json'), workdir)
    path = folder / 'samples.png'
    with jax.set_mesh(experiment.mesh):
      variables = loop.load_variables(experiment, workdir)
      experiment.task.Predictor(experiment.task, variables).write_samples(epath.Path(path))
    return path


@dataclasses.dataclass(frozen=True)
class Left:
  """A picture that a run leaves."""

  config: str
  name: str

  def __call__(self, runs: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Trains, if need be."""
    return trained(runs, self.config) / self.name


@dataclasses.dataclass(frozen=True)
class Prediction:
  """A picture that `--mode=predict` writes for a file that ships with the library."""

  config: str
  given: str
  shown: str
  options: Sequence[str] = ()

  def __call__(self, runs: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Predicts."""
    workdir, given = trained(runs, self.config), f'{SAMPLES}/{self.given}'
    predict(workdir, given, folder, *self.options)
    return folder / self.shown


def predict(workdir: pathlib.Path, given: str, output: pathlib.Path, *options: str) -> None:
  """Runs `--mode=predict`."""
  files = (f'--input={given}', f'--output={output}')
  command('main.py', '--mode=predict', f'--workdir={workdir}', *files, *options)


def fine_tuning(runs: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """Runs the commands of docs/fine_tuning.md."""
  code = (ROOT / 'docs/fine_tuning.md').read_text().split('```python\n')[-1].split('```')[0]
  subprocess.run([sys.executable, '-c', code], cwd=folder, check=True)
  pngs = folder / 'pngs'
  low = finished(
    runs / 'fine_tuning_low',
    'crossvit_digits.py',
    '--config.num_epochs=40',
    '--config.dataset.name=image_folder',
    f'--config.dataset.data_dir={pngs}/low',
    '--config.model.num_classes=None',
    '--config.dataset.train_split=None',
    '--config.dataset.eval_split=None',
  )
  high = finished(
    runs / 'fine_tuning_high',
    'finetune.py:crossvit_tiny_240',
    f'--config.weights={low}',
    f'--config.dataset.data_dir={pngs}/high',
    '--config.schedule.learning_rate=1e-3',
    '--config.dataset.augmentation.flip=0',
    '--config.dataset.augmentation.padding=1',
  )
  few = folder / 'few'
  few.mkdir()
  for path in (pngs / 'high').iterdir():
    for number, file in enumerate(sorted(path.iterdir())[:2]):
      file.rename(few / f'{path.name}_{number}.png')
  predict(high, str(few), folder / 'out', '--pictures=sheet')
  return folder / 'out' / 'predictions.png'


def layer_errors(runs: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """Compares CrossViT with timm's, layer by layer."""
  path = folder / 'layer_errors.png'
  model = 'crossvit_tiny_240'
  compared = (model, '--against', f'timm:{model}', '--png', str(path))
  command('-m', 'crossattn_jax.parity', 'compare', *compared)
  return path


@contextlib.contextmanager
def browser_page(width: int, height: int):
  """A page of a browser without a display."""
  from playwright import sync_api

  with sync_api.sync_playwright() as player:
    browser = player.chromium.launch(
      executable_path=os.environ.get('CHROMIUM'),
      args=['--no-sandbox', '--enable-unsafe-swiftshader'],
    )
    yield browser.new_page(viewport={'width': width, 'height': height})
    browser.close()


def mit_page(runs: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """Opens the page of a room, as MinkUNet labels it, in a browser."""
  predict(trained(runs, 'minkunet_rooms'), f'{SAMPLES}/rooms', folder)
  path = folder / 'page.png'
  with browser_page(1000, 625) as page:
    page.goto((folder / 'pages/0.html').as_uri())
    page.wait_for_timeout(5000)
    page.screenshot(path=path)
  return path


def demo(runs: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """Draws a cup on the page of the sketch localizer."""
  workdir = trained(runs, 'sketch_localizer_shapes')
  path = folder / 'demo.png'
  serve = (sys.executable, 'main.py', '--mode=demo', f'--workdir={workdir}', f'--port={PORT}')
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  with (
    subprocess.Popen([*serve, f'--output={folder}/demo'], cwd=ROOT, env=environment) as server,
    contextlib.ExitStack() as stack,
  ):
    stack.callback(server.terminate)
    page = stack.enter_context(browser_page(1060, 900))
    for _ in range(300):
      with contextlib.suppress(Exception):
        page.goto(f'http://127.0.0.1:{PORT}/')
        break
      time.sleep(1)
    page.wait_for_selector('.gallery button, .gallery-item', timeout=60_000)
    page.locator('.gallery .gallery-item, .gallery button').first.click()
    page.wait_for_timeout(2000)
    box = page.locator('.canvas svg').bounding_box()
    for stroke in CUP:
      for number, (x, y) in enumerate(stroke):
        page.mouse.move(box['x'] + x * box['width'], box['y'] + y * box['height'], steps=5)
        if not number:
          page.mouse.down()
      page.mouse.up()
    page.get_by_role('button', name='Predict').click()
    page.wait_for_selector('.result table', timeout=120_000)
    page.wait_for_timeout(2000)
    page.screenshot(path=path, full_page=True)
  return path


# Strokes with the mouse, in shares of the square to draw in.
CUP = (
  np.array([[16, 20], [64, 19], [63, 50], [64, 81], [17, 82], [16, 20]]) / 100,
  np.array([[64, 25], [75, 25], [84, 33], [88, 45], [84, 57], [75, 64], [63, 65]]) / 100,
  np.array([[64, 35], [72, 36], [77, 45], [73, 53], [64, 54]]) / 100,
)

PICTURES: dict[str, Callable[[pathlib.Path, pathlib.Path], pathlib.Path]] = {
  'digits.jpg': Samples('crossvit_digits'),
  'curves_digits.png': Left('crossvit_digits', 'curves.png'),
  'confusion_digits.png': Left('crossvit_digits', 'confusion.png'),
  'swiftformer_digits.jpg': Samples('swiftformer_digits'),
  'crossformer_digits.jpg': Samples('crossformer_digits'),
  'biformer_digits.jpg': Samples('biformer_digits'),
  'mmvit_tones.jpg': Prediction('mmvit_tones', 'sounds', 'tremolo.png'),
  'ccnet_shapes.jpg': Samples('ccnet_shapes'),
  'semantic_fpn_shapes.jpg': Samples('semantic_fpn_shapes'),
  'retinanet_shapes.jpg': Samples('retinanet_shapes'),
  'mask_rcnn_shapes.jpg': Samples('mask_rcnn_shapes'),
  'atfuse_shapes.jpg': Samples('atfuse_shapes'),
  'icafusion_shapes.jpg': Samples('icafusion_shapes'),
  'icafusion_attention.jpg': Prediction('icafusion_shapes', 'night', '0.png'),
  'mmca_shapes.jpg': Samples('mmca_shapes'),
  'mmca_attention.jpg': Prediction('mmca_shapes', 'queries.txt', 'query_1_attention.png'),
  'sketch_localizer_shapes.jpg': Samples('sketch_localizer_shapes'),
  'sketch_localizer_attention.jpg': Prediction(
    'sketch_localizer_shapes',
    'shapes',
    '0.png',
    (f'--config.predict.sketch={SAMPLES}/sketches/cup.png',),
  ),
  'mit_rooms.jpg': Samples('mit_rooms'),
  'mit_attention.jpg': Prediction('mit_rooms', 'rooms', '0.png'),
  'minkunet_rooms.jpg': Samples('minkunet_rooms'),
  'fine_tuning.jpg': fine_tuning,
  'layer_errors.png': layer_errors,
  'mit_page.jpg': mit_page,
  'demo.jpg': demo,
}


def write(picture: Image.Image, path: pathlib.Path) -> None:
  """Writes a picture in full colour, as small as the pages need it.

  Raises:
    ValueError: the file is too large.
  """
  picture = picture.convert('RGB')
  picture.thumbnail((WIDTH, 1.2 * WIDTH))
  for quality in (88, 80, 70, 60):
    picture.save(path, optimize=True, quality=quality, subsampling=0)
    if path.stat().st_size <= MOST_BYTES:
      return
  raise ValueError(f'{path} has {path.stat().st_size:,} bytes; at most {MOST_BYTES:,} are wanted')


def main() -> None:
  """Makes the pictures that the command line names."""
  names = {pathlib.Path(file).stem: file for file in PICTURES}
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('names', nargs='*', metavar='NAME', help=', '.join(names))
  parser.add_argument('--runs', type=pathlib.Path, required=True, help='folder with a run of each')
  arguments = parser.parse_args()
  if unknown := set(arguments.names) - set(names):
    parser.error(f'no picture is called {", ".join(unknown)}; there are {", ".join(names)}')
  for name in arguments.names or names:
    with tempfile.TemporaryDirectory() as folder:
      made = PICTURES[names[name]](arguments.runs.resolve(), pathlib.Path(folder))
      write(Image.open(made), HERE / names[name])
    print(f'{names[name]}: {(HERE / names[name]).stat().st_size:,} bytes', flush=True)


if __name__ == '__main__':
  main()
