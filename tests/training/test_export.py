"""Exported models, run where this library cannot be imported."""

import functools
import json
import os
import pathlib
import runpy
import subprocess
import sys

from etils import epath
from flax import linen as nn
import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from configs import crossvit_imagenet
from crossattn_jax import kernels, models, training
from crossattn_jax.data.classification import batches as data
from crossattn_jax.models import registry, variables_io
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import export

ROOT = pathlib.Path(__file__).parents[2]

# Without this library: runs the script's own functions on random inputs, then the script itself.
OUTSIDE = """
import pathlib, runpy, sys
sys.modules['crossattn_jax'] = None
import numpy as np
folder, inputs, outputs, *images = sys.argv[1:]
sys.path.insert(0, folder)  # As python does for a script.
script = runpy.run_path(folder + '/load_and_run.py')
spec, model = script['load'](pathlib.Path(folder))
batches = {name: model({'image': x})['logits'] for name, x in np.load(inputs).items()}
pixels = {str(i): script['preprocess'](p, spec['preprocessing']) for i, p in enumerate(images)}
np.savez(outputs, **batches, **pixels)
sys.argv[1:] = images
runpy.run_path(folder + '/load_and_run.py', run_name='__main__')
"""


def small_config(image_size=(48, 40)):
  """An ImageNet experiment whose model compiles in seconds: resized and cropped RGB images."""
  config = crossvit_imagenet.get_config('crossvit_tiny_240')
  config.model.update(
    image_size=image_size,
    branch_scales=(1.0, 0.8),
    widths=(16, 32),
    num_heads=(2, 2),
    depths=((1, 1, 0),),
    num_classes=7,
    dtype='float32',
  )
  config.dataset.image_size = image_size
  config.dataset.name = 'not_at_hand'
  return config


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  """Config, model, variables, and the folder that they were exported to."""
  folder = tmp_path_factory.mktemp('export')
  config = small_config()
  model = models.create_model(**config.model)
  variables = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 48, 40, 3)))
  fields = {name: x for name, x in config.model.items() if x is not None and name != 'name'}
  variables_io.save_variables(folder / 'w.safetensors', variables, config.model.name, fields)
  config.weights = str(folder / 'w.safetensors')
  output = folder / 'exported'
  files = training.export_model(config, None, epath.Path(output))
  assert sorted(map(str, files)) == sorted(map(str, output.iterdir()))
  return config, model, variables, output


@pytest.fixture(scope='module')
def outside(exported, tmp_path_factory):
  """What a process without this library computed, and printed, for images and random inputs."""
  _, _, _, folder = exported
  work = tmp_path_factory.mktemp('outside')
  rng = np.random.default_rng(0)
  inputs = {f'batch{n}': rng.standard_normal((n, 48, 40, 3), np.float32) for n in (1, 5)}
  np.savez(work / 'inputs.npz', **inputs)
  images = []
  for i, (mode, size) in enumerate([('RGB', (101, 67)), ('RGB', (60, 95)), ('L', (30, 31))]):
    noise = rng.integers(0, 256, (*size[::-1], len(mode)), np.uint8).squeeze()
    images.append(work / f'{i}.png')
    Image.fromarray(noise, mode).resize(size).save(images[-1])
  # A photograph: matplotlib's own, 600 x 512.
  import matplotlib.cbook

  with matplotlib.cbook.get_sample_data('grace_hopper.jpg') as file:
    images.append(work / 'photograph.jpg')
    images[-1].write_bytes(file.read())
  deep = rng.integers(0, 2**16, (50, 70), np.uint16)
  images.append(work / 'deep.png')
  Image.fromarray(deep).save(images[-1])
  result = subprocess.run(
    [sys.executable, '-c', OUTSIDE, str(folder), str(work / 'inputs.npz'), str(work / 'o.npz')]
    + list(map(str, images)),
    cwd=work,
    env={name: value for name, value in os.environ.items() if name != 'PYTHONPATH'},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  return inputs, images, dict(np.load(work / 'o.npz')), result.stdout


@pytest.mark.parametrize('name', ['batch1', 'batch5'])
def test_logits_equal_the_models_at_any_batch_size(exported, outside, name):
  _, model, variables, _ = exported
  inputs, _, outputs, _ = outside
  expected, _ = jax.jit(model.apply)(variables, inputs[name])
  assert outputs[name].shape == (int(name.removeprefix('batch')), 7)
  np.testing.assert_allclose(outputs[name], expected, rtol=1e-5, atol=1e-6)


def test_the_script_prepares_images_as_evaluation_does(exported, outside):
  config = exported[0]
  _, images, outputs, _ = outside
  for i, path in enumerate(images):
    expected, _ = data.read_image(path, config.dataset)
    np.testing.assert_allclose(outputs[str(i)], expected, rtol=0, atol=1e-6, err_msg=str(path))


def test_the_script_prints_the_best_classes_of_each_image(outside):
  _, images, _, printed = outside
  lines = printed.splitlines()
  assert [line.split('  ')[0] for line in lines] == list(map(str, images))
  assert all(line.count('%') == 5 for line in lines)


def test_there_is_a_program_for_each_platform_with_an_open_batch_size(exported):
  folder = exported[3]
  spec = json.loads((folder / 'preprocessing.json').read_text())
  assert list(spec['programs']) == ['cpu', 'tpu', 'cuda']
  for platform, name in spec['programs'].items():
    program = jax_export.deserialize((folder / name).read_bytes())
    assert program.platforms == (platform,)
    assert str(program.out_avals[0].shape) == '(batch, 7)'
    assert len(program.module_kept_var_idx) == len(program.in_avals)
  assert spec['inputs'] == {'image': {'shape': ['batch', 48, 40, 3], 'dtype': 'float32'}}
  assert spec['outputs'] == {'logits': {'shape': ['batch', 7], 'dtype': 'float32'}}
  assert spec['classes'] == list('0123456')


def test_the_weights_are_a_variables_file_of_the_model(exported):
  _, model, variables, folder = exported
  saved = variables_io.load_variables(folder / 'weights.safetensors')
  assert models.create_model(saved.name, **saved.overrides) == model
  jax.tree.map(np.testing.assert_array_equal, saved.variables, jax.device_get(variables))


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_small_images_are_prepared_as_evaluation_does(tiny_config, tmp_path, monkeypatch, dtype):
  for folder in ('data', 'tasks'):  # What is beside an exported script.
    monkeypatch.syspath_prepend(ROOT / 'crossattn_jax' / folder)
  script = runpy.run_path(str(ROOT / 'crossattn_jax/tasks/classification/serving_script.py'))
  exif = Image.Exif()
  exif[0x0112] = 6  # Turned by 90 degrees.
  levels = np.linspace(0, 255 if dtype == np.uint8 else 65_535, 120).reshape(10, 12)
  Image.fromarray(levels.astype(dtype)).save(tmp_path / 'grey.tiff', exif=exif)
  tiny_config.dataset.decoding.levels = (1000, 50_000)
  steps = json.loads(json.dumps(data.describe_preprocessing(tiny_config.dataset)))
  expected, _ = data.read_image(tmp_path / 'grey.tiff', tiny_config.dataset)
  actual = script['preprocess'](tmp_path / 'grey.tiff', steps)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_the_batch_size_can_be_fixed(tmp_path, exported):
  files = export.export_model(
    exported[0], None, epath.Path(tmp_path), platforms=['tpu'], batch_size=4
  )
  program = jax_export.deserialize(files[0].read_bytes())
  assert program.out_avals[0].shape == (4, 7)
  assert json.loads((tmp_path / 'preprocessing.json').read_text())['batch_size'] == 4


class NeedsBatchSize(nn.Module):
  """A model whose graph depends on the number of examples."""

  num_classes: int = 7

  @nn.compact
  def __call__(self, image, train=False):
    del train
    scale = 1.0 if image.shape[0] > 3 else 2.0
    return nn.Dense(self.num_classes)(scale * image.mean(axis=(1, 2))), {}


@pytest.fixture(scope='module')
def needs_batch_size():
  name = 'test_export_needs_batch_size'
  registry.register(name, NeedsBatchSize)
  return name


# The smallest of each kind of model with classes.
CLASSIFIERS = [
  'biformer_stl',
  'biformer_tiny',
  'ccnet3d_resnet50',
  'ccnet_resnet50',
  'crossformer_pp_small',
  'crossformer_tiny',
  'crossvit_18_performer_240',
  'crossvit_18_t2t_240',
  'crossvit_9_dagger_240',
  'crossvit_tiny_240',
  'deeplabv3_resnet50',
  'maxvit_stl',
  'mmvit_base_audio',
  'mmvit_tiny',
  'pspnet_resnet50',
  'pyramid_tiny',
  'regnety_160',
  'resnet50_deep_stem',
  'swiftformer_xs',
]


@pytest.mark.extended
@pytest.mark.parametrize('name', CLASSIFIERS)
def test_every_kind_of_model_can_be_exported_for_any_batch_size(name):
  model = models.create_model(name)
  (batch,) = jax_export.symbolic_shape('batch')
  shape = (*model.image_size, getattr(model, 'num_channels', 3))
  variables = jax.eval_shape(
    model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  )
  forward = jax.jit(lambda variables, image: model.apply(variables, image)[0])
  for platform in export.PLATFORMS:
    program = jax_export.export(forward, platforms=[platform])(
      variables, jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    )
    *leading, classes = program.out_avals[0].shape
    assert (str(leading[0]), classes) == ('batch', model.num_classes)


def routed(rng, batch):
  query, key = (jnp.asarray(rng.standard_normal((batch, 9, 4, 16), np.float32)) for _ in range(2))
  routing = jnp.asarray(rng.integers(0, 9, (batch, 9, 2), np.int32))
  return functools.partial(kernels.routed_attention, num_heads=2), (query, key, key, routing)


def criss_cross(rng, batch):
  query, value = (
    jnp.asarray(rng.standard_normal((batch, 6, 5, channels), np.float32)) for channels in (8, 16)
  )
  return kernels.criss_cross_attention, (query, query, value)


@pytest.mark.parametrize('case', [routed, criss_cross])
@pytest.mark.parametrize('platform', export.PLATFORMS)
def test_kernels_can_be_exported_for_any_batch_size(case, platform):
  function, arguments = case(np.random.default_rng(0), 3)
  (batch,) = jax_export.symbolic_shape('batch')
  specs = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in arguments]
  program = jax_export.export(jax.jit(function), platforms=[platform])(*specs)
  assert str(program.out_avals[0].shape[0]) == 'batch'
  if platform == 'cpu':
    actual = jax_export.deserialize(program.serialize()).call(*arguments)
    expected = function(*arguments, implementation='reference')
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_fixed_batch_size_keeps_the_kernels():
  function, arguments = routed(np.random.default_rng(0), 3)
  program = jax_export.export(jax.jit(function), platforms=['tpu'])(*arguments)
  assert 'tpu_custom_call' in program.mlir_module()


@pytest.mark.parametrize(
  ('platforms', 'batch_size', 'message'),
  [
    (['cpu', 'gpu'], None, "unknown platform 'gpu'; did you mean 'cuda'?"),
    (['rocm'], None, 'known platforms: cpu, tpu, cuda'),
    ([], None, 'no platform'),
    (['cpu'], 0, 'must be positive'),
  ],
)
def test_wrong_arguments_are_refused_by_name(tmp_path, platforms, batch_size, message):
  with pytest.raises(export.ExportError, match=message.replace('?', r'\?')):
    export.export_model(
      small_config(), None, epath.Path(tmp_path / 'x'), platforms=platforms, batch_size=batch_size
    )
  assert not (tmp_path / 'x').exists()


def test_missing_weights_are_named(tmp_path):
  with pytest.raises(config_lib.ConfigError, match='--workdir'):
    export.export_model(small_config(), None, epath.Path(tmp_path / 'x'))
  with pytest.raises(FileNotFoundError, match='nothing_here'):
    export.export_model(
      small_config(), epath.Path(tmp_path / 'nothing_here'), epath.Path(tmp_path / 'x')
    )
  assert not (tmp_path / 'x').exists()


def test_a_model_that_needs_its_batch_size_is_refused_by_name(tmp_path, needs_batch_size):
  config = small_config()
  with config.unlocked():
    config.model = models.model_config(needs_batch_size)
  model = models.create_model(needs_batch_size)
  variables = model.init(jax.random.key(0), jnp.zeros((1, 48, 40, 3)))
  variables_io.save_variables(tmp_path / 'w.safetensors', variables, needs_batch_size)
  config.weights = str(tmp_path / 'w.safetensors')
  with pytest.raises(export.ExportError, match=f'{needs_batch_size} .* cpu .*--fixed_batch_size'):
    export.export_model(config, None, epath.Path(tmp_path / 'x'))
  files = export.export_model(config, None, epath.Path(tmp_path / 'x'), batch_size=2)
  assert len(files) == 8
