"""Models as ONNX programs: what is written out computes the same, and onnxruntime runs it."""

import json
import os
import subprocess
import sys

from etils import epath
import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from configs import crossvit_imagenet
from crossattn_jax import kernels, models
from crossattn_jax.models import variables_io
from crossattn_jax.training import export, onnx_program

# Two or more stages of each system, as small as they get.
MODELS = {
  'biformer_tiny': {
    'image_size': (16, 16),
    'widths': (16, 32),
    'depths': (1, 1),
    'attentions': ('routed', 'global'),
    'top_k': (2, 0),
    'regions_per_side': (2, 2),
    'kv_pool_sizes': (1, 1),
    'head_dim': 4,
    'global_heads': 4,
    'lepe_side': 3,
    'implementation': 'reference',
  },
  'crossformer_small': {
    'image_size': (32, 32),
    'widths': (16, 32),
    'depths': (1, 1),
    'head_dim': 4,
    'group_sizes': (3, 4),
    'intervals': (2, 1),
  },
  'crossvit_tiny_240': {
    'image_size': (48, 40),
    'branch_scales': (1.0, 0.8),
    'widths': (16, 32),
    'num_heads': (2, 2),
    'depths': ((1, 1, 0),),
  },
  'mmvit_tiny': {'image_size': (16, 16), 'embed_dim': 8, 'depths': (1, 1), 'cross_stages': (0, 1)},
  'swiftformer_xs': {'image_size': (32, 32), 'widths': (8, 12), 'depths': (1, 1)},
}
RESNET = {'depths': (1, 1, 1, 1), 'widths': (4, 4, 8, 16), 'stem_widths': (4, 4, 8)}


def variables_of(model, shape):
  """Random variables, compiling nothing."""
  rng = np.random.default_rng(0)
  image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  variables = jax.tree.map(
    lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), leaf.dtype),
    jax.eval_shape(model.init, jax.random.key(0), image),
  )
  if 'batch_stats' in variables:  # Variances are positive.
    variables['batch_stats'] = jax.tree.map(lambda x: 1 + abs(x), variables['batch_stats'])
  return variables


def function_of(name, **fields):
  """A model as a function of named arrays, and the shape of its image."""
  model = models.create_model(name, **fields)
  shape = (*model.image_size, 3)
  variables = variables_of(model, shape)
  return lambda inputs: {'logits': model.apply(variables, inputs['image'])[0]}, shape


def convert(function, shape):
  (batch,) = jax_export.symbolic_shape('batch')
  spec = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
  return onnx_program.convert(function, {'image': spec})


def loops_and_windows(inputs):
  """What is written in other operations: a carried loop, an independent one, padding, maxima."""
  x = inputs['image']
  total, partial = jax.lax.scan(
    lambda total, row: (total + row, total * row), x[0], x, reverse=True
  )
  squares = jax.lax.map(lambda row: jnp.sin(row) ** 2, x)
  padded = jnp.pad(x, ((0, 0), (2, 0), (1, 3), (0, 0)), constant_values=3.0)
  cut = jax.lax.pad(x, 0.0, ((0, 0, 0), (-1, 2, 0), (0, -2, 0), (0, 0, 0)))
  pooled = jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 0), (0, 0))
  )
  by_platform = jax.lax.platform_dependent(x, tpu=jnp.cos, default=jnp.tanh)
  names = ('total', 'partial', 'squares', 'padded', 'cut', 'pooled', 'tanh')
  arrays = (total, partial, squares, padded, cut, pooled, by_platform)
  return dict(zip(names, arrays, strict=True))


def test_what_is_written_out_computes_the_same_without_loops_and_windows():
  image = np.random.default_rng(0).standard_normal((3, 7, 8, 2), np.float32)
  spec = {'image': jax.ShapeDtypeStruct(image.shape, image.dtype)}
  closed = onnx_program.written_out(loops_and_windows, spec)
  names = {equation.primitive.name for equation in closed.jaxpr.eqns}
  assert not names & {'scan', 'pad', 'reduce_window_max', 'cond', 'platform_index', 'cos'}
  wanted = loops_and_windows({'image': image})
  found = jax.jit(jax.extend.core.jaxpr_as_fun(closed))(image)
  for name, values in zip(sorted(wanted), found, strict=True):
    np.testing.assert_allclose(values, wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_kernels_have_the_form_for_any_platform():
  rng = np.random.default_rng(0)
  specs = {name: jax.ShapeDtypeStruct((2, 4, 5, 8), jnp.float32) for name in ('key', 'query')}
  arrays = [rng.standard_normal(spec.shape, np.float32) for spec in specs.values()]

  def attend(inputs):
    query, key = inputs['query'], inputs['key']
    return {'out': kernels.criss_cross_attention(query, key, key)}

  closed = onnx_program.written_out(attend, specs)
  assert not {equation.primitive.name for equation in closed.jaxpr.eqns} & {'pallas_call', 'cond'}
  key, query = arrays
  (found,) = jax.extend.core.jaxpr_as_fun(closed)(key, query)
  wanted = kernels.criss_cross_attention(query, key, key, implementation='reference')
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(export.ExportError, match=r"pip install 'crossattn_jax\[onnx\]'"):
    export.export_model(
      crossvit_imagenet.get_config(), None, epath.Path(tmp_path), formats=['onnx']
    )


# `convert` itself compares onnxruntime's numbers with jax's.
@pytest.mark.parametrize(
  'name',
  # MMViT's graph is the largest, and jax2onnx takes a time that grows with its square.
  [
    pytest.param(x, marks=getattr(pytest.mark, 'slow' if 'mmvit' in x else 'torch')) for x in MODELS
  ],
)
def test_classifiers_become_programs_for_any_batch_size(name):
  pytest.importorskip('jax2onnx')
  onnxruntime = pytest.importorskip('onnxruntime')
  function, shape = function_of(name, num_classes=5, **MODELS[name])
  session = onnxruntime.InferenceSession(convert(function, shape))
  assert [(x.name, x.shape) for x in session.get_inputs()] == [('image', ['batch', *shape])]
  images = np.random.default_rng(3).standard_normal((4, *shape), np.float32)
  (found,) = session.run(['logits'], {'image': images})
  wanted = np.asarray(function({'image': images})['logits'])
  assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.torch
@pytest.mark.parametrize(
  ('name', 'fields'),
  [
    ('ccnet_resnet50', RESNET | {'image_size': (33, 41), 'implementation': 'reference'}),
    ('swiftformer_xs+semantic_fpn', {'image_size': (64, 64), 'depths': (1, 1, 1, 1)}),
    ('swiftformer_xs+upernet', {'image_size': (64, 64), 'depths': (1, 1, 1, 1)}),
  ],
  ids=lambda x: x if isinstance(x, str) else '',
)
def test_segmentation_becomes_a_program_for_any_batch_size(name, fields):
  pytest.importorskip('jax2onnx')
  pytest.importorskip('onnxruntime')
  assert convert(*function_of(name, num_classes=5, **fields))


# Without jax and this library.
OUTSIDE = """
import runpy, sys
sys.modules |= {'jax': None, 'crossattn_jax': None}
sys.path.insert(0, sys.argv[1])  # As python does for a script.
script = sys.argv.pop(1) + '/load_and_run.py'
runpy.run_path(script, run_name='__main__')
"""


def crossvit_config(folder):
  """An experiment whose config computes in bfloat16, and its model and variables."""
  config = crossvit_imagenet.get_config('crossvit_tiny_240')
  config.model.update(num_classes=7, dtype='bfloat16', **MODELS['crossvit_tiny_240'])
  config.dataset.image_size = config.model.image_size
  model = models.create_model(**{**config.model, 'dtype': 'float32'})
  variables = variables_of(model, (48, 40, 3))
  fields = {name: x for name, x in config.model.items() if x is not None and name != 'name'}
  variables_io.save_variables(folder / 'w.safetensors', variables, config.model.name, fields)
  config.weights = str(folder / 'w.safetensors')
  return config, model, variables


@pytest.mark.torch
def test_the_script_needs_onnxruntime_alone_and_computes_in_float32(tmp_path):
  pytest.importorskip('jax2onnx')
  onnxruntime = pytest.importorskip('onnxruntime')
  config, model, variables = crossvit_config(tmp_path)
  output = tmp_path / 'exported'
  files = export.export_model(config, None, epath.Path(output), formats=['onnx'])
  assert sorted(map(str, files)) == sorted(map(str, output.iterdir()))
  spec = json.loads((output / 'preprocessing.json').read_text())
  assert (spec['programs'], 'weights' in spec) == ({'onnx': 'model.onnx'}, False)
  assert spec['inputs']['image']['shape'] == ['batch', 48, 40, 3]
  assert spec['outputs']['logits']['shape'] == ['batch', 7]
  session = onnxruntime.InferenceSession(output / 'model.onnx')
  image = np.random.default_rng(1).standard_normal((1, 48, 40, 3), np.float32)
  (found,) = session.run(None, {'image': image})
  np.testing.assert_allclose(found, model.apply(variables, image)[0], rtol=1e-4, atol=1e-5)
  Image.effect_noise((60, 50), 90).save(tmp_path / 'photo.png')
  result = subprocess.run(
    [sys.executable, '-c', OUTSIDE, str(output), str(tmp_path / 'photo.png')],
    env={name: value for name, value in os.environ.items() if name != 'PYTHONPATH'},
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  assert result.stdout.count('%') == 5


@pytest.mark.extended
def test_what_has_no_form_in_onnx_is_refused_in_a_sentence(tmp_path, monkeypatch):
  monkeypatch.setattr(onnx_program, 'check_installed', lambda: None)
  monkeypatch.setattr('crossattn_jax.tasks.classifier.Serving.onnx', False)
  config, _, _ = crossvit_config(tmp_path)
  with pytest.raises(export.ExportError, match='ONNX: that is for classifiers and segmentation'):
    export.export_model(config, None, epath.Path(tmp_path / 'x'), formats=['onnx'])


@pytest.mark.parametrize(
  ('formats', 'message'), [(['onx'], "did you mean 'onnx'"), ([], 'no format to export to')]
)
def test_wrong_formats_are_refused_by_name(tmp_path, formats, message):
  with pytest.raises(export.ExportError, match=message):
    export.export_model(
      crossvit_imagenet.get_config(), None, epath.Path(tmp_path / 'x'), formats=formats
    )
