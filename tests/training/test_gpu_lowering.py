"""Every system's training step lowers for NVIDIA's GPUs, on a machine without one."""

import pathlib

import jax
import pytest

from crossattn_jax import parallel
from crossattn_jax.training import command_line, export, preflight

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'

# A quick experiment of each system, and whether kernels of this library are in its step.
RUNS = {
  'atfuse_shapes': False,
  'biformer_digits': True,
  'ccnet_shapes': True,
  'crossformer_digits': False,
  'crossvit_digits': False,
  'icafusion_shapes': False,
  'mask_rcnn_shapes': False,
  'minkunet_rooms:supervised': False,
  'minkunet_scannet': False,
  'mit_rooms': False,
  'mit_scannet': False,
  'mmca_shapes': False,
  'mmvit_digits': False,
  'retinanet_shapes': False,
  'semantic_fpn_shapes': False,
  'sketch_localizer_shapes': False,
  'swiftformer_digits': False,
}


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=getattr(pytest.mark, 'extended' if kernels else 'slow'))
    for name, kernels in RUNS.items()
  ],
)
def test_a_training_step_lowers_for_gpus(name):
  file, colon, argument = name.partition(':')
  config = command_line.read_file(str(CONFIGS / f'{file}.py{colon}{argument}'))
  mesh = parallel.create_mesh(devices=jax.devices()[:1])
  experiment = preflight.setup(config, mesh, with_data=False)
  with jax.set_mesh(mesh), export.lowering_for('cuda'):
    text = experiment.traced_step.lower(lowering_platforms=('cuda',)).as_text()
  assert ('__gpu$xla.gpu.triton' in text) == RUNS[name]
  assert 'tpu_custom_call' not in text
