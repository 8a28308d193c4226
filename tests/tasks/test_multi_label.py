"""Images with any number of classes: learnt, measured, shown and served as such."""

import json

from etils import epath
from flax import linen as nn
import numpy as np
from PIL import Image
import pytest

from configs import finetune
from crossattn_jax import models, tasks
from crossattn_jax.models import registry
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import export, loop

COLORS = {'red': (255, 0, 0), 'green': (0, 255, 0), 'blue': (0, 0, 255)}


class _Means(nn.Module):
  """A linear classifier of the mean colour."""

  num_classes: int = 1000
  num_channels: int = 3
  image_size: tuple[int, int] = (8, 8)

  @nn.compact
  def __call__(self, image, train=False):
    return nn.Dense(self.num_classes, name='head')(image.mean((1, 2))), {}


registry.register('test_means', _Means)


@pytest.fixture
def config(tmp_path):
  """Images of every sum of colours, black and white included, in a table."""
  rng = np.random.default_rng(0)
  rows = ['file,labels']
  for number in range(64):
    names = [name for bit, name in enumerate(COLORS) if number >> bit & 1]
    color = np.sum([COLORS[name] for name in names], axis=0) if names else np.zeros(3)
    pixels = np.abs(color - rng.integers(0, 60, (8, 8, 3))).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / f'{number}.png')
    rows.append(f'{number}.png,"{",".join(names)}"')
  (tmp_path / 'train.csv').write_text('\n'.join(rows))
  config = finetune.get_config('test_means')
  config.dataset.update(name='image_table', data_dir=str(tmp_path))
  config.from_scratch.update(learning_rate=0.3, num_epochs=15.0)
  config.evaluation.every_epochs = None
  config.batch_size = 8
  config_lib.complete_images(config)
  return config


def test_a_table_of_images_trains_to_the_right_classes(config, tmp_path, capsys):
  workdir = epath.Path(tmp_path / 'run')
  metrics = loop.train(config, workdir)
  said = capsys.readouterr().err
  assert 'images have any number of classes: dataset.multi_label=True' in said
  assert "'train[:90%]' for training" in said
  assert metrics['mean_average_precision'] == 1
  assert config.dataset.class_names == ('blue', 'green', 'red')
  magenta = np.full((20, 30, 3), (240, 20, 240), np.uint8)
  Image.fromarray(magenta).save(tmp_path / 'magenta.png')
  (record,) = loop.predict(
    config, workdir, epath.Path(tmp_path / 'magenta.png'), epath.Path(tmp_path / 'out')
  )
  scores = {entry['name']: entry['score'] for entry in record['classes']}
  assert min(scores['red'], scores['blue']) > 0.8 > 0.2 > scores['green']
  export.export_model(config, workdir, epath.Path(tmp_path / 'e'), platforms=['cpu'])
  description = json.loads((tmp_path / 'e' / 'preprocessing.json').read_text())
  assert (description['scores'], description['classes']) == ('sigmoid', ['blue', 'green', 'red'])


def test_what_needs_one_class_each_is_refused(config, tmp_path):
  tasks.complete_config(config)
  config.task.mixup_alpha = 0.8
  config.task.distillation.kind = 'hard'
  with pytest.raises(ValueError, match=r'set --config.task.mixup_alpha=0.0 --config.task.distil'):
    tasks.create_task(config)
  config.task.mixup_alpha, config.task.distillation.kind = 0.0, 'none'
  config.dataset.multi_label = False
  with pytest.raises(ValueError, match=r"/0.png' has 0 classes, where one .*multi_label=True"):
    tasks.create_task(config).train_data(8, 0, 1)
  (tmp_path / '7.png').unlink()
  config.dataset.update(multi_label=True, train_split='train')
  with pytest.raises(
    ValueError, match=r"names 1 of \d+ files that are not there, such as '.*/7.png'"
  ):
    tasks.create_task(config).train_data(8, 0, 1)
  config.dataset.name = 'image_folder'
  with pytest.raises(ValueError, match=r"dataset.multi_label is for dataset.name='image_table'"):
    tasks.create_task(config).train_data(8, 0, 1)


def test_a_table_with_one_class_each_is_learnt_as_such(config, tmp_path):
  (tmp_path / 'train.csv').write_text('file,labels\n1.png,red\n2.png,green\n4.png,blue\n')
  (tmp_path / 'val.csv').write_text('file,labels\n1.png,red\n')
  tasks.complete_config(config)
  assert (config.dataset.multi_label, config.dataset.eval_split) == (False, 'val')
  task = tasks.create_task(config)
  batch = next(iter(task.eval_data(1, 0, 1)))
  assert (batch['label'].dtype, batch['label'].tolist()) == (np.int32, [2])
  assert 'accuracy' in task.metric_modes
  assert models.create_model(**config.model).num_classes == 3
