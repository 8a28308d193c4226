"""What can be known before step 1 is said before step 1, all at once, with what solves it."""

import re
import shlex

from etils import epath
from flax import linen as nn
import jax
import numpy as np
from PIL import Image
import pytest

from crossattn_jax import config_errors, models, parallel
from crossattn_jax.models import registry
from crossattn_jax.training import loop, preflight


class _Positions(nn.Module):
  """The smallest classifier that is made for images of one size."""

  num_classes: int = 10
  image_size: tuple[int, int] = (8, 8)

  @nn.compact
  def __call__(self, image, train=False):
    if image.shape[-1] != 1:
      raise ValueError(f'expects grey images, not {image.shape}')
    positions = self.param('positions', nn.initializers.zeros, self.image_size)
    x = image[..., 0] + jax.image.resize(positions, image.shape[1:3], 'linear')
    return nn.Dense(self.num_classes, name='head')(x.mean((1, 2))[:, None]), {}


registry.register('test_positions', _Positions)


@pytest.fixture
def tiny_config(tiny_config):
  with tiny_config.unlocked():
    tiny_config.model = models.model_config('test_positions')
  return tiny_config


@pytest.fixture
def mesh():
  return parallel.create_mesh(devices=jax.devices()[:1])


def change(config, changes):
  with config.ignore_type():
    config.update_from_flattened_dict(changes)


def flags_in(message):
  """The flags of the last line of a message, as a shell reads them, by key."""
  flags = [flag.removeprefix('--config.') for flag in shlex.split(message.splitlines()[-1])]
  return dict(flag.split('=', 1) for flag in flags)


def test_four_mistakes_are_one_message_whose_last_line_solves_them(tiny_config, mesh):
  change(
    tiny_config,
    {
      'model.num_classes': 7,
      'checkpoint.best_metric': 'acuracy',
      'dataset.eval_split': 'tset',
      'schedule.warmup_steps': 20,
    },
  )
  with pytest.raises(preflight.SeveralProblems) as raised:
    preflight.setup(tiny_config, mesh)
  message = str(raised.value)
  assert message.startswith('4 problems before step 1:\n  1. ')
  for part in (
    'config.model.num_classes is 7, but dataset',
    "best_metric='acuracy' is not among the metrics: accuracy",
    "has no split 'tset'; it has train, test",
    'the warm-up takes 20 steps but the run has 12',
  ):
    assert part in message
  assert 'to solve all of them' in message
  assert flags_in(message) == {
    'model.num_classes': '10',
    'checkpoint.best_metric': 'accuracy',
    'dataset.eval_split': 'test',
    'schedule.warmup_steps': '1',
  }
  assert tiny_config.model.num_classes == 7
  change(tiny_config, raised.value.changes)
  assert preflight.setup(tiny_config, mesh).total_steps == 12


def test_a_schedule_that_cannot_be_is_the_only_problem(tiny_config, mesh):
  change(
    tiny_config,
    {'schedule.epochs_late': -1, 'optimizer.warmup_starts': (('.*/bias', 0.1),)},
  )
  with pytest.raises(ValueError, match=r'^schedule\.epochs_late and schedule\.steps_late must not'):
    preflight.setup(tiny_config, mesh)


def test_problems_that_only_a_person_can_solve_are_listed_beside_the_others(tiny_config, mesh):
  change(
    tiny_config,
    {
      'batch_size': 5000,
      'ema.decay': 1.5,
      'optimizer.multipliers': (('nothing/.*', 0.0),),
      'schedule.name': 'cosin',
      'model.name': 'test_position',
    },
  )
  with pytest.raises(preflight.SeveralProblems) as raised:
    preflight.setup(tiny_config, mesh)
  lines = str(raised.value).splitlines()
  assert [line[2:4] for line in lines[1:-2]] == ['1.', '2.', '3.', '4.', '5.']
  assert 'config.ema.decay=1.5 must be in [0, 1)' in lines[2]
  assert "the pattern 'nothing/.*' matches none" in lines[5]
  assert lines[6] == 'Add to the command, to solve 1, 3, 4:'
  assert raised.value.changes == {
    'model.name': 'test_positions',
    'batch_size': 1442,
    'schedule.name': 'cosine',
  }


@pytest.mark.parametrize(
  ('changes', 'message', 'solution'),
  [
    (
      {'checkpoint.best_metric': 'loss', 'checkpoint.best_mode': 'max'},
      r"best_mode='max', but of 'loss' the smallest value is best; set .*best_mode=min",
      {'checkpoint.best_mode': 'min'},
    ),
    ({'checkpoint.best_metric': 'mean_iou'}, "best_metric='mean_iou' is not among", {}),
    ({'checkpoint.best_mode': 'highest'}, r"best_mode='highest' must be 'max', 'min'", {}),
    ({'num_steps': None, 'num_epochs': 0.0}, r'config.num_epochs=0.0 must be positive', {}),
    ({'num_steps': None, 'num_epochs': 0.01}, r'num_epochs=0.01 of 22 steps is less', {}),
    ({'profile.steps': (10, 20)}, r'profile.steps=\(10, 20\) ends after the 12 steps', {}),
    ({'evaluation.every_epochs': 0.0}, r'evaluation.every_epochs=0.0 must be positive', {}),
    ({'ema.decay': 1.0}, r'ema.decay=1.0 must be in \[0, 1\)', {}),
    ({'profile.steps': (20, 10)}, r'must be the first and the last step', {}),
    ({'dataset.train_split': 'trian'}, "no split 'trian'", {'dataset.train_split': 'train'}),
    ({'dataset.name': 'digit'}, "unknown dataset 'digit'", {'dataset.name': 'digits'}),
    (
      {'dataset.mean': (0.5,) * 3, 'dataset.std': (0.5,) * 3},
      'expects grey images',
      {},
    ),
  ],
)
def test_a_single_problem_is_its_own_message(tiny_config, mesh, changes, message, solution):
  change(tiny_config, changes)
  with pytest.raises(ValueError, match=message) as raised:
    preflight.setup(tiny_config, mesh)
  assert not isinstance(raised.value, preflight.SeveralProblems)
  assert preflight._solution(raised.value, tiny_config) == solution


def test_batches_that_devices_cannot_share_are_made_to_fit(tiny_config):
  change(tiny_config, {'batch_size': 60, 'evaluation.batch_size': 3, 'accumulation_steps': 2})
  with pytest.raises(config_errors.ConfigError, match=r'batch_size: 30 examples') as raised:
    preflight.setup(tiny_config, parallel.create_mesh(devices=jax.devices()[:8]))
  assert raised.value.changes == {'batch_size': 48, 'evaluation.batch_size': 8}


@pytest.fixture
def folder_config(tiny_config, tmp_path):
  """A folder of two classes with two images each, in both splits."""
  rng = np.random.default_rng(0)
  for split in ('train', 'validation'):
    for name in ('a', 'b'):
      folder = tmp_path / 'images' / split / name
      folder.mkdir(parents=True)
      for index in range(2):
        pixels = rng.integers(0, 255, (8, 8), np.uint8)
        Image.fromarray(pixels).save(folder / f'{index}.png')
  change(
    tiny_config,
    {
      'dataset.name': 'image_folder',
      'dataset.data_dir': str(tmp_path / 'images'),
      'dataset.eval_split': 'validation',
      'model.num_classes': 2,
      'batch_size': 4,
    },
  )
  return tiny_config


def test_images_that_cannot_be_read_and_splits_without_images_are_found(
  folder_config, mesh, tmp_path
):
  assert preflight.setup(folder_config, mesh).steps_per_epoch == 1
  for split in ('train', 'validation'):
    (tmp_path / 'images' / split / 'a' / '0.png').write_bytes(b'not an image')
  folder_config.batch_size = 6
  with pytest.raises(preflight.SeveralProblems, match=r'3 problems[\s\S]*has 4 ex') as raised:
    preflight.setup(folder_config, mesh)
  found = re.findall(r"unreadable image '.*?/images/(\w+)/a/0.png'", str(raised.value))
  assert found == ['validation', 'train']
  folder_config.batch_size = 4
  for file in (tmp_path / 'images' / 'validation').rglob('*.png'):
    file.unlink()
  with pytest.raises(ValueError, match=r'2 problems[\s\S]*validation/a.* holds no image'):
    preflight.setup(folder_config, mesh)


def test_images_of_another_size_than_the_model_is_for_are_said(tiny_config, mesh, caplog):
  preflight.setup(tiny_config, mesh)
  assert not caplog.messages
  tiny_config.dataset.image_size = (16, 16)
  preflight.setup(tiny_config, mesh)
  (message,) = caplog.messages
  assert message.startswith('images of 16 x 16 pixels for a model of 8 x 8, which resizes them')
  tiny_config.model.image_size = (16, 16)
  preflight.setup(tiny_config, mesh)
  assert len(caplog.messages) == 1


def test_training_does_not_begin_with_a_problem(tiny_config, tmp_path):
  tiny_config.checkpoint.best_metric = 'acuracy'
  with pytest.raises(ValueError, match=r"best_metric='acuracy' is not among .*accuracy"):
    loop.train(tiny_config, epath.Path(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_batch_and_warm_up_are_fitted_to_few_examples_where_that_is_asked_for(
  tiny_config, mesh, capsys
):
  changes = {'batch_size': 5000, 'schedule.warmup_steps': 20, 'dataset.train_split': 'train[:90]'}
  change(tiny_config, changes)
  with pytest.raises(preflight.SeveralProblems):
    preflight.setup(tiny_config, mesh)
  tiny_config.fit_to_data = True
  preflight.setup(tiny_config, mesh)
  # An eighth of the images.
  assert (tiny_config.batch_size, tiny_config.schedule.warmup_steps) == (11, 1)
  _, batch, warm_up = capsys.readouterr().err.splitlines()
  assert batch.startswith('fitted: batch_size=11, since config.batch_size=5000, but an epoch of ')
  assert 'has 90 examples' in batch
  assert warm_up.startswith(
    'fitted: schedule.warmup_steps=1, since the warm-up takes 20 steps but '
  )
  tiny_config.dataset.train_split = 'train[:5]'
  preflight.setup(tiny_config, mesh)
  assert tiny_config.batch_size == 5


def test_a_folder_of_which_nothing_is_known_is_one_problem(tiny_config, mesh):
  tiny_config.dataset.update(name='image_folder', data_dir=None, train_split=None, eval_split=None)
  with pytest.raises(ValueError, match=r"^'image_folder' needs dataset.data_dir: the folder"):
    preflight.setup(tiny_config, mesh)


def test_weights_that_are_not_there_hide_nothing_of_images_that_follow_them(tiny_config, mesh):
  change(tiny_config, {'weights': 'nowhere.pth', 'checkpoint.best_metric': 'acuracy'})
  with tiny_config.ignore_type():
    tiny_config.dataset.image_size = None
  with pytest.raises(preflight.SeveralProblems) as raised:
    preflight.setup(tiny_config, mesh)
  first, second = str(raised.value).splitlines()[1:3]
  assert "config.weights='nowhere.pth' does not exist" in first
  assert "best_metric='acuracy' is not among" in second
