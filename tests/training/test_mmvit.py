"""MMViT trains from the one loop: on every mesh alike, and in bfloat16."""

from etils import epath
import pytest

from configs import mmvit_tones
from crossattn_jax import models
from crossattn_jax.training import loop


@pytest.fixture
def config(tiny_config):
  """One stage for 16 x 16 images."""
  with tiny_config.unlocked():
    tiny_config.model = models.model_config(
      'mmvit_tiny',
      image_size=(16, 16),
      embed_dim=8,
      num_heads=2,
      depths=(1,),
      cross_stages=(0,),
      num_classes=10,
      num_channels=1,
    )
  tiny_config.dataset.image_size = (16, 16)
  tiny_config.batch_size = 16
  tiny_config.sharding.fsdp_min_size = 64
  return tiny_config


# Of the second one: a scaled block, and a stage with a cross block only.
@pytest.mark.slow
@pytest.mark.parametrize(
  ('sizes', 'depths'),
  [((2, 2, 2, 1), (1,)), ((2, 2, 2, 1), (1, 0)), ((1, 8, 1, 1), (1, 0))],
  ids=str,
)
def test_loss_and_gradients_on_eight_devices_equal_those_of_one(
  config, image_batch, assert_mesh_equals_one_device, sizes, depths
):
  config.model.depths = depths
  config.model.cross_stages = tuple(range(len(depths)))
  assert_mesh_equals_one_device(config, image_batch, sizes)


@pytest.mark.slow
def test_bfloat16_learns_and_keeps_float32_parameters(config, image_batch, assert_bfloat16_learns):
  config.task.label_smoothing = 0.0
  assert_bfloat16_learns(config, image_batch)


@pytest.mark.slow
def test_sounds_are_learnt_from_the_one_loop(tmp_path):
  """A few steps on waveforms, evaluated, with the metric that keeps the best checkpoint."""
  config = mmvit_tones.get_config()
  config.model.update(image_size=(16, 32), embed_dim=8, depths=(1,), cross_stages=(0,))
  config.dataset.num_mel_bins, config.dataset.num_frames = 16, 32
  config.num_epochs, config.num_steps = None, 4
  config.schedule.warmup_epochs = 0.0
  config.evaluation.every_epochs = None
  loop.train(config, epath.Path(tmp_path))
  metrics = loop.evaluate(config, epath.Path(tmp_path))
  assert metrics['examples'] == 512
  assert 0.1 < metrics['mean_average_precision'] <= 1
