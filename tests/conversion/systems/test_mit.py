"""Checkpoints of MinkUNet, of MIT's image encoder, and what starts from them."""

import json
import pathlib

from flax import traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy

from crossattn_jax.conversion import convert, correspondence, fitting, mapping, opening, pretrained
from crossattn_jax.models import registry

SMALL = {'depths': (1, 2, 1, 1, 1, 1, 1, 1), 'widths': (4, 5, 6, 7, 6, 5, 4, 4), 'stem_width': 3}
IMAGES = {'depths': (1, 2), 'widths': (2, 3), 'stem_width': 4}


def state_of(name, seed=0, **fields):
  """The state dict of a model, random numbers."""
  converter, _ = correspondence.model_mapping(name, registry.create_model(name, **fields))
  random = np.random.default_rng(seed)
  return {
    entry.torch_key: random.normal(size=entry.torch_shape).astype(np.float32)
    for entry in converter.entries
  }


def counters(state):
  """The counters of batches that PyTorch's norms have."""
  means = (key for key in state if key.endswith('running_mean'))
  return {key.replace('running_mean', 'num_batches_tracked'): np.array(7) for key in means}


def write(path, state):
  safetensors.numpy.save_file(state, path)
  return path


@pytest.fixture(scope='module')
def points():
  return state_of('minkunet18a', **SMALL)


def test_a_checkpoint_of_the_second_stage_is_read_and_written(tmp_path, points):
  """In the official one all keys begin with `module.`; kernels are not transposed."""
  wrapped = {f'module.{key}': x for key, x in (points | counters(points)).items()}
  path = write(tmp_path / 'model_best.safetensors', wrapped)
  model, variables = pretrained.load_pretrained('minkunet18a', path, **SMALL)
  assert (model.num_classes, model.num_channels) == (20, 3)
  params = variables['params']
  for key, array in {
    'conv0p1s1.kernel': params['stem']['kernel'],
    'conv2p2s2.kernel': params['down_1']['kernel'],
    'convtr5p8s2.kernel': params['up_1']['kernel'],
    'block2.1.conv1.kernel': params['stage_1']['block_1']['conv_0']['kernel'],
    'block8.0.downsample.0.kernel': params['stage_7']['block_0']['shortcut']['kernel'],
    'block5.0.norm2.bn.weight': params['stage_4']['block_0']['norm_1']['scale'],
    'bntr7.bn.running_var': variables['batch_stats']['up_norm_3']['var'],
    'final.kernel': params['head']['kernel'],
  }.items():
    np.testing.assert_array_equal(array, points[key])
  np.testing.assert_array_equal(params['head']['bias'], points['final.bias'][0])
  back = convert.to_torch('minkunet18a', variables, SMALL)
  assert back.keys() == points.keys()
  jax.tree.map(np.testing.assert_array_equal, back, points)


@pytest.mark.extended
def test_its_classes_and_colours_are_told_and_changed(tmp_path, points):
  path = write(tmp_path / 'x.safetensors', state_of('minkunet18a', **SMALL, num_classes=13))
  assert opening.open_weights(path, 'minkunet18a', SMALL).overrides['num_classes'] == 13
  path = write(tmp_path / 'y.safetensors', points)
  model, variables = pretrained.load_pretrained(
    'minkunet18a', path, **SMALL, num_classes=13, num_channels=1
  )
  params = variables['params']
  assert (model.num_classes, params['head']['kernel'].shape) == (13, (4, 13))
  summed = points['conv0p1s1.kernel'].sum(axis=1, keepdims=True)
  np.testing.assert_allclose(params['stem']['kernel'], summed, rtol=1e-6)
  np.testing.assert_array_equal(params['up_0']['kernel'], points['convtr4p16s2.kernel'])


@pytest.mark.extended
def test_it_starts_from_a_file_of_the_first_stage(tmp_path, points):
  inside = {f'net3d.{key}': x for key, x in points.items() if not key.startswith('final')}
  others = [
    'cls_token',
    'view_pos_emb',
    'net2d.fc.weight',
    'interlance_decoder.blocks.0.norm1.bias',
  ]
  others += [
    'voxel_encoder.blocks.0.attn.qkv.weight',
    'pos_emb.layers.1.bias',
    'cls_head_3d.weight',
  ]
  state = inside | dict.fromkeys(others, np.zeros(2, np.float32))
  path = write(tmp_path / 'x.safetensors', {f'module.{key}': x for key, x in state.items()})
  opened = opening.open_weights(path, 'minkunet18a', SMALL)
  assert opened.told.startswith(f'{path}: MIT, from which some of minkunet18a starts')
  _, variables = pretrained.load_pretrained('minkunet18a', path, **SMALL)
  params = variables['params']
  np.testing.assert_array_equal(params['stem']['kernel'], points['conv0p1s1.kernel'])
  assert params['head']['kernel'].shape == (4, 20)
  del state['net3d.conv3p4s2.kernel']
  path = write(tmp_path / 'y.safetensors', state)
  with pytest.raises(mapping.MappingError, match=r'missing.*conv3p4s2\.kernel'):
    opening.open_weights(path, 'minkunet18a', SMALL)


@pytest.mark.extended
def test_it_starts_from_a_run_of_the_first_stage():
  fields = {f'points_{field}': x for field, x in SMALL.items()} | {'num_heads': 2}
  template = fitting.template('mit_points', registry.create_model('mit_points', **fields))
  variables = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), template)
  opened = opening.OpenedWeights('mit_points', fields, variables)
  model = registry.create_model('minkunet18a', **SMALL, num_classes=5)
  fitted = fitting.fit(opened, 'minkunet18a', model, fitting.template('minkunet18a', model))
  assert set(fitted.fresh) == {'params/head/kernel', 'params/head/bias'}
  assert fitted.origins['params/stem/kernel'] == 'params/points/stem/kernel'
  assert not fitted.differences


@pytest.mark.extended
def test_what_is_of_another_network_is_refused_by_name(tmp_path, points):
  missing = 'block2.0.conv1.kernel'
  rest = {key: x for key, x in points.items() if key != missing}
  path = write(tmp_path / 'x.safetensors', rest)
  with pytest.raises(mapping.MappingError, match=r'missing.*block2\.0\.conv1\.kernel'):
    opening.open_weights(path, 'minkunet18a', SMALL)
  path = write(tmp_path / 'y.safetensors', state_of('minkunet14a'))
  with pytest.raises(mapping.MappingError, match=r"of 'minkunet14a', not of 'minkunet18a': use"):
    opening.open_weights(path, 'minkunet18a')
  path = write(tmp_path / 'z.safetensors', {'fc.weight': np.zeros((2, 2), np.float32)})
  with pytest.raises(mapping.MappingError, match=r"none of 'minkunet18a'; unexpected: fc\.weight"):
    opening.open_weights(path, 'minkunet18a')


def test_the_encoder_of_images_is_timm_s(tmp_path):
  state = state_of('resnetv2_50', **IMAGES, num_classes=3)
  assert state['head.fc.weight'].shape == (3, 12, 1, 1)
  assert state['stages.1.blocks.0.downsample.conv.weight'].shape == (12, 8, 1, 1)
  path = write(tmp_path / 'x.safetensors', state | counters(state))
  model, variables = pretrained.load_pretrained('resnetv2_50', path, **IMAGES)
  assert model.num_classes == 3
  block = variables['params']['stage_1']['block_1']
  expected = state['stages.1.blocks.1.conv2.weight'].transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(block['conv_1']['kernel'], expected)
  back = convert.to_torch('resnetv2_50', variables, {**IMAGES, 'num_classes': 3})
  assert back.keys() == state.keys()
  jax.tree.map(np.testing.assert_array_equal, back, state)
  # MIT's has no classes.
  _, variables = pretrained.load_pretrained('resnetv2_50', path, **IMAGES, num_classes=0)
  assert 'head' not in variables['params']


@pytest.mark.torch
def test_a_training_checkpoint_is_read(tmp_path, points):
  torch = pytest.importorskip('torch')
  tensors = {f'module.{key}': torch.from_numpy(x) for key, x in points.items()}
  content = {
    'epoch': 92,
    'state_dict': tensors,
    'optimizer': {'state': {0: {'momentum_buffer': torch.zeros(3)}}, 'param_groups': [{'lr': 0.1}]},
    'best_iou': np.float64(0.3687),
  }
  torch.save(content, tmp_path / 'model_best.pth.tar')
  opened = opening.open_weights(tmp_path / 'model_best.pth.tar', 'minkunet18a', SMALL)
  assert opened.told.endswith("minkunet18a, weights ('state_dict.module') of epoch 92")
  kernel = opened.variables['params']['up_0']['kernel']
  np.testing.assert_array_equal(kernel, points['convtr4p16s2.kernel'])


@pytest.mark.torch
def test_every_layer_of_timm_s_model_is_within_the_bound():
  timm = pytest.importorskip('timm')
  from crossattn_jax.parity import compare

  module = timm.models.resnetv2.ResNetV2(
    layers=(1, 2),
    channels=(32, 64),
    stem_chs=8,
    num_classes=3,
    conv_layer=timm.layers.create_conv2d,
    norm_layer=timm.layers.BatchNormAct2d,
  )
  compare.fill_generated(module)
  fields = {'depths': (1, 2), 'widths': (8, 16), 'stem_width': 8, 'num_classes': 3}
  comparison = compare.compare('resnetv2_50', module, overrides={**fields, 'image_size': (33, 48)})
  assert comparison.first_outside is None, comparison.first_outside
  assert comparison.without_counterpart == ('stem', 'stages')


MIT = {
  'points_widths': (4,) * 8,
  'points_depths': (1,) * 8,
  'points_stem_width': 3,
  'image_widths': (2, 3),
  'image_depths': (1, 2),
  'image_stem_width': 4,
  'num_heads': 2,
  'decoder_heads': 2,
  'decoder_mlp_ratio': 1.0,
  'num_views': 3,
  'image_size': (32, 32),
}
OF_MIT = {
  'mit_18a_r50': MIT,
  'mit_points': {
    name: x for name, x in MIT.items() if not name.startswith(('image_', 'decoder', 'num_views'))
  },
  'mit_images': {
    'width': 4,
    **{name: x for name, x in MIT.items() if not name.startswith(('points_', 'decoder'))},
  },
}


@pytest.mark.extended
@pytest.mark.parametrize('name', OF_MIT)
def test_a_checkpoint_of_the_first_stage_is_read_and_written(tmp_path, name):
  fields = OF_MIT[name]
  state = state_of(name, **fields)
  wrapped = {f'module.{key}': x for key, x in (state | counters(state)).items()}
  path = write(tmp_path / 'model_last.safetensors', wrapped)
  model, variables = pretrained.load_pretrained(name, path, **fields)
  assert model.num_classes == 20
  back = convert.to_torch(name, variables, fields)
  assert back.keys() == state.keys()
  jax.tree.map(np.testing.assert_array_equal, back, state)
  flat = traverse_util.flatten_dict(variables['params'], sep='/')
  for key, place in {
    'interlance_decoder.blocks.1.attn.k_map.weight': 'decoder/block_1/cross_attention/key',
    'voxel_encoder.blocks.2.mlp.fc1.weight': 'voxel_encoder/block_2/mlp/fc1',
    'pos_emb.layers.2.weight': 'positions/linear_2',
    'cls_head_2d.weight': 'head_views',
    'net2d.fc.weight': 'images/out',
  }.items():
    if key in state:
      kernel, weight = (x.reshape(len(x), -1) for x in (flat[f'{place}/kernel'], state[key]))
      np.testing.assert_array_equal(kernel, weight.T)


@pytest.mark.extended
def test_the_official_file_has_747_entries_all_of_which_are_known():
  path = pathlib.Path(__file__).parents[2] / 'reference' / 'mit' / 'mit_train_step.json'
  state = json.loads(path.read_text())['state']
  assert len(state) == 747
  model = registry.create_model('mit_18a_r50', num_views=4, image_size=(32, 32))
  built, _ = correspondence.model_mapping('mit_18a_r50', model)
  built.check({entry['key']: tuple(entry['shape']) for entry in state})


@pytest.mark.extended
def test_it_starts_from_networks_for_points_and_for_images(tmp_path, points):
  fields = MIT | {'points_widths': SMALL['widths'], 'points_depths': SMALL['depths']}
  path = write(tmp_path / 'x.safetensors', points)
  opened = opening.open_weights(path, 'mit_18a_r50', fields)
  assert opened.told.startswith(f'{path}: MinkUNet, from which some of mit_18a_r50 starts')
  kernel = opened.variables['params']['points']['up_1']['kernel']
  np.testing.assert_array_equal(kernel, points['convtr5p8s2.kernel'])
  images = state_of('resnetv2_50', depths=(1, 2), widths=(2, 3), stem_width=4, num_classes=5)
  path = write(tmp_path / 'y.safetensors', images)
  opened = opening.open_weights(path, 'mit_18a_r50', fields)
  assert opened.told.startswith(f'{path}: resnetv2, from which some of mit_18a_r50 starts')
  network = opened.variables['params']['images']['network']
  expected = images['stem.conv.weight'].transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(network['stem']['kernel'], expected)
  assert 'head' not in network
