"""The names of the classes belong to the run, whatever becomes of its training data."""

import json
import shutil

from etils import epath
import numpy as np
from PIL import Image
import pytest

from configs import crossvit_digits
from crossattn_jax.models import variables_io
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import export, loop

pytestmark = pytest.mark.extended

COLORS = {'blue': (0, 0, 255), 'green': (0, 255, 0), 'red': (255, 0, 0)}


def write_folder(folder, colors, count=4):
  """Writes folder/COLOR/N.png, images of one colour each, and a little noise."""
  rng = np.random.default_rng(0)
  for name in colors:
    (folder / name).mkdir(parents=True)
    for number in range(count):
      noise = rng.integers(0, 30, (8, 8, 3))
      pixels = np.abs(np.array(COLORS.get(name, (99, 99, 99))) - noise).astype(np.uint8)
      Image.fromarray(pixels).save(folder / name / f'{number}.png')


def open_config(data_dir):
  """An experiment that leaves the classes to its folder."""
  config = crossvit_digits.get_config()
  config.model.update(widths=(16, 32), depths=((1, 1, 0),), num_classes=None, num_channels=3)
  config.dataset.update(name='image_folder', data_dir=str(data_dir))
  config.dataset.mean = config.dataset.std = (0.5, 0.5, 0.5)
  config.batch_size = config.evaluation.batch_size = 8
  config.num_steps = 16
  config.schedule.warmup_epochs = 0.0
  config.evaluation.every_epochs = None
  return config


@pytest.fixture(scope='module')
def trained(tmp_path_factory, one_device):
  """The folder of a run that tells red from blue, and of its data."""
  folder = tmp_path_factory.mktemp('class_names')
  write_folder(folder / 'data' / 'train', ('blue', 'red'), 8)
  write_folder(folder / 'data' / 'test', ('blue', 'red'))
  metrics = loop.train(open_config(folder / 'data'), epath.Path(folder / 'run'))
  assert metrics['accuracy'] == 1
  return folder


@pytest.fixture
def run(trained, tmp_path):
  """A copy of it: workdir, data, and the config of the workdir."""
  shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
  workdir = epath.Path(tmp_path / 'run')
  saved = config_lib.load(workdir / 'config.json')
  saved.dataset.data_dir = str(tmp_path / 'data')
  return workdir, tmp_path / 'data', saved


def test_a_run_keeps_its_names_and_needs_no_training_data(run, tmp_path):
  workdir, data, saved = run
  assert (saved.dataset.class_names, saved.model.num_classes) == (('blue', 'red'), 2)
  shutil.copytree(data / 'test' / 'red', tmp_path / 'photos')
  # A folder more shifts the numbers of the folders, which are no longer what names are made of.
  write_folder(data / 'train', ('green',))
  records = loop.predict(
    saved, workdir, epath.Path(tmp_path / 'photos'), epath.Path(tmp_path / 'p')
  )
  assert [record['classes'][0]['name'] for record in records] == ['red'] * 4
  shutil.rmtree(data / 'train')
  # Also where the experiment's own config, which leaves the classes open, is given.
  records = loop.predict(
    open_config(data), workdir, epath.Path(tmp_path / 'photos'), epath.Path(tmp_path / 'p')
  )
  assert [record['classes'][0]['name'] for record in records] == ['red'] * 4
  files = export.export_model(saved, workdir, epath.Path(tmp_path / 'e'), platforms=['cpu'])
  (description,) = (file for file in files if file.suffix == '.json')
  assert json.loads(description.read_text())['classes'] == ['blue', 'red']
  weights = variables_io.load_variables(tmp_path / 'e' / 'weights.safetensors')
  assert weights.class_names == ('blue', 'red')
  # The evaluation split alone, with a class less: labels are those of the run.
  shutil.rmtree(data / 'test' / 'blue')
  assert loop.evaluate(saved, workdir)['accuracy'] == 1


def test_classes_that_a_run_does_not_know_are_refused_by_name(run):
  workdir, data, saved = run
  write_folder(data / 'test', ('green',))
  with pytest.raises(ValueError, match=r"a class 'green' that is not among .*\('blue', 'red'\)"):
    loop.evaluate(saved, workdir)
  (data / 'test' / 'green').rename(data / 'train' / 'green')
  with pytest.raises(
    ValueError, match=r"the classes 'blue', 'red'; .* added 'green'. .* another wo"
  ):
    loop.train(open_config(data), workdir)
  (data / 'train' / 'green').rename(data / 'train' / 'navy')
  shutil.rmtree(data / 'train' / 'blue')
  with pytest.raises(ValueError, match="added 'navy'; missing 'blue'"):
    loop.train(open_config(data), workdir)


def test_a_number_of_classes_that_is_not_the_data_s_is_refused(tmp_path):
  write_folder(tmp_path / 'data' / 'train', ('blue', 'red'), 4)
  config = open_config(tmp_path / 'data')
  config.model.num_classes = 3
  with pytest.raises(ValueError, match=r'config.model.num_classes is 3, but .* has 2 classes'):
    loop.train(config, epath.Path(tmp_path / 'other'))
