"""Checkpoints of mmdetection's detectors: which they are, there and back, onto other classes."""

import functools
import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from crossattn_jax import models
from crossattn_jax.conversion import convert, correspondence, fitting, mapping, opening
from crossattn_jax.conversion.systems import mmdetection

RECORDED = pathlib.Path(__file__).parents[2] / 'reference' / 'crossformer'
# In which the networks of the recorded cases differ from crossformer_pp_small.
RECORDED_FIELDS = {
  'depths': (1, 1, 4, 1),
  'group_sizes': (7, 7, 7, 7),
  'intervals': (8, 4, 2, 1),
  'image_size': (64, 64),
}
SMALL = {'widths': (8, 8, 8, 8), 'depths': (1, 1, 1, 1), 'image_size': (64, 64)}
WIDTHS = {
  'retinanet': {'pyramid_channels': 8, 'head_channels': 12, 'head_convs': 1},
  'faster_rcnn': {'pyramid_channels': 8, 'head_channels': 12, 'mask_channels': 0},
  'mask_rcnn': {'pyramid_channels': 8, 'head_channels': 12, 'mask_channels': 16, 'mask_convs': 1},
}
BACKBONE = 'swiftformer_xs'


def made_up(shapes):
  rng = np.random.default_rng(0)
  return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}


@functools.cache
def state_of(head):
  """A made-up checkpoint of three classes."""
  name = f'{BACKBONE}+{head}'
  module = models.create_model(name, num_classes=3, **WIDTHS[head], **SMALL)
  built, _ = correspondence.model_mapping(name, module)
  return made_up({entry.torch_key: entry.torch_shape for entry in built.entries})


@pytest.mark.parametrize(
  ('head', 'case'),
  [
    ('retinanet', 'det_retinanet_mini_losses'),
    pytest.param('mask_rcnn', 'det_maskrcnn_mini_losses', marks=pytest.mark.extended),
  ],
)
def test_every_key_of_a_detector_of_mmdetection_is_known(head, case):
  manifest = json.loads((RECORDED / f'{case}.json').read_text())
  state = made_up({x['key']: x['shape'] for x in manifest['state'] if x['kind'] == 'param'})
  name = f'crossformer_pp_small+{head}'
  conversion = convert.to_flax(name, state, RECORDED_FIELDS)
  back = convert.to_torch(name, conversion.variables, conversion.overrides)
  assert set(back) == set(state)
  assert all(np.array_equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize(
  'head',
  ['mask_rcnn', *(pytest.param(x, marks=pytest.mark.extended) for x in WIDTHS if x[0] != 'm')],
)
def test_a_checkpoint_says_which_head_it_has_and_how_wide_and_deep(head):
  name, state = f'{BACKBONE}+{head}', state_of(head)
  conversion = convert.to_flax(name, state, SMALL)
  assert conversion.overrides == {'num_classes': 3, **WIDTHS[head], **SMALL}
  back = convert.to_torch(name, conversion.variables, conversion.overrides)
  assert set(back) == set(state)
  assert all(np.array_equal(back[key], state[key]) for key in state)


def test_layers_are_laid_out_as_the_arrays_they_multiply():
  name, state = f'{BACKBONE}+mask_rcnn', state_of('mask_rcnn')
  head = convert.to_flax(name, state, SMALL).variables['params']['region_head']
  # A region's map is flattened with its channels first.
  channel, row, column, output = 5, 3, 6, 11
  weight = state['roi_head.bbox_head.shared_fcs.0.weight'][output, channel * 49 + row * 7 + column]
  assert head['box_head']['fc1']['kernel'][row, column, channel, output] == weight
  # Offsets are those of one class after another.
  weight = state['roi_head.bbox_head.fc_reg.weight'][2 * 4 + 1]
  np.testing.assert_array_equal(head['box_head']['regressor']['kernel'][:, 2, 1], weight)
  # The kernels of transposed convolutions have their inputs first.
  weight = state['roi_head.mask_head.upsample.weight'][7, 9, 0, 1]
  assert head['mask_head']['upsample']['kernel'][0, 1, 7, 9] == weight


def write(path, state):
  safetensors.numpy.save_file(state, path)
  return str(path)


def test_a_detector_starts_from_the_file_of_a_classifier(tmp_path):
  name = f'{BACKBONE}+retinanet'
  classifier = models.create_model(BACKBONE, num_classes=5, **SMALL)
  built, _ = correspondence.model_mapping(BACKBONE, classifier)
  state = made_up({entry.torch_key: entry.torch_shape for entry in built.entries})
  opened = opening.open_weights(write(tmp_path / 'c.safetensors', state), name, SMALL)
  assert (opened.name, opened.overrides['num_classes']) == (BACKBONE, 5)
  module = models.create_model(name, num_classes=3, **WIDTHS['retinanet'], **SMALL)
  fitted = fitting.fit(opened, name, module, fitting.template(name, module))
  assert not [path for path in fitted.arrays if path.split('/')[1] != 'backbone']
  fresh = {path.split('/')[1] for path in fitted.fresh if 'output_norm' not in path}
  assert fresh == {'pyramid', 'head'}
  kernel = fitted.arrays['params/backbone/stem/conv_0/kernel']
  np.testing.assert_array_equal(kernel, state['patch_embed.0.weight'].transpose(2, 3, 1, 0))


def test_another_head_and_what_is_no_detector_are_refused(tmp_path):
  path = write(tmp_path / 'retinanet.safetensors', state_of('retinanet'))
  with pytest.raises(mapping.MappingError, match="is of 'retinanet', not of 'mask_rcnn'"):
    opening.open_weights(path, f'{BACKBONE}+mask_rcnn', SMALL)
  with pytest.raises(mapping.MappingError, match=r'no RetinaNet, Faster or .* keys begin with fc'):
    convert.to_flax(f'{BACKBONE}+mask_rcnn', {'fc.weight': np.zeros((2, 2))})


def test_crossformers_first_release_groups_the_whole_map():
  module = models.create_model('crossformer_small+mask_rcnn')
  settings = mmdetection.describe(module).settings
  assert settings({'backbone.layers.0.blocks.0.attn.biases': (169, 2)}) == {'lda': 'global'}
  assert settings({'backbone.layers.0.blocks.0.attn.qkv.bias': (288,)}) == {}


@pytest.mark.extended
def test_a_file_is_recognised_whatever_it_is_opened_as(tmp_path):
  name = f'{BACKBONE}+mask_rcnn'
  built, _ = correspondence.model_mapping(name, models.create_model(name, num_classes=3))
  state = made_up({entry.torch_key: entry.torch_shape for entry in built.entries})
  path = write(tmp_path / 'mask_rcnn.safetensors', state)
  assert opening.open_weights(path, f'{BACKBONE}+faster_rcnn').name == name
  with pytest.raises(mapping.MappingError, match=r"holds weights of 'swiftformer_xs\+mask_rcnn'"):
    opening.open_weights(path, 'swiftformer_l1+mask_rcnn')


@pytest.mark.torch
def test_a_file_of_mmdetection_tells_its_classes(tmp_path):
  import torch

  tensors = {key: torch.from_numpy(x) for key, x in state_of('retinanet').items()}
  meta = {'mmdet_version': '2.26.0', 'CLASSES': ('car', 'person', 'dog'), 'epoch': 12}
  path = tmp_path / 'epoch_12.pth'
  torch.save({'meta': meta, 'state_dict': tensors, 'optimizer': {'state': {}}}, path)
  opened = opening.open_weights(path, f'{BACKBONE}+retinanet', SMALL)
  assert opened.class_names == ('car', 'person', 'dog')
  assert opened.overrides['num_classes'] == 3
