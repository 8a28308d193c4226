"""Any model with classes trains on a folder that nothing is known about."""

import numpy as np
from PIL import Image
import pytest

from configs import finetune
from crossattn_jax import models, tasks
from crossattn_jax.training import config as config_lib

CLASSIFIERS = [
  name
  for name in models.list_models()
  if getattr(models.create_model(name), 'num_classes', None) is not None and name[:5] != 'test_'
]


@pytest.mark.parametrize(
  'model', [*CLASSIFIERS, 'biformer_small+upernet', 'pyramid_tiny+semantic_fpn']
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


@pytest.mark.parametrize(('weights', 'rate'), [(None, 1e-3), ('run', 1e-4)])
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
  assert error(tmp_path / 'tables').endswith(
    'has no folders; expected one folder of images per class'
  )
  assert "has no split 'train', but 'val'; set dataset.train_split" in error(tmp_path / 'only')
  assert "has one class only, 'cat'" in error(tmp_path / 'one', train_split='.', eval_split='.')
  assert "has no split 'train', but none" in error(tmp_path / 'tables', name='image_table')


def test_sounds_of_a_folder_say_classes_and_splits(tmp_path):
  rows = [f'{number}.wav,{("hum", "beep")[number % 2]}' for number in range(40)]
  (tmp_path / 'train.csv').write_text('\n'.join(['file,labels', *rows]))
  config = finetune.get_config('mmvit_base_audio')
  config.dataset.data_dir = str(tmp_path)
  tasks.complete_config(config)
  assert (config.dataset.class_names, config.model.num_classes) == (('beep', 'hum'), 2)
  assert (config.dataset.train_split, config.dataset.eval_split) == ('train[:90%]', 'train[90%:]')
  assert tasks.create_task(config).batch_spec(4)['label'].shape == (4, 2)
