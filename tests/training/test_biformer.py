"""BiFormer trains from the one loop: on every mesh alike, in bfloat16, with its statistics."""

import pytest

from crossattn_jax import models


@pytest.fixture
def config(tiny_config):
  """A routed and a global stage for 16 x 16 images."""
  with tiny_config.unlocked():
    tiny_config.model = models.model_config(
      'biformer_tiny',
      image_size=(16, 16),
      widths=(16, 32),
      depths=(1, 1),
      attentions=('routed', 'global'),
      top_k=(2, 0),
      regions_per_side=(2, 2),
      kv_pool_sizes=(1, 1),
      head_dim=4,
      global_heads=4,
      lepe_side=3,
      num_classes=10,
      num_channels=1,
    )
  tiny_config.dataset.image_size = (16, 16)
  tiny_config.batch_size = 16
  tiny_config.sharding.fsdp_min_size = 256
  return tiny_config


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [(2, 2, 2, 1), (1, 8, 1, 1)], ids=str)
def test_loss_gradients_and_statistics_on_eight_devices_equal_those_of_one(
  config, image_batch, assert_mesh_equals_one_device, sizes
):
  assert_mesh_equals_one_device(config, image_batch, sizes)


@pytest.mark.slow
def test_bfloat16_learns_and_keeps_float32_parameters_and_statistics(
  config, image_batch, assert_bfloat16_learns
):
  config.task.label_smoothing = 0.0
  assert_bfloat16_learns(config, image_batch)
