import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.conversion import convert, correspondence, mapping, pretrained
from crossattn_jax.conversion.systems import biformer
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.parity.systems.biformer import adapters as biformer_cases

REFERENCE = pathlib.Path(__file__).parents[2] / 'reference' / 'biformer'


def _template(model):
  image = jax.ShapeDtypeStruct((1, *model.image_size, model.num_channels), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)


def _build(model, torch_shapes=None):
  return mapping.build_mapping(biformer.model_rules(model), _template(model), torch_shapes)


def _recorded_shapes(case):
  """The official state dict, buffers included."""
  state = json.loads((REFERENCE / f'{case}.json').read_text())['state']
  return {entry['key']: tuple(entry['shape']) for entry in state}


@pytest.mark.parametrize(
  ('case', 'name'),
  [
    ('biformer_tiny_224', 'biformer_tiny'),
    ('biformer_stl_224', 'biformer_stl'),
    ('biformer_stl_nchw_224', 'biformer_stl_nchw'),
  ],
)
def test_every_key_is_read_and_written_but_the_counters(case, name):
  shapes = _recorded_shapes(case)
  built = _build(models.create_model(name), shapes)
  kept = {k: s for k, s in shapes.items() if not k.endswith('num_batches_tracked')}
  assert {entry.torch_key: entry.torch_shape for entry in built.entries} == kept


def test_there_and_back_is_exact_to_the_bit():
  rng = np.random.RandomState(0)
  model = models.create_model(
    'biformer_stl_nchw', widths=(32, 64, 64, 64), depths=(1, 1, 1, 1), mlp_ratio=2
  )
  built = _build(model)
  state = {
    entry.torch_key: rng.standard_normal(entry.torch_shape).astype(np.float32)
    for entry in built.entries
  }
  back = built.to_torch(built.to_flax(state))
  assert list(back) == list(state)
  for key, value in state.items():
    np.testing.assert_array_equal(back[key], value)


def test_a_checkpoint_of_another_variant_is_refused_by_key():
  with pytest.raises(mapping.MappingError, match=r'unexpected: stages\.2\.8\.pos_embed\.weight'):
    _build(models.create_model('biformer_tiny')).check(_recorded_shapes('biformer_small_224'))
  with pytest.raises(mapping.MappingError, match=r'missing: .*attn\.qkv_linear\.weight'):
    _build(models.create_model('biformer_stl_nchw')).check(_recorded_shapes('biformer_stl_224'))


@pytest.mark.parametrize('name', [*models.list_models('biformer*'), 'maxvit_stl'])
def test_every_registered_model_is_described(name):
  model = models.create_model(name)
  described = correspondence.describe_model(name, model)
  assert described.inputs['image'].shape == (1, 3, 224, 224)
  assert described.heads == ('head',)
  mapping.build_mapping(described.rules, _template(model))


def test_a_dense_predictor_s_backbone_maps_its_own_norms():
  keys = set(_recorded_shapes('seg_backbone_small'))
  model = models.create_model(
    'biformer_small', backbone=True, padding='input', regions_per_side=(8,) * 4
  )
  written = {entry.torch_key for entry in _build(model).entries}
  assert written == {key for key in keys if not key.endswith('num_batches_tracked')}


def test_a_whole_checkpoint_converts_counters_and_all():
  rng = np.random.RandomState(0)
  state = {
    key: np.asarray(rng.standard_normal(shape), np.float32) if shape else np.int64(7)
    for key, shape in _recorded_shapes('biformer_tiny_224').items()
  }
  converted = convert.to_flax('biformer_tiny', state)
  kernel = converted.variables['params']['stage_2']['block_7']['mlp']['fc1']['kernel']
  np.testing.assert_array_equal(kernel, state['stages.2.7.mlp.0.weight'].T)
  mean = converted.variables['batch_stats']['norm']['mean']
  np.testing.assert_array_equal(mean, state['norm.running_mean'])
  dropped = {line.torch_key for line in converted.report if not line.flax_path}
  assert dropped == {key for key in state if key.endswith('num_batches_tracked')}


def test_official_weights_that_no_program_can_download_are_said_to_be_so():
  with pytest.raises(ValueError, match=r'biformer_small_in1k\.pth from https.*as source'):
    pretrained.load_pretrained('biformer_small')


def test_the_whole_constructor_makes_the_backbone():
  c = arguments.Arguments(
    {
      'depth': [1, 1, 1, 1],
      'embed_dim': [16, 32, 32, 64],
      'qk_dims': [8, None, 32, 64],
      'head_dim': 8,
      'topks': [2, 3, 0, -2],
      'n_win': 4,
      'mlp_ratios': [2, 3, 4, 1],
      'kv_downsample_mode': 'ada_avgpool',
      'kv_per_wins': [2, 1, -1, -1],
      'side_dwconv': 3,
      'param_attention': 'qkv',
      'mlp_dwconv': True,
      'before_attn_dwconv': 0,
      'layer_scale_init_value': 0.1,
      'soft_routing': True,
      'auto_pad': True,
    }
  )
  model = biformer_cases.build_model(c, 'biformer_small', backbone=True)
  c.check()
  assert model.options.kv_pool_sizes == (2, 1, 1, 1)
  shapes = {entry.torch_key: entry.torch_shape for entry in _build(model).entries}
  assert [shapes[f'stages.{s}.0.mlp.0.weight'][0] for s in range(4)] == [32, 96, 128, 64]
  assert shapes['stages.0.0.attn.qkv.qkv.weight'] == (2 * 8 + 16, 16)
  assert shapes['stages.0.0.attn.lepe.weight'] == (16, 1, 3, 3)
  assert shapes['stages.2.0.attn.2.weight'] == (32, 1, 5, 5)
  assert 'stages.3.0.attn.proj.weight' in shapes
  assert {'stages.0.0.attn.wo.weight', 'stages.0.0.pos_embed.weight'}.isdisjoint(shapes)
  assert {'stages.0.0.gamma1', 'stages.0.0.mlp.1.dwconv.weight'} <= set(shapes)


@pytest.mark.parametrize(
  ('case', 'changes', 'message'),
  [
    ('block_bra', {'diff_routing': True}, 'param_routing, diff_routing, soft_routing is'),
    ('block_bra', {'kv_downsample_mode': 'fracpool'}, "kv_downsample_mode is 'fracpool'"),
    ('block_bra', {'before_attn_dwconv': 5}, 'before_attn_dwconv is 5'),
    ('bra_nhwc_basic', {'shift': 2}, 'does not know shift'),
    ('biformer_tiny_224', {'pe': 'sine'}, "pe is 'sine'"),
  ],
)
def test_what_the_original_cannot_do_either_is_refused_by_name(vary, case, changes, message):
  with pytest.raises(arguments.ArgumentError, match=message):
    adapters.find_adapter(vary(f'biformer/{case}', changes))


def test_what_a_case_does_not_say_is_what_its_class_has(vary, compute):
  """Blocks pool to four positions a side, attention alone does not pool."""
  small = {'n_win': 1, 'topk': 1, 'auto_pad': False}
  said = {'kv_downsample_mode': 'ada_avgpool', 'kv_per_win': 4}
  manifests = [vary('biformer/block_bra', small | said) for _ in range(3)]
  for name in said:
    del manifests[1]['constructor'][name]
  manifests[2]['constructor']['kv_per_win'] = 3
  expected, silent, other = (compute(manifest)[0]['y'] for manifest in manifests)
  np.testing.assert_array_equal(silent, expected)
  assert not np.allclose(other, expected)
  c = arguments.Arguments({})
  assert biformer_cases.pooling(c) == 'none'
  assert biformer_cases.maxvit_window(arguments.Arguments({'grid_window_size': 8})) == 8


def test_logits_of_a_map_in_nchw_are_not_scaled_whatever_the_scale(vary, compute):
  one, two = (
    compute(vary('biformer/bra_nchw_ragged', {'qk_scale': scale}))[0]['route_logit']
    for scale in (0.5, 2.0)
  )
  np.testing.assert_allclose(one, two, rtol=1e-10)


def test_global_attention_has_heads_scale_and_bias_of_the_case(vary, compute):
  manifest = vary('biformer/attention_vanilla', {'num_heads': 4, 'qk_scale': 0.0, 'qkv_bias': True})
  manifest['state'].insert(
    1, {'key': 'qkv.bias', 'shape': [96], 'kind': 'param', 'mean': 0.0, 'std': 1.0}
  )
  out = compute(manifest)[0]['y']
  # Without scores every place gets the mean value.
  np.testing.assert_allclose(out, np.broadcast_to(out[:, :1, :1], out.shape), atol=1e-12)


def test_attention_that_enhances_values_has_the_original_s_side(vary):
  """The official block of two maps' layout says no side to it, whatever `side_dwconv` is."""
  changes = {'topk': -1, 'side_dwconv': 3}
  manifest = vary('biformer/stl_block_nchw', changes, without=['attn.qkv_linear.bias'])
  for entry in manifest['state']:
    entry['key'] = entry['key'].replace('qkv_linear', 'qkv').replace('output_linear', 'proj')
  adapter = adapters.find_adapter(manifest)
  shapes = {entry.torch_key: entry.torch_shape for entry in adapter.mapping.entries}
  assert shapes['attn.lepe.weight'] == (32, 1, 5, 5)
