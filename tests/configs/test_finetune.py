"""Any model with classes trains on a folder that nothing is known about."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from configs import finetune
from crossattn_jax import models, tasks
from crossattn_jax.training import command_line
from crossattn_jax.training import config as config_lib

ROOT = pathlib.Path(__file__).parents[2]
CLASSIFIERS = [
  name
  for name in models.list_models()
  if getattr(models.create_model(name), 'num_classes', None) is not None
  if not name.startswith(('icafusion', 'test_'))
]


@pytest.mark.parametrize(
  'model',
  [
    *CLASSIFIERS,
    *('biformer_small+upernet', 'pyramid_tiny+semantic_fpn'),
    *('crossformer_small+retinanet', 'pyramid_tiny+faster_rcnn', 'biformer_small+mask_rcnn'),
    *models.list_models('icafusion*'),
  ],
)
def test_every_model_with_classes_has_an_experiment(model):
  config = finetune.get_config(model)
  config_lib.validate(config)
  assert (config.model.name, config.model.num_classes) == (model, None)
  config_lib.complete_images(config)
  size = getattr(models.create_model(model), 'image_size', None)
  if config.task.name == 'classification':
    assert config.dataset.image_size == size
    assert config.dataset.crop_fraction == (1.0 if size[0] > 240 else 0.875)
  if config.task.name in (
    'detection',
    'sketch_localization',
  ):  # The normalisation is the weights' own, or COCO's.
    open_keys = {key for key in ('mean', 'std') if finetune.get_config(model).dataset[key] is None}
    assert (open_keys, config.dataset.mean[0]) == ({'mean', 'std'}, 123.675)
  if config.task.name == 'audio_classification':
    assert (config.dataset.num_mel_bins, config.dataset.num_frames) == size


@pytest.mark.parametrize(
  ('model', 'message'),
  [
    ('crosvit_small_240', "unknown model 'crosvit_small_240'; did you mean 'crossvit_small_240'"),
    ('biformer_small+uppernet', r"did you mean 'biformer_\w+\+upernet'"),
    ('atfuse', "'atfuse' has no classes to learn: .* such as 'crossvit_small_240'"),
    ('', 'unknown model'),
  ],
)
def test_a_wrong_argument_is_one_line(model, message):
  with pytest.raises(ValueError, match=message) as error:
    finetune.get_config(model)
  assert '\n' not in str(error.value)


def test_what_sees_points_has_points_and_as_many_photographs_as_it_looks_at():
  for model, task, views in (
    ('minkunet18a', 'point_segmentation', 16),
    ('mit_18a_r50', 'scene_labels', 16),
    ('mit_points', 'scene_labels', 0),
  ):
    config = finetune.get_config(model)
    assert (config.task.name, config.dataset.name) == (task, 'point_folder')
    assert config.dataset.num_views == views


@pytest.mark.parametrize(('weights', 'rate'), [(None, 1e-3), ('run', 2e-4)])
def test_rate_and_length_are_those_of_the_start_unless_they_are_given(weights, rate):
  config = finetune.get_config()
  config.weights = weights
  (note,) = config_lib.complete_start(config)
  assert (config.schedule.learning_rate, config.num_epochs) == (rate, 100 if rate == 1e-3 else 20)
  assert note.startswith('starting from scratch: ' if weights is None else 'starting from run: ')
  assert config_lib.complete_start(config) == []
  config = finetune.get_config()
  config.schedule.learning_rate, config.num_steps = 0.5, 3
  assert config_lib.complete_start(config) == []
  assert (config.schedule.learning_rate, config.num_epochs, config.num_steps) == (0.5, None, 3)


def test_a_folder_says_classes_and_splits_and_the_model_follows_size_and_colours(tmp_path):
  for number in range(40):
    folder = tmp_path / ('cat', 'dog')[number % 2]
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.full((9, 7), number, np.uint8)).save(folder / f'{number}.png')
  config = finetune.get_config('crossvit_tiny_240')
  config.dataset.data_dir = str(tmp_path)
  config.dataset.image_size = (48, 48)
  config.dataset.mean = config.dataset.std = (0.5,)
  tasks.complete_config(config)
  assert config.dataset.class_names == ('cat', 'dog')
  assert (config.dataset.train_split, config.dataset.eval_split) == ('.[:90%]', '.[90%:]')
  model = models.create_model(**config.model)
  assert (model.num_classes, model.num_channels, model.image_size) == (2, 1, (48, 48))


def test_images_may_be_set_on_the_command_line():
  config = finetune.get_config('swiftformer_xs')
  command_line.override(
    config, ['--config.dataset.mean=(0.5,)', '--config.dataset.image_size=(64, 96)']
  )
  config_lib.complete_images(config)
  assert (config.dataset.mean, len(config.dataset.std)) == ((0.5,), 3)
  assert config.dataset.image_size == config.model.image_size == (64, 96)


def test_folders_that_cannot_be_trained_on_are_one_sentence(tmp_path):
  def error(data_dir, **dataset):
    config = finetune.get_config('crossvit_tiny_240')
    config.dataset.data_dir = data_dir and str(data_dir)
    config.dataset.update(dataset)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
      tasks.complete_config(config)
    return str(raised.value)

  (tmp_path / 'only' / 'val').mkdir(parents=True)
  Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / 'only' / 'val' / '0.png')
  (tmp_path / 'tables').mkdir()
  (tmp_path / 'one' / 'cat').mkdir(parents=True)
  Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / 'one' / 'cat' / '0.png')
  assert error(None) == "'image_folder' needs dataset.data_dir: the folder of the images"
  assert error('/nowhere') == "'/nowhere' is no folder; set dataset.data_dir"
  # A run's relative path, seen from another current folder.
  assert error('nowhere') == f"'nowhere' is no folder in '{os.getcwd()}'; set dataset.data_dir"
  assert error(tmp_path / 'tables').endswith(
    'has no folders; expected one folder of images per class'
  )
  assert "has no split 'train', but 'val'; set dataset.train_split" in error(tmp_path / 'only')
  assert "has one class only, 'cat'" in error(tmp_path / 'one', train_split='.', eval_split='.')
  assert "has no split 'train', but none" in error(tmp_path / 'tables', name='image_table')


def test_sounds_of_a_folder_say_classes_and_splits(tmp_path):
  rows = [f'{number}.wav,{("hum", "beep")[number % 2]}' for number in range(40)]
  for number in range(40):
    (tmp_path / f'{number}.wav').touch()
  (tmp_path / 'train.csv').write_text('\n'.join(['file,labels', *rows]))
  for number in range(40):
    (tmp_path / f'{number}.wav').touch()
  config = finetune.get_config('mmvit_base_audio')
  config.dataset.data_dir = str(tmp_path)
  tasks.complete_config(config)
  assert (config.dataset.class_names, config.model.num_classes) == (('beep', 'hum'), 2)
  assert (config.dataset.train_split, config.dataset.eval_split) == ('train[:90%]', 'train[90%:]')
  assert tasks.create_task(config).batch_spec(4)['label'].shape == (4, 2)


@pytest.mark.parametrize('layout', ['coco', 'yolo'])
@pytest.mark.parametrize('head', ['retinanet', 'mask_rcnn'])
def test_objects_of_a_folder_say_classes_and_splits(tmp_path, layout, head):
  folder = tmp_path / 'images' / ('' if layout == 'coco' else 'train')
  folder.mkdir(parents=True)
  images = [{'id': n, 'file_name': f'{n}.png', 'height': 8, 'width': 10} for n in range(40)]
  for image in images:
    Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(folder / image['file_name'])
  if layout == 'coco':
    objects = [
      {'id': 1 + n, 'image_id': n, 'category_id': (3, 9)[n % 2], 'bbox': [1, 1, 4, 4]}
      | {'segmentation': [[1, 1, 5, 1, 5, 5, 1, 5]], 'area': 16, 'iscrowd': 0}
      for n in range(40)
    ]
    categories = [{'id': 3, 'name': 'nut'}, {'id': 9, 'name': 'bolt'}]
    written = {'images': images, 'annotations': objects, 'categories': categories}
    (tmp_path / 'instances.json').write_text(json.dumps(written))
  else:
    (tmp_path / 'labels' / 'train').mkdir(parents=True)
    (tmp_path / 'data.yaml').write_text('names: [nut, bolt]\n')
    for n in range(40):
      (tmp_path / 'labels' / 'train' / f'{n}.txt').write_text(f'{n % 2} 0.1 0.1 0.5 0.1 0.5 0.6\n')
  config = finetune.get_config(f'swiftformer_xs+{head}')
  config.dataset.data_dir = str(tmp_path)
  tasks.complete_config(config)
  assert (config.dataset.class_names, config.model.num_classes) == (('nut', 'bolt'), 2)
  whole = '.' if layout == 'coco' else 'train'
  splits = (config.dataset.train_split, config.dataset.eval_split)
  assert splits == (f'{whole}[:90%]', f'{whole}[90%:]')
  assert (config.task.name, config.dataset.masks) == ('detection', head == 'mask_rcnn')
  config = finetune.get_config(f'swiftformer_xs+{head}')
  flags = [f'--config.dataset.data_dir={tmp_path}', "--config.dataset.class_names=('bolt',)"]
  command_line.override(config, [*flags, '--config.dataset.other_classes=skip'])
  tasks.complete_config(config)
  assert (config.dataset.class_names, config.model.num_classes) == (('bolt',), 1)


def test_photos_and_sketches_of_folders_say_classes_and_splits(tmp_path):
  (tmp_path / 'photos' / 'images').mkdir(parents=True)
  images = [{'id': n, 'file_name': f'{n}.png', 'height': 8, 'width': 10} for n in range(20)]
  for image in images:
    Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(
      tmp_path / 'photos' / 'images' / image['file_name']
    )
  objects = [
    {'id': 1 + n, 'image_id': n, 'category_id': 3 + n % 3, 'bbox': [1, 1, 4, 4], 'iscrowd': 0}
    | {'area': 16}
    for n in range(20)
  ]
  categories = [{'id': 3 + i, 'name': name} for i, name in enumerate(('nut', 'bolt', 'screw'))]
  written = {'images': images, 'annotations': objects, 'categories': categories}
  (tmp_path / 'photos' / 'instances.json').write_text(json.dumps(written))
  for name in ('bolt', 'nut'):
    (tmp_path / 'sketches' / name).mkdir(parents=True)
    for n in range(10):
      pixels = np.full((32, 32), 255, np.uint8)
      pixels[8 + n : 12 + n, 4:28] = 0
      Image.fromarray(pixels).save(tmp_path / 'sketches' / name / f'{n}.png')
  config = finetune.get_config('sketch_localizer_tiny')
  config.dataset.data_dir = str(tmp_path / 'photos')
  config.dataset.sketches.data_dir = str(tmp_path / 'sketches')
  config_lib.complete_images(config)
  notes = tasks.complete_config(config)
  assert config.dataset.class_names == ('nut', 'bolt')
  assert any('left out' in note and 'screw' in note for note in notes)
  assert (config.dataset.train_split, config.dataset.eval_split) == ('.[:90%]', '.[90%:]')
  shapes = tasks.create_task(config).batch_spec(2)
  assert shapes['image'].shape == (2, 640, 640, 3)
  assert shapes['sketches'].shape == (2, 1, 224, 224, 3)


@pytest.mark.extended
def test_one_command_trains_from_nothing_and_one_from_that_run_on_other_classes(
  tmp_path, main_environment
):
  rng = np.random.default_rng(0)
  colors = {'red': (255, 0, 0), 'green': (0, 255, 0), 'blue': (0, 0, 255), 'grey': (99, 99, 99)}
  for folder, names in {'first': ('red', 'green'), 'second': ('blue', 'grey', 'red')}.items():
    for name in names:
      (tmp_path / folder / name).mkdir(parents=True)
      for number in range(30):
        pixels = np.abs(np.array(colors[name]) - rng.integers(0, 40, (12, 10, 3)))
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / name / f'{number}.jpg')

  def train(data, workdir, *flags):
    command = [sys.executable, 'main.py', '--config=configs/finetune.py:crossvit_tiny_240']
    command += [f'--workdir={tmp_path / workdir}', f'--config.dataset.data_dir={tmp_path / data}']
    command += ['--config.dataset.image_size=(48, 48)', '--config.evaluation.every_epochs=5']
    command += ['--config.model.widths=(48, 96)', '--config.model.depths=((1, 1, 0),)', *flags]
    result = subprocess.run(
      command, cwd=ROOT, env=main_environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stderr, json.loads((tmp_path / workdir / 'config.json').read_text())

  said, config = train('first', 'from_scratch', '--config.num_epochs=5')
  assert 'starting from scratch: schedule.learning_rate=0.001\n' in said
  assert "2 classes: 'green', 'red'" in said
  assert 'fitted: batch_size=8, since config.batch_size=64, but an epoch of ' in said
  said, config = train('second', 'from_run', f'--config.weights={tmp_path / "from_scratch"}')
  assert 'schedule.learning_rate=0.0002, num_epochs=20' in said
  assert config['dataset']['class_names'] == ['blue', 'grey', 'red']
  assert re.search(r'head_0, head_1: fresh', said)
  last = json.loads((tmp_path / 'from_run' / 'metrics.jsonl').read_text().splitlines()[-1])
  assert last['eval/accuracy'] == 1
