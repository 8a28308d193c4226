import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.conversion import convert, correspondence, fitting, mapping, opening
from crossattn_jax.conversion.systems import mmvit as rules
from crossattn_jax.conversion.systems import mmvit_start as start
from crossattn_jax.layers import resize
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.parity.systems.mmvit import adapters as mmvit_cases

REFERENCE = pathlib.Path(__file__).parents[2] / 'reference' / 'mmvit'


@functools.cache
def _template(model):
  image = jax.ShapeDtypeStruct((1, *model.image_size, model.num_channels), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)


def _recorded_shapes(case):
  state = json.loads((REFERENCE / f'{case}.json').read_text())['state']
  return {entry['key']: tuple(entry['shape']) for entry in state}


def _state(shapes):
  rng = np.random.RandomState(0)
  return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}


@pytest.mark.parametrize(
  ('case', 'name'),
  [
    ('mmvit_base_224', 'mmvit_base'),
    pytest.param('mmvit_base_audio', 'mmvit_base_audio', marks=pytest.mark.extended),
  ],
)
def test_every_key_is_read_and_written(case, name):
  shapes = _recorded_shapes(case)
  built = mapping.build_mapping(rules.MODEL, _template(models.create_model(name)), shapes)
  assert {entry.torch_key: entry.torch_shape for entry in built.entries} == shapes


def test_there_and_back_is_exact_to_the_bit():
  fields = {'embed_dim': 8, 'depths': (1, 1), 'cross_stages': (0, 1), 'num_classes': 3}
  model = models.create_model('mmvit_tiny', **fields)
  built = mapping.build_mapping(rules.MODEL, _template(model))
  state = _state({entry.torch_key: entry.torch_shape for entry in built.entries})
  back = built.to_torch(built.to_flax(state))
  assert list(back) == list(state)
  for key, value in state.items():
    np.testing.assert_array_equal(back[key], value)


def test_a_checkpoint_of_another_variant_is_refused_by_key():
  built = mapping.build_mapping(rules.MODEL, _template(models.create_model('mmvit_base_audio')))
  with pytest.raises(mapping.MappingError, match=r'unexpected: pos1 \(1, 784, 96\)'):
    built.check(_recorded_shapes('mmvit_base_224'))


# The template of a base model is there already.
@pytest.mark.parametrize(
  'name',
  [
    name if 'base' in name else pytest.param(name, marks=pytest.mark.extended)
    for name in models.list_models('mmvit*')
  ],
)
def test_every_registered_model_is_described(name):
  model = models.create_model(name)
  described = correspondence.describe_model(name, model)
  assert described.inputs['image'].shape == (1, model.num_channels, *model.image_size)
  mapping.build_mapping(described.rules, _template(model))


def test_a_checkpoint_converts_and_its_positions_are_resized():
  fields = {'embed_dim': 8, 'depths': (1, 1), 'cross_stages': (0, 1), 'image_size': (32, 32)}
  model = models.create_model('mmvit_tiny', **fields)
  built = mapping.build_mapping(rules.MODEL, _template(model))
  state = _state({entry.torch_key: entry.torch_shape for entry in built.entries})
  converted = convert.to_flax('mmvit_tiny', state, fields)
  qkv = converted.variables['params']['stage_1']['block_0']['view_1']['attention']['qkv']
  np.testing.assert_array_equal(
    qkv['kernel'].reshape(16, -1), state['stages.1.blocks.0.1.qkv.weight'].T
  )
  opened = opening.OpenedWeights('mmvit_tiny', converted.overrides, converted.variables)
  larger = fitting.refit(opened, overrides={'image_size': (64, 48)}).variables['params']
  assert larger['embedding_0']['positions'].shape == (1 + 16 * 12, 8)
  assert larger['embedding_1']['positions'].shape == (8 * 6, 8)


# A checkpoint of facebookresearch/mvit, as small as its names allow.
FIELDS = {
  'embed_dim': 8,
  'depths': (1, 2),
  'cross_stages': (0, 1),
  'image_size': (16, 16),
  'num_classes': 4,
}


def _mvit_shapes():
  shapes = {'patch_embed.proj.weight': (8, 3, 7, 7), 'patch_embed.proj.bias': (8,)}
  shapes['cls_token'] = (1, 1, 8)
  for i, (width, out) in enumerate(((8, 8), (8, 16), (16, 16), (16, 16))):
    block = {
      'norm1.weight': (width,),
      'norm1.bias': (width,),
      'attn.qkv.weight': (3 * out, width),
      'attn.qkv.bias': (3 * out,),
      'attn.proj.weight': (out, out),
      'attn.proj.bias': (out,),
      'attn.rel_pos_h': (7, 8),
      'attn.rel_pos_w': (7, 8),
      'norm2.weight': (out,),
      'norm2.bias': (out,),
      'mlp.fc1.weight': (4 * out, out),
      'mlp.fc1.bias': (4 * out,),
      'mlp.fc2.weight': (out, 4 * out),
      'mlp.fc2.bias': (out,),
    }
    for x in 'qkv':
      block[f'attn.pool_{x}.weight'] = (8, 1, 3, 3)
      block |= {f'attn.norm_{x}.{leaf}': (8,) for leaf in ('weight', 'bias')}
    if width != out:
      block |= {'proj.weight': (out, width), 'proj.bias': (out,)}
    shapes |= {f'blocks.{i}.{key}': shape for key, shape in block.items()}
  shapes |= {'norm.weight': (16,), 'norm.bias': (16,)}
  return shapes | {'head.projection.weight': (1000, 16), 'head.projection.bias': (1000,)}


@pytest.mark.extended
def test_the_fine_view_starts_from_mvit_and_the_fusion_changes_nothing():
  state = _state(_mvit_shapes())
  started = start.warm_start('mmvit_tiny', state, **FIELDS)
  params = started.variables['params']
  # Block 1 is where MViT changes the stage.
  np.testing.assert_array_equal(
    params['scale_0']['view_0']['skip']['kernel'], state['blocks.1.proj.weight'].T
  )
  np.testing.assert_array_equal(
    params['stage_1']['block_1']['view_0']['attention']['pool_key']['kernel'][:, :, 0].T,
    state['blocks.3.attn.pool_k.weight'][:, 0].transpose(0, 2, 1),
  )
  assert not np.any(params['cross_0']['mlp']['fc2']['kernel'])
  dropped = {line.torch_key for line in started.report if not line.flax_path}
  assert 'blocks.0.attn.rel_pos_h' in dropped
  assert 'blocks.2.attn.pool_q.weight' in dropped
  assert 'blocks.1.attn.pool_q.weight' not in dropped
  assert 'head.projection.weight' in dropped  # of another number of classes
  assert started.overrides['cross_zero_init']


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda state: state.pop('blocks.1.proj.weight'), 'missing: a key for scale_0/view_0/skip'),
    (
      lambda state: state.update({'blocks.2.attn.proj.bias': np.zeros(8)}),
      r'misshapen: blocks\.2\.attn\.proj\.bias is \(8,\), expected \(16,\)',
    ),
    (
      lambda state: state.update({'blocks.4.norm1.bias': np.zeros(8)}),
      r'unexpected: blocks\.4\.norm1\.bias',
    ),
  ],
  ids=['missing', 'misshapen', 'unexpected'],
)
def test_what_is_no_mvit_of_that_size_is_refused_by_key(change, message):
  state = _state(_mvit_shapes())
  change(state)
  with pytest.raises(mapping.MappingError, match=message):
    start.warm_start('mmvit_tiny', state, **FIELDS)


def test_an_audio_model_starts_from_an_image_model():
  fields = {'embed_dim': 8, 'depths': (1,), 'cross_stages': (0,)}
  saved = {'image_size': (16, 16), 'num_classes': 4, **fields}
  image_model = models.create_model('mmvit_tiny', **saved)
  rng = np.random.RandomState(0)
  variables = jax.tree.map(
    lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), _template(image_model)
  )
  weights = opening.OpenedWeights('mmvit_tiny', saved, variables)
  name, wanted = 'mmvit_base_audio', {'image_size': (16, 32), 'num_classes': 3}
  started = fitting.refit(weights, name, wanted)
  params, source = started.variables['params'], variables['params']
  np.testing.assert_allclose(
    params['patches_1']['kernel'][:, :, 0], source['patches_1']['kernel'].sum(2), rtol=1e-5
  )
  # The sum of row and column is the best such approximation of the resized table.
  table = resize.resize(source['embedding_0']['positions'][1:].reshape(4, 4, 8), (4, 8))
  sums = params['embedding_0']['rows'][:, None] + params['embedding_0']['columns'][None]
  np.testing.assert_allclose((table - sums).mean(0), 0, atol=1e-5)
  np.testing.assert_allclose((table - sums).mean(1), 0, atol=1e-5)
  cross = 'cross_0'
  np.testing.assert_array_equal(params[cross]['norm1']['scale'], source[cross]['norm1']['scale'])
  assert params['head']['kernel'].shape == (8, 3)
  with pytest.raises(mapping.MappingError, match='cross_0/norm1/scale'):
    fitting.refit(weights, name, {**wanted, 'embed_dim': 16})


def test_a_block_has_the_grid_of_its_case_or_is_refused(vary, compute):
  manifest = vary('mmvit/mvit_block_plain', {'grid': [4, 7]}, inputs={'x': (2, 29, 16)})
  outputs, _ = compute(manifest)
  assert outputs['out'].shape == (2, 29, 16)
  for changes in ({'grid': [4, 6]}, {'grid': [4, 7], 'cls': False}):
    with pytest.raises(arguments.ArgumentError, match='has not 29 tokens'):
      adapters.find_adapter(vary('mmvit/mvit_block_plain', changes, inputs={'x': (2, 29, 16)}))
  with pytest.raises(arguments.ArgumentError, match='rows and columns have the same stride'):
    adapters.find_adapter(vary('mmvit/mvit_block_plain', {'q_stride': [2, 1]}))


def test_keys_are_pooled_at_another_stride_by_rows_than_by_columns(vary, compute):
  """One stride for both, where a map of one column has no other."""
  column = {'grid': [7, 1]}, {'x': (2, 8, 16)}
  one, two, other = (
    compute(vary('mmvit/mvit_block_plain', column[0] | {'kv_stride': stride}, inputs=column[1]))[0]
    for stride in ([2, 2], [2, 1], [1, 2])
  )
  np.testing.assert_allclose(two['out'], one['out'], rtol=1e-12)
  assert not np.allclose(other['out'], one['out'])


def test_views_and_their_strides_are_the_case_s():
  c = {'views': [[5, 2, 2], [9, 4, 4]], 'kv_strides': [[2, 2], 1], 'input_size': [16, 24],
       'embed_dim': 16, 'n_self': [1, 0], 'num_classes': 3, 'mlp_ratio': 2}  # fmt: skip
  model = mmvit_cases._model(arguments.Arguments(c))
  assert model.grids() == ((8, 12), (4, 6))
  assert model.kv_strides == (2, 1)
  with pytest.raises(arguments.ArgumentError, match='views has a kernel of 5 with padding 1'):
    mmvit_cases._model(arguments.Arguments(c | {'views': [[5, 2, 1], [9, 4, 4]]}))
