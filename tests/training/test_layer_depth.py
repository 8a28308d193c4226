"""Layers are numbered from the image to the result, in the names of every model."""

import pytest

from crossattn_jax.conversion import fitting
from crossattn_jax.conversion.systems import mmdetection
from crossattn_jax.models import registry
from crossattn_jax.parallel import parameters
from crossattn_jax.training import layer_depth

SHALLOW = {'depths': (1, 1, 2, 1)}
# Of each model its layers, one parameter for each.
LAYERS = {
  'biformer_stl': (
    SHALLOW,
    [
      'stem/conv/kernel',
      'stage_0/block_0/attention/qkv/kernel',
      'downsampling_1/conv/kernel',
      'stage_1/block_0/norm1/scale',
      'downsampling_2/norm/scale',
      'stage_2/block_0/norm1/scale',
      'stage_2/block_1/mlp/fc1/kernel',
      'downsampling_3/conv/kernel',
      'stage_3/block_0/norm1/scale',
      'head/kernel',
    ],
  ),
  'crossvit_tiny_240': (
    {'depths': ((1, 2, 0),) * 2},
    [
      'embedding_1/position_embedding',
      'encoder_0/branch_0/block_0/attention/qkv/kernel',
      'encoder_0/branch_1/block_1/attention/qkv/kernel',
      'encoder_0/fusion/projection_0/norm/scale',
      'encoder_1/branch_1/block_0/mlp/fc1/kernel',
      'encoder_1/branch_1/block_1/mlp/fc1/kernel',
      'encoder_1/fusion/cross_attention_0/norm1/scale',
      'norm_1/scale',
    ],
  ),
  'mmvit_tiny': (
    {'embed_dim': 8, 'depths': (1, 1), 'cross_stages': (0, 1)},
    [
      'patches_1/kernel',
      'stage_0/block_0/view_1/norm1/scale',
      'cross_0/norm1/scale',
      'scale_0/view_0/norm1/scale',
      'stage_1/block_0/view_1/norm1/scale',
      'cross_1/norm1/scale',
      'head/bias',
    ],
  ),
  'pyramid_tiny': (
    {'depths': (1, 1, 1, 1)},
    [
      'embedding_0/conv/kernel',
      'stage_0_block_0/norm1/scale',
      'embedding_1/conv/kernel',
      'stage_1_block_0/norm1/scale',
      'embedding_2/norm/scale',
      'stage_2_block_0/norm1/scale',
      'embedding_3/conv/kernel',
      'stage_3_block_0/norm1/scale',
      'norm/scale',
    ],
  ),
  'bert_base_uncased': (
    {'num_layers': 2},
    ['word_embedding/embedding', 'layer_0/fc1/kernel', 'layer_1/norm2/scale', 'pooler/kernel'],
  ),
  'swiftformer_xs+semantic_fpn': (
    {'depths': (1, 1, 1, 1)},
    [
      'backbone/stem/conv_0/kernel',
      'backbone/stage_0/block_0/attention/query/kernel',
      'backbone/downsampling_1/conv/kernel',
      'backbone/stage_1/block_0/attention/query/kernel',
      'backbone/downsampling_2/conv/kernel',
      'backbone/stage_2/block_0/attention/query/kernel',
      'backbone/downsampling_3/conv/kernel',
      'backbone/stage_3/block_0/attention/query/kernel',
      'decoder/decoder/classifier/kernel',
    ],
  ),
}


@pytest.mark.parametrize('name', LAYERS)
def test_layers_are_in_the_order_of_the_forward_pass(name):
  fields, expected = LAYERS[name]
  template = fitting.template(name, registry.create_model(name, **fields))
  numbers = layer_depth.layers(parameters.leaves_by_path(template['params']))
  assert [numbers[path] for path in expected] == list(range(len(expected)))
  assert set(numbers.values()) == set(range(len(expected)))


def test_a_network_without_stages_is_refused():
  with pytest.raises(ValueError, match=r'no numbered stages.*optimizer\.multipliers'):
    layer_depth.layers(['stem_visible/conv/kernel', 'common_0/norm/scale'])


def test_pyramid_and_heads_of_a_detector_have_the_full_rate():
  heads = [rule.flax.format(i=0) for rule in mmdetection.HEADS if rule.flax]
  assert len(heads) > 20
  numbers = layer_depth.layers(['backbone/stem/kernel', 'backbone/stage_0/block_0/a', *heads])
  assert [numbers[path] for path in heads] == [2] * len(heads)
