import jax
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.models import segmentor
from crossattn_jax.parity import mapping, segmentation

SMALL = {
  'biformer_small': {
    'widths': (16, 32, 32, 32),
    'qk_dims': (16, 32, 32, 32),
    'depths': (1, 1, 1, 1),
    'head_dim': 16,
    'regions_per_side': (8, 8, 8, 8),
    'padding': 'input',
  },
  'crossformer_small': {'widths': (16, 32, 64, 128), 'depths': (1, 1, 1, 1), 'head_dim': 16},
  'swiftformer_xs': {'widths': (8, 8, 8, 8), 'depths': (1, 1, 1, 1)},
}


def _segmentor(name, head):
  backbone = models.create_model(name, backbone=True, image_size=(64, 64), **SMALL[name])
  return segmentor.Segmentor(
    backbone=backbone, num_classes=7, head=head, channels=8, pyramid_channels=8,
    auxiliary_channels=4,
  )  # fmt: skip


def _state(module):
  """A made-up checkpoint of mmsegmentation."""
  built = mapping.build_mapping(
    segmentation.segmentor_rules(module), segmentation._template(module)
  )
  rng = np.random.RandomState(0)
  return {
    entry.torch_key: rng.standard_normal(entry.torch_shape).astype(np.float32)
    for entry in built.entries
  }


@pytest.mark.parametrize(
  ('name', 'head'),
  [
    pytest.param(name, head, marks=[pytest.mark.slow] if name != 'swiftformer_xs' else [])
    for name in SMALL
    for head in segmentor.HEADS
  ],
)
def test_a_checkpoint_says_which_head_it_has_and_how_wide(name, head):
  module = _segmentor(name, head)
  state = _state(module)
  overrides = {'image_size': (64, 64), **SMALL[name]}
  conversion = segmentation.convert_segmentor(name, state, overrides)
  assert conversion.name == f'{name}+{head}'
  assert {line.torch_key for line in conversion.report} == set(state)
  template = segmentation._template(module)
  assert jax.tree.map(np.shape, conversion.variables) == jax.tree.map(np.shape, dict(template))
  kernel = conversion.variables['params']['decoder']
  kernel = kernel['decoder']['classifier'] if head == 'semantic_fpn' else kernel['classifier']
  np.testing.assert_array_equal(kernel['bias'], state['decode_head.conv_seg.bias'])


@pytest.mark.slow
@pytest.mark.parametrize('name', SMALL)
def test_a_classifier_gives_the_backbone_of_a_segmentor(name):
  fields = {'image_size': (64, 64), **SMALL[name]}
  classifier = models.create_model(name, num_classes=3, **fields)
  built = mapping.build_mapping(
    segmentation._backbone_rules(classifier), segmentation._template(classifier)
  )
  rng = np.random.RandomState(0)
  state = {
    entry.torch_key: rng.standard_normal(entry.torch_shape).astype(np.float32)
    for entry in built.entries
  }
  conversion = segmentation.start_from_classifier(name, state, 7, fields, 'semantic_fpn')
  backbone = models.create_model(name, backbone=True, **fields)
  template = segmentation._template(
    segmentor.Segmentor(backbone=backbone, num_classes=7, head='semantic_fpn')
  )
  assert jax.tree.map(np.shape, conversion.variables) == jax.tree.map(np.shape, dict(template))
  taken = {line.torch_key for line in conversion.report if line.torch_key and line.flax_path}
  dropped = {line.torch_key for line in conversion.report if line.action.startswith('dropped')}
  assert taken | dropped == set(state)
  assert {key.split('.')[0] for key in dropped} <= {'norm', 'head', 'dist_head'}


def test_a_classifier_is_no_segmentor():
  with pytest.raises(mapping.MappingError, match=r'no segmentor of .* keys begin with fc'):
    segmentation.convert_segmentor('biformer_small', {'fc.weight': np.zeros((2, 2))})


def test_a_backbone_without_correspondence_is_named():
  backbone = models.create_model('resnet50_deep_stem')
  module = segmentor.Segmentor(backbone=backbone, num_classes=2)
  with pytest.raises(LookupError, match='ResNet has no PyTorch correspondence as a backbone'):
    segmentation.segmentor_rules(module)
