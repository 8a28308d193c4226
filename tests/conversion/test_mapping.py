"""Names and layouts between state dicts and Flax variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.conversion import layouts, mapping
from crossattn_jax.conversion.mapping import Rule

# layout, torch shape, Flax shape, index in torch of an element, index in Flax of the same one
LAYOUTS = [
  ('identity', (5,), (5,), (3,), (3,)),
  ('unbatched', (1, 4, 6), (4, 6), (0, 2, 5), (2, 5)),
  ('unbatched', (1,), (), (0,), ()),
  ('linear', (6, 4), (4, 6), (5, 1), (1, 5)),
  ('linear', (6,), (6,), (5,), (5,)),
  ('linear_heads_out', (6, 4), (4, 2, 3), (5, 1), (1, 1, 2)),
  ('linear_heads_out', (6,), (2, 3), (4,), (1, 1)),
  ('linear_heads_in', (4, 6), (2, 3, 4), (3, 5), (1, 2, 3)),
  ('linear_heads_in', (4,), (4,), (3,), (3,)),
  ('qkv', (18, 4), (4, 3, 2, 3), (11, 1), (1, 1, 1, 2)),
  ('qkv', (18,), (3, 2, 3), (11,), (1, 1, 2)),
  ('conv', (6, 4, 2, 3), (2, 3, 4, 6), (5, 3, 1, 2), (1, 2, 3, 5)),
  ('conv', (6, 4, 3), (3, 4, 6), (5, 3, 2), (2, 3, 5)),
  ('conv', (6,), (6,), (5,), (5,)),
  ('pointwise_conv', (6, 4, 1, 1), (4, 6), (5, 1, 0, 0), (1, 5)),
]


@pytest.mark.parametrize('array', [np.asarray, jnp.asarray], ids=['numpy', 'jax'])
@pytest.mark.parametrize(
  ('name', 'torch_shape', 'flax_shape', 'torch_index', 'flax_index'), LAYOUTS
)
def test_layouts_put_each_element_in_its_place_and_back(
  array, name, torch_shape, flax_shape, torch_index, flax_index
):
  layout = layouts.LAYOUTS[name]
  tensor = array(np.arange(np.prod(torch_shape), dtype=np.float32).reshape(torch_shape))
  assert layout.torch_shape(flax_shape) == torch_shape
  converted = layout.to_flax(tensor, flax_shape)
  assert converted.shape == flax_shape
  assert converted[flax_index] == tensor[torch_index]
  back = layout.to_torch(converted, torch_shape)
  np.testing.assert_array_equal(back, tensor)


def test_rules_read_in_both_directions():
  rule = Rule('blocks.{k}.{which:norm1|norm2}.weight', 'block_{k}/{which}/scale')
  assert rule.path_of('blocks.12.norm2.weight') == 'block_12/norm2/scale'
  assert rule.key_of('block_12/norm2/scale') == 'blocks.12.norm2.weight'
  assert rule.path_of('blocks.12.norm3.weight') is None
  assert rule.path_of('blocks.x.norm1.weight') is None
  assert rule.path_of('blocks.12.norm1.weight.more') is None


def test_a_repeated_placeholder_stands_for_one_value():
  rule = Rule('stage{i}.{i}.weight', 'stage_{i}/kernel')
  assert rule.path_of('stage2.2.weight') == 'stage_2/kernel'
  assert rule.path_of('stage2.3.weight') is None


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('a.{i}', 'a/{j}'), 'same placeholders'),
    (('a', 'a', 'transposed'), "unknown layout 'transposed'; known: identity"),
  ],
)
def test_impossible_rules_are_refused(arguments, message):
  with pytest.raises(mapping.MappingError, match=message):
    Rule(*arguments)


def test_prefixed_moves_the_rules_of_a_submodule():
  [rule, dropped] = mapping.prefixed([Rule('w', 'k'), Rule('index', None)], 'model.', 'encoder/')
  assert rule.path_of('model.w') == 'encoder/k'
  assert dropped.drops('model.index')


RULES = [
  Rule('fc.{i}.weight', 'dense_{i}/kernel', 'linear'),
  Rule('fc.{i}.bias', 'dense_{i}/bias'),
  Rule('pos.{d}', 'position_{d}'),
  Rule('pos_{d}', 'position_{d}', spelling='timm'),
  Rule('bn.running_mean', 'norm/mean', collection='batch_stats'),
  Rule('bn.num_batches_tracked', None),
]
TEMPLATE = {
  'params': {
    'dense_0': {
      'bias': jax.ShapeDtypeStruct((3,), jnp.float32),
      'kernel': jax.ShapeDtypeStruct((2, 3), jnp.float32),
    },
    'position_0': jax.ShapeDtypeStruct((1, 5, 2), jnp.float32),
  },
  'batch_stats': {'norm': {'mean': jax.ShapeDtypeStruct((3,), jnp.float32)}},
}


def make_state(**changes):
  random = np.random.default_rng(0)
  shapes = {'fc.0.weight': (3, 2), 'fc.0.bias': (3,), 'pos.0': (1, 5, 2), 'bn.running_mean': (3,)}
  state = {key: random.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
  state.update(changes)
  return {key: value for key, value in state.items() if value is not None}


def test_state_dicts_convert_both_ways_to_the_bit():
  state = make_state()
  converter = mapping.build_mapping(RULES, TEMPLATE)
  variables = converter.to_flax(state)
  np.testing.assert_array_equal(variables['params']['dense_0']['kernel'], state['fc.0.weight'].T)
  np.testing.assert_array_equal(variables['batch_stats']['norm']['mean'], state['bn.running_mean'])
  back = converter.to_torch(variables)
  assert set(back) == set(state)
  for key, value in state.items():
    assert back[key].dtype == value.dtype
    np.testing.assert_array_equal(back[key], value)


def test_the_originals_order_and_spelling_are_kept():
  shapes = {'pos_0': (1, 5, 2), 'fc.0.bias': (3,), 'bn.running_mean': (3,), 'fc.0.weight': (3, 2)}
  converter = mapping.build_mapping(RULES, TEMPLATE, shapes)
  variables = converter.to_flax(make_state())
  assert list(converter.to_torch(variables)) == list(shapes)


def test_a_spelling_can_be_asked_for():
  variables = mapping.build_mapping(RULES, TEMPLATE).to_flax(make_state())
  timm = mapping.build_mapping(RULES, TEMPLATE, spelling='timm').to_torch(variables)
  assert 'pos_0' in timm
  assert 'pos.0' not in timm
  np.testing.assert_array_equal(timm['pos_0'], make_state()['pos.0'])


def test_buffers_that_flax_computes_itself_are_dropped():
  state = make_state(**{'bn.num_batches_tracked': np.array(3)})
  variables = mapping.build_mapping(RULES, TEMPLATE).to_flax(state)
  assert set(variables['batch_stats']['norm']) == {'mean'}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'fc.0.bias': None}, r'missing: fc\.0\.bias \(3,\) <-> params/dense_0/bias'),
    ({'fc.1.bias': np.zeros(3)}, r'unexpected: fc\.1\.bias \(3,\)'),
    (
      {'fc.0.weight': np.zeros((2, 3))},
      r'misshapen: fc\.0\.weight is \(2, 3\), expected .*\(3, 2\)',
    ),
    ({'pos_0': np.zeros((1, 5, 2))}, r'repeated: pos\.0 and pos_0 are both'),
  ],
)
def test_a_state_dict_that_does_not_fit_is_refused_by_name(changes, message):
  with pytest.raises(mapping.MappingError, match=message):
    mapping.build_mapping(RULES, TEMPLATE).to_flax(make_state(**changes))


def test_variables_that_do_not_fit_are_refused_by_name():
  converter = mapping.build_mapping(RULES, TEMPLATE)
  variables = converter.to_flax(make_state())
  variables['params']['dense_0'] = {'kernel': np.zeros((3, 2)), 'gain': np.zeros(1)}
  with pytest.raises(mapping.MappingError) as error:
    converter.to_torch(variables)
  for problem in (
    'unexpected: params/dense_0/gain',
    'missing: fc.0.bias',
    'misshapen: params/dense_0/kernel',
  ):
    assert problem in str(error.value)


def test_an_array_without_a_rule_is_named():
  template = {'params': {'gate': jax.ShapeDtypeStruct((), jnp.float32)}}
  with pytest.raises(mapping.MappingError, match=r'no rule .*\n  params/gate \[\]'):
    mapping.build_mapping(RULES, template)
