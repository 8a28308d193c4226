"""State dicts there and back; starts from files of Swin, of ViDT and of classifiers of sketches."""

import json
import pathlib
import re

from flax import traverse_util
import numpy as np
import pytest
import safetensors.numpy

from crossattn_jax.conversion import (
  convert,
  correspondence,
  fitting,
  mapping,
  opening,
  recognition,
)
from crossattn_jax.conversion.systems import sketch_localizer
from crossattn_jax.models import registry

REFERENCE = pathlib.Path(__file__).parents[2] / 'reference' / 'sketch_localizer'
NAME = 'sketch_localizer_tiny'
TINY = {
  'image_size': (64, 64),
  'sketch_size': 32,
  'width': 32,
  'depths': (1, 2, 1, 1),
  'num_heads': (1, 1, 2, 2),
  'window': 2,
  'mlp_ratio': 1,
  'num_queries': 4,
  'channels': 32,
  'num_layers': 1,
  'decoder_heads': 2,
  'decoder_hidden': 8,
  'fusion_heads': 2,
  'fusion_hidden': 8,
  'first_level': 1,
  'sketch_depths': (1, 1, 1, 1),
  'sketch_widths': (8, 8, 8, 8),
}


@pytest.fixture(scope='module')
def whole():
  """A state dict of the original, each array of numbers of its own."""
  converter, _ = correspondence.model_mapping(NAME, registry.create_model(NAME, **TINY))
  random = np.random.default_rng(0)
  return {
    entry.torch_key: random.normal(size=entry.torch_shape).astype(np.float32)
    for entry in converter.entries
  }


def swin(whole):
  """Swin's classifier with the numbers of the backbone; its last stage merges nothing."""
  kept = r'backbone\.(patch_embed|layers)\.(?!3\.downsample|.*det_pos_linear).*'
  state = {k.removeprefix('backbone.'): x for k, x in whole.items() if re.fullmatch(kept, k)}
  return state | {
    'layers.1.blocks.1.attn_mask': np.zeros((4, 4, 4), np.float32),
    'layers.1.blocks.1.attn.relative_position_index': np.zeros((4, 4), np.int64),
    'norm.weight': np.ones(256, np.float32),
    'norm.bias': np.ones(256, np.float32),
    'head.weight': np.ones((10, 256), np.float32),
    'head.bias': np.ones(10, np.float32),
  }


def vidt(whole):
  """A detector of 91 classes that knows no sketches."""
  kept = r'backbone\.(patch_embed|layers|det_).*|'
  kept += r'(transformer|bbox_embed|(input|tgt|query_pos)_proj)\..*'
  state = {k: x for k, x in whole.items() if re.fullmatch(kept, k)}
  state |= {f'transformer.decoder.{k}': x for k, x in state.items() if k.startswith('bbox_embed.')}
  return state | {
    'transformer.level_embed': np.zeros((4, 32), np.float32),
    'class_embed.0.weight': np.zeros((91, 32), np.float32),
    'class_embed.0.bias': np.zeros(91, np.float32),
  }


def sketch_classifier(whole):
  """A classifier of sketches, as its script saves it."""
  prefix = 'sketch_embedding.'
  state = {k.removeprefix(prefix): x for k, x in whole.items() if k.startswith(prefix)}
  state |= {'fc.weight': np.zeros((5, 32), np.float32), 'fc.bias': np.zeros(5, np.float32)}
  return {f'module.model.{key}': x for key, x in state.items()}


def write(path, state):
  safetensors.numpy.save_file(state, path)
  return str(path)


def opened_and_fitted(source):
  opened = opening.open_weights(source, NAME, TINY)
  module = registry.create_model(NAME, **TINY)
  return opened, fitting.fit(opened, NAME, module, fitting.template(NAME, module))


def expected(whole):
  """The arrays of a whole file by their paths."""
  converter, _ = correspondence.model_mapping(NAME, registry.create_model(NAME, **TINY))
  return traverse_util.flatten_dict(dict(converter.to_flax(whole)), sep='/')


def test_a_state_dict_comes_back_whatever_else_the_original_has(tmp_path, whole):
  variables = convert.to_flax(NAME, whole, TINY).variables
  state = convert.to_torch(NAME, variables, TINY)
  for key, x in whole.items():
    np.testing.assert_array_equal(state[key], x)
  twice = 'bbox_embed.1.layers.2.bias'
  np.testing.assert_array_equal(state[f'transformer.decoder.{twice}'], whole[twice])
  assert not state['sketch_proj_query.weight'].any()
  np.testing.assert_array_equal(
    state['backbone.layers.0.blocks.0.attn.relative_position_index'],
    [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]],
  )
  # As a run on several devices has saved it; its depths and queries tell themselves.
  path = write(tmp_path / 'checkpoint.safetensors', {f'module.{k}': x for k, x in state.items()})
  told = ('depths', 'num_heads', 'num_queries', 'num_layers', 'width')
  opened = opening.open_weights(path, NAME, {k: x for k, x in TINY.items() if k not in told})
  assert {field: opened.overrides[field] for field in told} == {k: TINY[k] for k in told}
  again = traverse_util.flatten_dict(dict(opened.variables), sep='/')
  for name, x in expected(whole).items():
    np.testing.assert_array_equal(again[name], x)


@pytest.mark.extended
@pytest.mark.parametrize(
  ('case', 'name', 'fields'),
  [
    (
      'locformer_small_trainable_fusion_k3',
      'sketch_localizer_tiny',
      {'depths': (1, 2, 1, 1), 'num_queries': 12, 'sketch_fusion': 'trainable'},
    ),
    ('locformer_swin_small_352x608_fwd', 'sketch_localizer_small', {'depths': (2, 2, 18, 2)}),
  ],
)
def test_what_is_written_is_what_the_original_has(case, name, fields):
  entries = json.loads((REFERENCE / f'{case}.json').read_text())['state']
  shapes = {entry['key']: tuple(entry['shape']) for entry in entries}
  told, converter = recognition.match(name, shapes, {})
  assert told.items() >= fields.items()
  converter.check(shapes)
  state = {x.torch_key: np.broadcast_to(np.float32(0), x.torch_shape) for x in converter.entries}
  state |= sketch_localizer.besides(registry.create_model(name, **told), state)
  written = {key: x.shape for key, x in state.items()}
  # A counter is no part of what a strict `load_state_dict` wants.
  assert written == {k: x for k, x in shapes.items() if not k.endswith('num_batches_tracked')}


@pytest.mark.extended
@pytest.mark.parametrize(
  ('make', 'taken', 'not_taken'),
  [
    (
      swin,
      r'params/backbone/(stem/.*|stage_\d/block_\d/(?!det_position).*|stage_[0-2]/merging/.*)',
      r'params/backbone/(cross_attention_.*|det_.*|.*/det_position/.*|stage_3/merging/.*)',
    ),
    (
      vidt,
      r'params/(backbone/(?!cross_attention).*|(map|query|position)_projection.*|decoder.*|boxes.*)',
      r'params/(backbone/cross_attention.*|head.*|sketch_.*)|batch_stats/.*',
    ),
    (sketch_classifier, r'\w+/sketch_encoder/.*', r'params/(?!sketch_encoder).*'),
  ],
  ids=lambda x: getattr(x, '__name__', ''),
)
def test_what_a_network_has_is_taken_and_the_rest_starts_fresh(
  tmp_path, whole, make, taken, not_taken
):
  opened, fitted = opened_and_fitted(write(tmp_path / 'start.safetensors', make(whole)))
  assert opened.name == NAME
  arrays = expected(whole)
  assert set(fitted.arrays) == {path for path in arrays if re.fullmatch(taken, path)}
  assert set(fitted.fresh) == arrays.keys() - set(fitted.arrays)
  assert all(re.fullmatch(not_taken, path) for path in fitted.fresh if 'backbone' in path)
  for path, array in fitted.arrays.items():
    np.testing.assert_array_equal(array, arrays[path], err_msg=path)


def test_several_files_start_several_parts(tmp_path, whole):
  files = [
    write(tmp_path / f'{make.__name__}.safetensors', make(whole))
    for make in (swin, sketch_classifier)
  ]
  opened, fitted = opened_and_fitted(','.join(files))
  assert 'Swin' in opened.told
  assert 'ResNet' in opened.told
  tops = {path.split('/')[1] for path in fitted.arrays}
  assert tops == {'backbone', 'sketch_encoder'}
  assert 'params/decoder/point/kernel' in fitted.fresh


@pytest.mark.extended
def test_two_files_of_one_part_are_refused(tmp_path, whole):
  files = [write(tmp_path / f'{f.__name__}.safetensors', f(whole)) for f in (swin, vidt)]
  with pytest.raises(mapping.MappingError, match='another of the files has too'):
    opening.open_weights(','.join(files), NAME, TINY)


@pytest.mark.extended
def test_what_a_start_lacks_is_said(tmp_path, whole):
  state = swin(whole)
  del state['layers.1.blocks.0.attn.qkv.bias']
  path = write(tmp_path / 'damaged.safetensors', state)
  with pytest.raises(mapping.MappingError, match=r'missing: layers\.1\.blocks\.0\.attn\.qkv\.bias'):
    opening.open_weights(path, NAME, TINY)


@pytest.mark.extended
def test_a_deeper_start_is_refused(tmp_path, whole):
  state = swin(whole)
  state['layers.2.blocks.1.norm1.weight'] = state['layers.2.blocks.0.norm1.weight']
  path = write(tmp_path / 'deeper.safetensors', state)
  with pytest.raises(mapping.MappingError, match=r'unexpected: layers\.2\.blocks\.1\.norm1'):
    opening.open_weights(path, NAME, TINY)
