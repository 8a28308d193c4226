"""CrossFormer trains from the one loop: on every mesh alike, in bfloat16."""

import pytest

from crossattn_jax import models


@pytest.fixture
def config(tiny_config):
  """Short and long distance attention on padded maps of 4 x 4."""
  with tiny_config.unlocked():
    tiny_config.model = models.model_config(
      'crossformer_pp_small',
      image_size=(16, 16),
      widths=(32,),
      depths=(2,),
      head_dim=4,
      group_sizes=(3,),
      intervals=(2,),
      num_classes=10,
      num_channels=1,
    )
  tiny_config.dataset.image_size = (16, 16)
  tiny_config.batch_size = 16
  tiny_config.sharding.fsdp_min_size = 256
  return tiny_config


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [(2, 2, 2, 1), (1, 8, 1, 1)], ids=str)
def test_loss_and_gradients_on_eight_devices_equal_those_of_one(
  config, image_batch, assert_mesh_equals_one_device, sizes
):
  assert_mesh_equals_one_device(config, image_batch, sizes)


@pytest.mark.slow
def test_bfloat16_learns_and_keeps_float32_parameters(config, image_batch, assert_bfloat16_learns):
  config.task.label_smoothing = 0.0
  assert_bfloat16_learns(config, image_batch)
