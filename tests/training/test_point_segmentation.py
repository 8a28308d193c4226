"""Networks of points train from the one loop: on every mesh alike, padded alike, in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models, tasks
from crossattn_jax.data.scene_points import tables
from crossattn_jax.geometry import points
from crossattn_jax.training import config as config_lib

BUCKET = (160, 96, 32, 16, 8)


@pytest.fixture
def config():
  """Five resolutions, a block at each of three of them."""
  config = config_lib.default_config('point_segmentation')
  with config.unlocked():
    config.model = models.model_config(
      'minkunet14a', num_classes=3, widths=(8,) * 8, depths=(0, 1, 0, 0, 0, 0, 1, 0), stem_width=8
    )
  config.dataset.class_names = ('floor', 'wall', 'box')
  config.dataset.buckets = (BUCKET,)
  config.batch_size = 8
  config.num_steps = 10
  config.sharding.fsdp_min_size = 128
  return config


def _batch(config, dtype=np.float32, bucket=BUCKET, padding=0.0):
  """Scenes of different numbers of voxels, whose colours say something about their classes."""
  rng = np.random.default_rng(0)
  rows = []
  for count in np.linspace(40, 150, config.batch_size).astype(int):
    places = rng.choice(6 * 12 * 12, count, replace=False)
    cells = np.stack(np.unravel_index(np.sort(places), (12, 12, 6)), axis=1)
    classes = np.minimum(cells[:, 2], 2)
    colors = 127.5 * (1 + rng.normal(size=(count, 3)) + classes[:, None])
    row = tables.tables(points.Pyramid.build(cells, 5), colors, bucket)
    row['windows'][count:] = padding
    row['labels'] = np.full(bucket[0], -1, np.int32)
    row['labels'][:count] = np.where(rng.random(count) < 0.1, -1, classes)
    rows.append(row)
  batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
  return batch | {'windows': batch['windows'].astype(dtype)}


@pytest.mark.slow
def test_nothing_depends_on_padding(config):
  config.model.param_dtype = 'float64'
  config.batch_size = 2
  with jax.enable_x64(True):
    task = tasks.create_task(config)
    variables = jax.jit(task.init)(jax.random.key(0))

    @jax.jit
    def learn(variables, batch):
      def loss(params):
        value, (_, updated) = task.loss(
          {**variables, 'params': params}, batch, jax.random.key(0), True
        )
        return value, updated

      return jax.value_and_grad(loss, has_aux=True)(variables['params'])

    tight = learn(variables, _batch(config, np.float64))
    wide = _batch(config, np.float64, (200, 104, 40, 24, 16), np.nan)
    for x, y in zip(jax.tree.leaves(tight), jax.tree.leaves(learn(variables, wide)), strict=True):
      bound = 1e-10 * max(jnp.abs(x).max(), 1)
      np.testing.assert_allclose(y, x, rtol=0, atol=bound)


@pytest.mark.parametrize(
  'sizes',
  [
    pytest.param((8, 1, 1, 1), marks=pytest.mark.slow),
    pytest.param((2, 2, 2, 1), marks=pytest.mark.extended),
  ],
  ids=str,
)
def test_loss_gradients_and_statistics_on_eight_devices_equal_those_of_one(
  config, assert_mesh_equals_one_device, sizes
):
  assert_mesh_equals_one_device(config, _batch, sizes)


@pytest.mark.slow
def test_bfloat16_learns_and_keeps_float32_parameters_and_statistics(
  config, assert_bfloat16_learns
):
  assert_bfloat16_learns(config, _batch)
