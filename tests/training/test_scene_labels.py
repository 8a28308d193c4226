"""MIT trains from the one loop: on every mesh alike, in bfloat16, whatever the padding."""

import json

from etils import epath
import jax
import numpy as np
from PIL import Image
import pytest

from crossattn_jax import models, tasks
from crossattn_jax.data.scene_points import batches, sources
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import labels, loop


@pytest.fixture
def config():
  """Two photographs of 12 x 16 pixels, and one block of everything."""
  config = config_lib.default_config('scene_labels')
  config.dataset.name = 'room_scenes/tiny'
  config.dataset.class_names = ('floor', 'wall', 'box')
  config.dataset.buckets = ((96, 48, 24, 16, 8),)
  config.dataset.max_supervoxels = 6
  config.dataset.num_views, config.dataset.image_size = 2, (12, 16)
  with config.unlocked():
    config.model = models.model_config(
      'mit_18a_r50',
      num_classes=3,
      num_views=2,
      points_widths=(8,) * 8,
      points_depths=(1,) * 8,
      points_stem_width=8,
      image_widths=(4, 4, 4, 8),
      image_depths=(1, 1, 1, 1),
      image_stem_width=4,
      num_heads=2,
      encoder_depth=1,
      decoder_depth=2,
      drop_rate=0.0,
      drop_path_rate=0.0,
    )
  config.batch_size = 8
  config.num_steps = 10
  config.sharding.fsdp_min_size = 64
  config.schedule.name = 'constant'
  return config


def _scenes(count):
  """Boxes of random extent, half of whose cells are there."""
  rng = np.random.default_rng(0)
  scenes, images = [], []
  for _ in range(count):
    cells = np.argwhere(rng.random((5, 5, rng.integers(4, 7))) < 0.5)
    ids = cells[:, 0].astype(np.int32)
    ids[ids == 2] = 1  # Some id has no cell.
    scenes.append(
      sources.Scene(
        ((cells + 0.5) * 0.05).astype(np.float32),
        rng.integers(0, 256, cells.shape).astype(np.uint8),
        (ids % rng.integers(1, 4)).astype(np.int32),
        ids,
      )
    )
    shots = rng.integers(0, 256, (3, 12, 16, 3)).astype(np.uint8)
    images.append([Image.fromarray(shot) for shot in shots])
  return sources.MemorySource(scenes, ('floor', 'wall', 'box'), images)


def _batch(config, dtype=np.float32):
  config.dataset.evaluation.rotate = False
  examples = batches.SceneLabelExamples(config.dataset, 'train', _scenes(config.batch_size))
  (batch,) = examples.eval_batches(batch_size=config.batch_size)
  floats = {'windows', 'position', 'images', 'tags'}
  return {
    name: x.astype(dtype) if name in floats else x
    for name, x in batch.items()
    if name not in ('skipped', 'mask')
  }


@pytest.mark.extended
def test_padding_changes_neither_loss_nor_gradients(config):
  config.model.param_dtype = 'float64'
  config.batch_size = 2
  results = []
  with jax.enable_x64(True):
    for bucket, most in (((96, 48, 24, 16, 8), 6), ((136, 56, 24, 24, 16), 9)):
      config.dataset.buckets, config.dataset.max_supervoxels = (bucket,), most
      task = tasks.create_task(config)
      batch = _batch(config, np.float64)
      assert batch['windows'].shape[1] == bucket[0]
      if not results:
        shapes, rng = jax.eval_shape(task.init, jax.random.key(0)), np.random.default_rng(1)
        variables = jax.tree.map(lambda x, rng=rng: rng.normal(size=x.shape, scale=0.2), shapes)

      @jax.jit
      def step(params, batch, rest, task=task):
        def loss(params):
          loss, (reported, updated) = task.loss(
            {**rest, 'params': params}, batch, jax.random.key(0), True
          )
          del reported['padding']
          return loss, (reported, updated)

        return jax.value_and_grad(loss, has_aux=True)(params)

      rest = {name: x for name, x in variables.items() if name != 'params'}
      results.append(jax.device_get(step(variables['params'], batch, rest)))
  for x, y in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [(8, 1, 1, 1), (2, 2, 2, 1)], ids=str)
def test_loss_gradients_and_statistics_on_eight_devices_equal_those_of_one(
  config, assert_mesh_equals_one_device, sizes
):
  assert_mesh_equals_one_device(config, _batch, sizes)


@pytest.mark.slow
def test_bfloat16_learns(config, assert_bfloat16_learns):
  assert_bfloat16_learns(config, _batch)


@pytest.mark.slow
def test_the_loop_trains_continues_evaluates_draws_and_labels(
  config, one_device, tmp_path, monkeypatch, capsys
):
  del one_device
  source = _scenes(8)
  monkeypatch.setattr(
    batches.SceneLabelExamples, 'open_source', staticmethod(lambda config, split: source)
  )
  config.dataset.train_split = config.dataset.eval_split = 'train'
  config.batch_size, config.num_steps, config.logging.every_steps = 4, 2, 1
  loop.train(config, epath.Path(tmp_path))
  config.num_steps = 4
  metrics = loop.train(config, epath.Path(tmp_path))
  assert 'continuing after step 2' in capsys.readouterr().err
  assert metrics['examples'] == 8
  assert 0 <= metrics['pseudo_miou'] <= 1
  assert loop.evaluate(config, epath.Path(tmp_path)) == metrics
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  steps = [line for line in lines if 'train/loss' in line]
  assert [line['step'] for line in steps] == [1, 2, 3, 4]
  for line in steps:
    parts = [value for name, value in line.items() if name.endswith('_loss')]
    assert line['train/loss'] == pytest.approx(sum(parts), rel=1e-5)
  assert {'predictions.png', 'confusion.png', 'worst.png', 'curves.png'} <= {
    path.name for path in tmp_path.iterdir()
  }

  results = labels.write_labels(config, epath.Path(tmp_path), epath.Path(tmp_path / 'labels'))
  assert results['pseudo_miou'] == pytest.approx(metrics['pseudo_miou'])
  again = labels.write_labels(config, epath.Path(tmp_path), epath.Path(tmp_path / 'labels'))
  assert again == results
  assert 'has labels of 8 of 8 already' in capsys.readouterr().err
  config.task.pseudo_labels.threshold = 0.9
  with pytest.raises(ValueError, match=r'has labels with threshold=0.5, these would be with'):
    labels.write_labels(config, epath.Path(tmp_path), epath.Path(tmp_path / 'labels'))
