"""What a config leaves open is taken from the data set."""

import pytest

from crossattn_jax import tasks


@pytest.fixture
def open_config(tiny_config):
  """The digits, with nothing said about their classes and splits."""
  tiny_config.dataset.train_split = tiny_config.dataset.eval_split = None
  tiny_config.model.num_classes = None
  return tiny_config


def test_classes_and_splits_are_those_of_the_data(open_config):
  open_config.model.num_channels = None
  splits, classes, channels = tasks.complete_config(open_config)
  assert open_config.dataset.class_names == tuple('0123456789')
  assert open_config.model.num_classes == 10
  assert (open_config.dataset.train_split, open_config.dataset.eval_split) == ('train', 'test')
  assert splits.endswith("'train' for training, 'test' for evaluation")
  assert classes == "10 classes: '0', '1', '2', '3', '4', '5', '6', '7', 2 more"
  assert channels == 'the model takes grey images, as dataset.mean says'
  assert open_config.model.num_channels == 1
  assert tasks.complete_config(open_config) == []


def test_without_data_what_is_not_said_is_refused_and_names_alone_are_not_needed(open_config):
  open_config.dataset.update(name='image_folder', data_dir='/nowhere')
  with pytest.raises(ValueError, match=r"'/nowhere' is no folder; set dataset.data_dir"):
    tasks.complete_config(open_config)
  open_config.model.num_classes = 3
  open_config.dataset.update(train_split='train', eval_split='val')
  tasks.complete_config(open_config)
  task = tasks.create_task(open_config)
  assert (open_config.dataset.class_names, task.class_name(2)) == ((), '2')


def test_sounds_have_classes_and_splits_too():
  from configs import mmvit_tones

  config = mmvit_tones.get_config()
  config.dataset.train_split = config.dataset.eval_split = None
  config.model.num_classes = None
  tasks.complete_config(config)
  assert (config.dataset.train_split, config.dataset.eval_split) == ('train', 'test')
  assert config.model.num_classes == len(config.dataset.class_names) == 8
