import json
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.conversion import correspondence, mapping, pretrained, reading
from crossattn_jax.conversion.systems import crossformer
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.parity.systems.crossformer import adapters as crossformer_cases
from crossattn_jax.parity.systems.crossformer import modules

REFERENCE = pathlib.Path(__file__).parents[2] / 'reference' / 'crossformer'


def _template(model):
  image = jax.ShapeDtypeStruct((1, *model.image_size, model.num_channels), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)


def _build(model, torch_shapes=None):
  return mapping.build_mapping(crossformer.model_rules(model), _template(model), torch_shapes)


def _recorded_shapes(case):
  state = json.loads((REFERENCE / f'{case}.json').read_text())['state']
  return {entry['key']: tuple(entry['shape']) for entry in state}


def _small(**fields):
  """A model with every kind of part, cooling included."""
  return models.create_model(
    'crossformer_pp_small', widths=(32, 64), depths=(4, 1), group_sizes=(4, 4), intervals=(2, 1),
    image_size=(32, 32), **fields,
  )  # fmt: skip


def _state(built, seed=0):
  rng = np.random.RandomState(seed)
  return {
    entry.torch_key: rng.standard_normal(entry.torch_shape).astype(np.float32)
    for entry in built.entries
  }


def test_every_key_of_the_official_model_is_read_and_written():
  shapes = _recorded_shapes('cls_pp_small_224')
  built = _build(models.create_model('crossformer_pp_small'), shapes)
  assert {entry.torch_key: entry.torch_shape for entry in built.entries} == shapes
  assert [entry.torch_key for entry in built.entries] == list(shapes)


def test_there_and_back_is_exact_to_the_bit():
  built = _build(_small())
  state = _state(built)
  back = built.to_torch(built.to_flax(state))
  assert list(back) == list(state)
  for key, value in state.items():
    np.testing.assert_array_equal(back[key], value)


def test_a_checkpoint_of_another_variant_is_refused_by_key():
  built = _build(_small())
  shapes = {entry.torch_key: entry.torch_shape for entry in built.entries}
  plain = {key: shape for key, shape in shapes.items() if '.ex_' not in key}
  with pytest.raises(mapping.MappingError, match=r'missing: layers\.0\.blocks\.2\.ex_conv\.weight'):
    built.check(plain)
  with pytest.raises(mapping.MappingError, match=r'unexpected: layers\.0\.blocks\.2\.ex_ln\.bias'):
    _build(_small(cooling=False)).check(shapes)
  with pytest.raises(mapping.MappingError, match=r'misshapen: patch_embed\.projs\.3\.weight'):
    built.check(shapes | {'patch_embed.projs.3.weight': (8, 3, 32, 32)})


def test_buffers_of_the_first_release_are_dropped():
  built = _build(_small())
  state = _state(built)
  old = {
    'layers.0.blocks.0.attn.biases': np.zeros((49, 2), np.float32),
    'layers.0.blocks.0.attn.relative_position_index': np.zeros((16, 16), np.int64),
  }
  for new, kept in zip(
    jax.tree.leaves(built.to_flax(state | old)), jax.tree.leaves(built.to_flax(state)), strict=True
  ):
    np.testing.assert_array_equal(new, kept)


@pytest.mark.parametrize('lda', ['region', 'global'])
def test_dense_predictors_start_from_a_classifier_s_weights(lda):
  state = _state(_build(_small()))
  backbone = _build(_small(backbone=True, lda=lda))
  variables = backbone.to_flax(state)
  assert set(variables['params']) == {'embedding', 'stage_0', 'downsampling_1', 'stage_1'}
  assert set(backbone.to_torch(variables)) == {
    key for key in state if key.split('.')[0] not in ('norm', 'head')
  }


def test_every_registered_model_is_described():
  for name in models.list_models('crossformer_*'):
    described = correspondence.describe_model(name, models.create_model(name))
    assert described.inputs['image'].shape == (1, 3, 224, 224)
    assert described.heads == ('head',)


@pytest.mark.torch
def test_official_files_are_read_without_their_configuration_s_library(tmp_path, monkeypatch):
  """They hold the configuration as an object of yacs, beside the weights."""
  import torch

  module = types.ModuleType('yacs.config')

  class CfgNode(dict):
    def __init__(self, content):
      super().__init__(content)
      self.__dict__['__immutable__'] = True

  CfgNode.__module__, CfgNode.__qualname__ = 'yacs.config', 'CfgNode'
  module.CfgNode = CfgNode
  monkeypatch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
  monkeypatch.setitem(sys.modules, 'yacs.config', module)
  built = _build(_small())
  state = _state(built)
  path = tmp_path / 'crossformer-s.pth'
  torch.save(
    {
      'model': {key: torch.from_numpy(value) for key, value in state.items()},
      'config': CfgNode({'MODEL': CfgNode({'NAME': 'small', 'DEPTHS': [2, 2]})}),
      'epoch': 299,
      'max_accuracy': 82.5,
    },
    path,
  )
  monkeypatch.delitem(sys.modules, 'yacs.config')
  monkeypatch.delitem(sys.modules, 'yacs')
  read = reading.read_checkpoint(path).state
  assert list(read) == list(state)
  np.testing.assert_array_equal(read['head.weight'], state['head.weight'])


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('crossformer_small', r'crossformer-s\.pth from https://drive\.google\.com/.*as source'),
    ('crossformer_pp_huge', r'from https://github\.com/cheerss/CrossFormer .*as source'),
  ],
)
def test_official_weights_that_no_program_can_download_are_said_to_be_so(name, message):
  with pytest.raises(ValueError, match=message):
    pretrained.load_pretrained(name)


SMALL = {
  'img_size': 32,
  'embed_dim': 16,
  'depths': [1, 2],
  'num_heads': [2, 1],
  'mlp_ratio': [2, 3.0],
  'merge_size': [[2, 4, 8]],
  'group_size': [4, 2],
  'crs_interval': [2, 1],
  'in_chans': 1,
  'adaptive_interval': True,
  'pad_type': 1,
  'no_mask': True,
}


def test_the_constructor_makes_the_model():
  c = arguments.Arguments(SMALL)
  model = crossformer_cases.build_model(c, num_classes=7)
  c.check()
  shapes = {entry.torch_key: entry.torch_shape for entry in _build(model).entries}
  # The width of a stage divided by sixteen, and its heads.
  assert shapes['layers.0.blocks.0.attn.pos.pos3.2.weight'] == (2, 1)
  assert shapes['layers.1.blocks.1.attn.pos.pos3.2.weight'] == (1, 2)
  assert shapes['layers.0.blocks.0.mlp.fc1.weight'] == (32, 16)
  assert shapes['layers.1.blocks.0.mlp.fc1.weight'] == (96, 32)
  assert [shapes[f'layers.0.downsample.reductions.{i}.weight'] for i in range(3)] == [
    (16, 16, 2, 2), (8, 16, 4, 4), (8, 16, 8, 8)
  ]  # fmt: skip
  assert shapes['patch_embed.projs.0.weight'] == (8, 1, 4, 4)
  assert shapes['head.weight'] == (7, 32)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'patch_size': [2, 4]}, 'the stride, is 4 in a dense predictor'),
    ({'shifted': True}, 'does not know shifted'),
  ],
)
def test_what_cannot_be_honoured_is_refused_by_name(vary, changes, message):
  with pytest.raises(arguments.ArgumentError, match=message):
    adapters.find_adapter(vary('crossformer/dense_small_96x160', changes))


OFFICIAL = {
  'img_size': 16, 'patch_size': [2, 4], 'embed_dim': 8, 'depths': [1], 'num_heads': [2],
  'mlp_ratio': 2, 'merge_size': [], 'group_size': [4], 'crs_interval': [1],
  'num_classes': 3, 'drop_path_rate': 0,
}  # fmt: skip


def _official_case(**changes):
  """A case whose state dict is the one that the model has."""
  c = OFFICIAL | changes
  model = crossformer_cases.build_model(arguments.Arguments(c), num_classes=3)
  image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  template = jax.eval_shape(model.init, jax.random.key(0), image)
  built = mapping.build_mapping(crossformer_cases.model_rules(model), template)
  entry = {'kind': 'param', 'mean': 0, 'std': 0.3}
  return {
    'system': 'crossformer', 'module': 'CrossFormer', 'reference': '', 'constructor': c,
    'mode': 'eval', 'seed': 0, 'shapes': {'out/logits': [], 'tap/norm': []},
    'state': [entry | {'key': e.torch_key, 'shape': list(e.torch_shape)} for e in built.entries],
    'inputs': {'image': {'kind': 'generated', 'shape': [1, 3, 16, 16], 'mean': 0, 'std': 1}},
  }  # fmt: skip


def test_options_of_no_published_model_are_honoured(compute):
  plain = _official_case()
  keys = {entry['key']: entry['shape'] for entry in plain['state']}
  assert keys['patch_embed.projs.1.weight'] == [4, 3, 4, 4]  # At stride 2.
  (expected, taps), (scaled, _) = map(compute, (plain, _official_case(qk_scale=0.9)))
  assert taps['norm'].shape == (1, 64, 8)
  assert not np.allclose(scaled['logits'], expected['logits'])

  case = _official_case(qkv_bias=False, patch_norm=False, ape=True, use_cpe=True)
  others = {entry['key']: entry['shape'] for entry in case['state']}
  assert others['absolute_pos_embed'] == [1, 64, 8]
  assert others['layers.0.blocks.0.cpe.weight'] == [8, 1, 3, 3]  # Its channels are the rows.
  gone = {'patch_embed.norm.weight', 'layers.0.blocks.0.attn.qkv.bias'}
  assert gone <= keys.keys() - others.keys()


def test_a_classifier_s_adaptive_interval_is_of_the_rows(vary):
  c = {'adaptive_interval': True, 'input_resolution': [10, 14]}
  manifest = vary('crossformer/op_block_adaptive_interval', c, inputs={'x': (2, 140, 64)})
  adapters.find_adapter(manifest)
  grouping = modules._attention(
    arguments.Arguments(manifest['constructor']), 4, rows=10, kind='long'
  )(parent=None).grouping((10, 14))
  assert grouping.interval == (3, 3)


@pytest.mark.parametrize(
  ('reference', 'given', 'expected'),
  [
    ('cheerss/CrossFormer@7952010', {}, 'region'),
    ('cheerss/CrossFormer@4fbf750 (branch crossformer)', {}, 'global'),
    ('cheerss/CrossFormer@7952010', {'lda': 'global'}, 'global'),
  ],
)
def test_long_distance_is_said_by_the_case_or_by_its_code(reference, given, expected):
  manifest = {'reference': reference, 'constructor': arguments.Arguments(given)}
  assert crossformer_cases.long_distance(manifest) == expected


@pytest.mark.extended
def test_a_recipe_may_have_other_numbers(vary, compute):
  cosine = {'base_lr': 0.1, 'epochs': 10, 'iterations_per_epoch': 1, 'warmup_epochs': 2}
  manifest = vary('crossformer/lr_schedules', {'cosine': {**cosine, 'steps': [0, 5]}})
  outputs, _ = compute(manifest)
  np.testing.assert_allclose(outputs['cosine/lr'], [1e-6, (0.1 + 1e-5) / 2], rtol=1e-12)


def _stored(case):
  with np.load(REFERENCE / f'{case}.npz') as arrays:
    names = [name for name in arrays if name.startswith('input/')]
    return {name.removeprefix('input/'): arrays[name].astype(np.float64) for name in names}


def test_boxes_are_encoded_by_any_statistics(vary, compute):
  stored, means, stds = _stored('det_box_coder'), [0.5, 0, -1, 0], [0.1, 0.2, 0.5, 1]
  recorded, _ = compute(vary('crossformer/det_box_coder'), **stored)
  changes = {'target_means': means, 'target_stds': stds, 'wh_ratio_clip': 1.0, 'image': [60, 90]}
  outputs, _ = compute(vary('crossformer/det_box_coder', changes), **stored)
  np.testing.assert_allclose(outputs['encoded'], (recorded['encoded'] - means) / stds)
  sides = lambda boxes: boxes[:, 2:] - boxes[:, :2]
  np.testing.assert_allclose(sides(outputs['decoded_noclip']), sides(stored['src']))
  np.testing.assert_allclose(
    outputs['decoded'], np.clip(outputs['decoded_noclip'], 0, [90, 60, 90, 60])
  )


def test_anchors_have_any_scales_and_centres(vary, compute):
  recorded, _ = compute(vary('crossformer/det_anchors_rpn'))
  changes = {'scales': [8, 16], 'center_offset': 0.5}
  outputs, _ = compute(vary('crossformer/det_anchors_rpn', changes))
  np.testing.assert_array_equal(outputs['base1'][::2], recorded['base1'] + 4)
  np.testing.assert_array_equal(outputs['base1'][1::2], 2 * recorded['base1'] + 4)
  np.testing.assert_array_equal(outputs['valid1'], np.repeat(recorded['valid1'], 2))


def test_boxes_are_assigned_by_any_thresholds(vary, compute):
  strict = {'pos_iou_thr': 2.0, 'neg_iou_thr': 0.0, 'min_pos_iou': 0.0}
  manifest = vary(
    'crossformer/det_max_iou_assign',
    {
      'retina': strict | {'gt_max_assign_all': False},
      'rpn': strict | {'match_low_quality': False},
      'rcnn': strict | {'neg_iou_thr': 1.1},
    },
  )
  outputs, _ = compute(manifest, **_stored('det_max_iou_assign'))
  assert sorted(outputs['retina/gt_inds'])[-6:] == [-1, 1, 2, 3, 4, 5]
  assert set(outputs['rpn/gt_inds']) == {-1}
  assert set(outputs['rcnn/gt_inds']) == {0, 1, 2, 3, 4, 5}


def test_suppression_has_any_thresholds(vary, compute):
  stored = _stored('det_multiclass_nms')

  def scores(**changes):
    manifest = vary('crossformer/det_multiclass_nms', changes)
    manifest['shapes']['out/scores'] = [200]
    found = compute(manifest, **stored)[0]['scores']
    return found[found > 0]

  recorded = scores(max_num=200)
  assert len(recorded) > 30
  np.testing.assert_array_equal(scores(max_num=10), recorded[:10])
  np.testing.assert_array_equal(scores(max_num=200, score_thr=0.4), recorded[recorded > 0.4])
  every = np.sort(stored['scores'][:, :-1], axis=None)[::-1]
  np.testing.assert_array_equal(scores(max_num=240, iou_threshold=1.0), every[every > 0.15][:200])


@pytest.mark.parametrize(
  ('rule', 'depths', 'resolution', 'expected'),
  [
    ('linear', '2_7_1_4', 28, [4, 6, 4, 5, 6, 7, 8, 9, 9, 5, 4, 4, 4, 4]),
    ('alter', '6_8_4', 40, [4, 7, 9, 11, 13, 15, 9, 10, 20, 20, 20, 20, 20, 20, 5, 10, 5, 10]),
  ],
)
def test_growing_group_sizes_round_as_the_original_s(
  vary, compute, rule, depths, resolution, expected
):
  """Computed with the official code, whose shares of the map are a little above whole numbers."""
  name = f'{rule}/depths_{depths}'
  manifest = vary('crossformer/pgs_group_sizes', {'resolution': resolution})
  manifest['shapes'] = {f'out/{name}': [len(expected)]}
  outputs, _ = compute(manifest)
  assert outputs[name].tolist() == expected


def test_dense_predictors_pad_and_mask_whatever_is_said(vary, compute):
  small = {'dim': 16, 'num_heads': 2, 'H': 5, 'W': 6}
  outputs = []
  for said in ({}, {'pad_type': 1, 'no_mask': True}):
    manifest = _narrow(vary('crossformer/op_dense_block_lda', small | said))
    outputs.append(compute(manifest)[0]['y'])
  np.testing.assert_array_equal(*outputs)


def test_a_block_may_have_another_scale_and_no_biases(vary, compute):
  small = {'dim': 16, 'num_heads': 2, 'input_resolution': [5, 6], 'qkv_bias': False}
  scaled = _narrow(vary('crossformer/op_block_sda', small | {'qk_scale': 8**-0.5}))
  scaled['state'] = [entry for entry in scaled['state'] if entry['key'] != 'attn.qkv.bias']
  plain = scaled | {'constructor': scaled['constructor'] | {'qk_scale': None}}
  other = scaled | {'constructor': scaled['constructor'] | {'qk_scale': 0.9}}
  (expected, _), (outputs, _), (others, _) = map(compute, (plain, scaled, other))
  np.testing.assert_allclose(outputs['y'], expected['y'], rtol=1e-12)
  assert not np.allclose(others['y'], expected['y'])


def _narrow(manifest):
  """A block of 16 channels instead of 64, for 30 tokens."""
  manifest['inputs']['x']['shape'] = [1, 30, 16]
  for entry in manifest['state']:
    entry['shape'] = [side // 4 if side % 16 == 0 or side == 4 else side for side in entry['shape']]
  return manifest
