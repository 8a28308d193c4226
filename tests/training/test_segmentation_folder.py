"""Images and masks of one's own, from a folder to pictures, whatever becomes of the folder."""

import json
import shutil
import subprocess
import sys

from etils import epath
import numpy as np
from PIL import Image
import pytest

from configs import ccnet_shapes, finetune, semantic_fpn_shapes
from crossattn_jax import tasks
from crossattn_jax.data import sources
from crossattn_jax.data.scenes import shapes
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import export, loop, preflight

SIZE = 32


@pytest.fixture
def folder(tmp_path):
  """Blue roads across grey noise, 255 in masks; images at `folder/images`, without splits."""
  rng = np.random.default_rng(0)
  root = tmp_path / 'roads'
  for kind in ('images', 'masks'):
    (root / kind).mkdir(parents=True)
  for number in range(60):
    image, mask = rng.integers(60, 160, (SIZE, SIZE, 3)), np.zeros((SIZE, SIZE), np.uint8)
    start = int(rng.integers(4, 20))
    mask[:, start : start + 8] = 255
    image[mask > 0] = image[mask > 0] // 4 + (0, 0, 180)
    Image.fromarray(image.astype(np.uint8)).save(root / f'images/{number}.png')
    Image.fromarray(mask).save(root / f'masks/{number}.png')
  (root / 'classes.csv').write_text('value,name,color\n0,field,#00ff00\n255,road,#804080\n')
  return root


def with_folder(config, folder):
  config.dataset.name, config.dataset.data_dir = 'segmentation_folder', str(folder)
  return config


@pytest.mark.parametrize('experiment', [semantic_fpn_shapes, ccnet_shapes])
def test_classes_of_a_folder_stay_in_the_config(folder, tmp_path, experiment):
  config = with_folder(experiment.get_config(), folder)
  with pytest.raises(ValueError, match=r"classes of a 'segmentation_folder' are not known"):
    tasks.create_task(config)
  notes = tasks.complete_config(config)
  assert notes[0].endswith("'.[:90%]' for training, '.[90%:]' for evaluation")
  config_lib.save(config, epath.Path(tmp_path / 'config.json'))
  shutil.rmtree(folder)
  other = with_folder(experiment.get_config(), folder)
  config_lib.take_classes(other, epath.Path(tmp_path))
  for key in ('class_names', 'palette', 'class_values'):
    assert other.dataset[key] == config.dataset[key]
  task = tasks.create_task(config_lib.load(epath.Path(tmp_path / 'config.json')))
  assert task.model.num_classes == 2
  assert task.class_names == ('field', 'road')
  description = task.Serving(task).description
  assert description['classes'] == ['field', 'road']
  assert description['labels'] == [0, 255]
  assert description['palette'] == [[0, 255, 0], [128, 64, 128]]


def test_released_data_sets_need_no_files_for_their_classes():
  config = semantic_fpn_shapes.get_config()
  assert tasks.create_task(config).model.num_classes == 7
  assert tasks.complete_config(config) == [f'7 classes: {sources.shown(shapes.CLASS_NAMES)}']
  assert config.model.num_classes == len(config.dataset.class_names) == 7
  assert (config.dataset.train_split, config.dataset.eval_split) == ('train', 'validation')


def test_any_model_takes_classes_and_splits_from_a_folder(folder):
  config = finetune.get_config('pyramid_tiny+semantic_fpn')
  config.dataset.data_dir = str(folder)
  config.dataset.image_size = (SIZE, SIZE)
  *_, note = tasks.complete_config(config)
  assert note == "2 classes: 'field', 'road'"
  task = tasks.create_task(config)
  assert task.model.num_classes == 2
  batch = next(iter(task.train_data(2, 0, 1)))
  # Images are as large as crops, times 0.5 to 2.
  assert (batch['label'] != 255).mean() > 0.2
  assert {*np.unique(batch['label'])} <= {0, 1, 255}


def test_a_missing_table_of_classes_is_one_problem(folder):
  (folder / 'classes.csv').unlink()
  config = with_folder(semantic_fpn_shapes.get_config(), folder)
  config.evaluation.batch_size = 8
  with pytest.raises(ValueError, match=r'^nothing says what the masks .*\nvalue,name\n0,\n255,$'):
    preflight.setup(config)


@pytest.mark.extended
@pytest.mark.usefixtures('one_device')
def test_a_network_learns_a_folder_and_shows_it_in_its_own_names(folder, tmp_path):
  config = with_folder(semantic_fpn_shapes.get_config(), folder)
  config.model.update(widths=(8, 8, 8, 8), stem_widths=(8, 8, 8), head_channels=8)
  config.model.update(pyramid_channels=16, image_size=(SIZE, SIZE))
  config.dataset.image_size = config.dataset.evaluation.base_size = (SIZE, SIZE)
  config.dataset.augmentation.scales = (1.0,)
  config.dataset.evaluation.label_step = SIZE
  config.task.evaluation.scales = (1.0,)
  config.num_epochs, config.num_steps = None, 100
  config.evaluation.every_epochs, config.evaluation.batch_size = None, 8
  workdir = epath.Path(tmp_path / 'run')
  metrics = loop.train(config, workdir)
  assert metrics['iou/road'] > 0.75
  assert metrics['mean_iou'] > 0.8

  photo = folder / 'images/3.png'
  photo = shutil.copy(photo, tmp_path / 'photo.png')
  road = np.asarray(Image.open(folder / 'masks/3.png')) > 0
  # The data set may move, or lose its table: the run knows what it has learnt.
  saved = config_lib.load(workdir / 'config.json')
  shutil.move(folder, tmp_path / 'moved')
  (tmp_path / 'moved/classes.csv').unlink()
  saved.dataset.data_dir = str(tmp_path / 'moved')
  assert loop.evaluate(saved, workdir)['iou/road'] == pytest.approx(metrics['iou/road'], abs=0.01)

  output = epath.Path(tmp_path / 'out')
  (record,) = loop.predict(saved, workdir, epath.Path(photo), output)
  assert {entry['name'] for entry in record['classes']} == {'field', 'road'}
  labels = np.asarray(Image.open(record['labels']))
  assert set(np.unique(labels)) == {0, 255}
  assert ((labels == 255) == road).mean() > 0.9
  colors = np.asarray(Image.open(record['colors']).convert('RGB'))
  assert (colors[labels == 255] == (128, 64, 128)).all()

  export.export_model(saved, workdir, epath.Path(tmp_path / 'exported'), platforms=['cpu'])
  assert json.loads((tmp_path / 'exported/preprocessing.json').read_text())['labels'] == [0, 255]
  script = str(tmp_path / 'exported/load_and_run.py')
  subprocess.run([sys.executable, script, str(photo)], check=True)
  written = np.asarray(Image.open(tmp_path / 'photo_labels.png'))
  assert ((written == 255) == road).mean() > 0.9
