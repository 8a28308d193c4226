"""Networks of points from the first step to pictures, on generated rooms."""

import json

from etils import epath
import jax
import pytest

from crossattn_jax import parallel
from crossattn_jax.data.scenes import room_dataset
from crossattn_jax.training import loop


@pytest.mark.slow
def test_the_loop_trains_continues_evaluates_and_draws(small_config, tmp_path, monkeypatch, capsys):
  room_dataset.prepare('room_scenes/tiny', str(tmp_path / 'tfds'))
  config, dataset = small_config, small_config.dataset
  dataset.name, dataset.data_dir = 'room_scenes/tiny', str(tmp_path / 'tfds')
  dataset.train_split = dataset.eval_split = None
  dataset.class_names, config.model.num_classes = (), None
  dataset.buckets = ((640, 256, 96, 32, 16),)
  dataset.evaluation.votes = 2
  config.batch_size, config.num_steps = 4, 2
  config.schedule.name = 'constant'
  config.schedule.learning_rate = 1e-3
  config.schedule.warmup_steps = 0
  config.logging.every_steps = 1
  mesh = parallel.create_mesh(devices=jax.devices()[:1])
  monkeypatch.setattr(parallel, 'create_mesh', lambda **_: mesh)
  loop.train(config, epath.Path(tmp_path / 'run'))
  config.num_steps = 4
  metrics = loop.train(config, epath.Path(tmp_path / 'run'))
  assert metrics['examples'] == 4
  assert 0 <= metrics['mean_iou'] <= metrics['overall_accuracy'] <= 1
  assert loop.evaluate(config, epath.Path(tmp_path / 'run')) == metrics
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  steps = [line for line in map(json.loads, lines) if 'train/loss' in line]
  assert [line['step'] for line in steps] == [1, 2, 3, 4]
  assert all(0 < line['train/padding'] < 1 for line in steps)
  said = capsys.readouterr().err
  assert 'continuing after step 2' in said
  assert 'mean IoU' in said
  drawn = {path.name for path in (tmp_path / 'run').iterdir()}
  assert {'predictions.png', 'confusion.png', 'worst.png', 'curves.png'} <= drawn
