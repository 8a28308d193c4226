"""Weights on another use of their network: what is kept, resized, fresh and dropped, by value."""

from flax import traverse_util
import jax
import numpy as np
import pytest

from crossattn_jax.conversion import fitting, mapping, opening
from crossattn_jax.layers import resize
from crossattn_jax.models import registry

CROSSVIT = {'widths': (8, 16), 'num_heads': (2, 2), 'depths': ((1, 1, 0),), 'image_size': (48, 48)}
SWIFTFORMER = {'widths': (8, 8, 8, 8), 'depths': (1, 1, 1, 1), 'image_size': (32, 32)}
BIFORMER = {
  'widths': (16, 16, 16, 16),
  'depths': (1, 1, 1, 1),
  'head_dim': 16,
  'image_size': (128, 128),
  'regions_per_side': (4, 4, 4, 4),
}
HEADS = {'head_channels': 8, 'num_classes': 6}
MMVIT = {'embed_dim': 8, 'depths': (1,), 'cross_stages': (0,), 'num_classes': 3}
# Fewer blocks than the registered models have, which are of one kind.
SHALLOW = {
  'BiFormer': {'depths': (1,) * 4},
  'CCNet': {'depths': (1,) * 4},
  'CrossFormer': {'depths': (1,) * 4},
  'CrossViT': {'depths': ((1, 1, 1),)},
  'MIT': {'points_depths': (1,) * 8, 'image_depths': (1,) * 4},
  'MITImages': {'image_depths': (1,) * 4},
  'MITPoints': {'points_depths': (1,) * 8},
  'MinkUNet': {'depths': (1,) * 8},
  'PreactResNet': {'depths': (1,) * 4},
  'Pyramid': {'depths': (1,) * 4},
  'RegNet': {'depths': (1,) * 4},
  'ResNet': {'depths': (1,) * 4},
  'SemanticFPN': {'depths': (1,) * 4},
  'SwiftFormer': {'depths': (1,) * 4},
  'UPerNet': {'depths': (1,) * 4},
}
COMPOSITES = ['biformer_small+upernet', 'pyramid_tiny+upernet', 'swiftformer_xs+semantic_fpn']
# One of each kind; the others are in the extended tier.
FEW = [
  'atfuse',
  'bert_base_uncased',
  'biformer_small',
  'ccnet_resnet50',
  'crossformer_pp_small',
  'crossvit_9_dagger_240',
  'minkunet14a',
  'pyramid_tiny',
  'regnety_160',
  'swiftformer_xs+semantic_fpn',
]


def saved(name, overrides, class_names=()):
  """Random weights of a network, statistics and all."""
  template = fitting.template(name, registry.create_model(name, **overrides))
  random = np.random.default_rng(0)
  variables = jax.tree.map(lambda x: random.uniform(0.1, 0.2, x.shape).astype(np.float32), template)
  return opening.OpenedWeights(name, overrides, variables, tuple(class_names), f'{name}: FILE')


def flat(variables):
  return traverse_util.flatten_dict(dict(variables), sep='/')


def logits(weights, *inputs):
  model = registry.create_model(weights.name, **weights.overrides)
  return np.asarray(jax.jit(lambda *args: model.apply(*args)[0])(weights.variables, *inputs))


def actions(fitted):
  return {x.flax_path or x.torch_key: x.action for x in fitted.report if x.action != 'as it was'}


@pytest.fixture(scope='module')
def crossvit():
  return saved('crossvit_tiny_240', {**CROSSVIT, 'num_classes': 5}, 'abcde')


def test_a_head_of_the_requested_size_is_kept(crossvit):
  fitted = fitting.refit(crossvit, overrides={'num_classes': 5})
  jax.tree.map(np.testing.assert_array_equal, fitted.variables, crossvit.variables)
  assert not actions(fitted)


def test_a_head_of_another_size_starts_fresh_and_the_rest_is_kept(crossvit):
  fitted = fitting.refit(crossvit, overrides={'num_classes': 7})
  here, there = flat(fitted.variables), flat(crossvit.variables)
  changed = {path for path in here if not np.array_equal(here[path], there[path])}
  assert changed == {f'params/head_{d}/{leaf}' for d in (0, 1) for leaf in ('kernel', 'bias')}
  assert here['params/head_1/kernel'].shape == (16, 7)
  assert 0 < here['params/head_1/kernel'].std() < 0.1
  assert fitted.overrides['num_classes'] == 7
  assert actions(fitted) == dict.fromkeys(changed, 'fresh, 5 classes in the weights, 7 here')


def test_without_a_classifier_the_heads_are_dropped(crossvit):
  fitted = fitting.refit(crossvit, overrides={'num_classes': 0})
  assert not [path for path in flat(fitted.variables) if 'head' in path]
  module = registry.create_model(fitted.name, **fitted.overrides)
  result = fitting.fit(crossvit, fitted.name, module, fitting.template(fitted.name, module))
  assert result.lines()[1:] == ['head_0, head_1: dropped, this network has none']


@pytest.mark.parametrize(
  ('class_names', 'told'),
  [
    ('abcde', ''),
    ('', ''),
    ('ebcda', 'head_0, head_1: reordered, the same classes in another order'),
    ('abcdx', 'head_0, head_1: fresh, other classes here: x'),
  ],
)
def test_classes_are_those_of_the_same_names(crossvit, class_names, told):
  module = registry.create_model(crossvit.name, **crossvit.overrides)
  fitted = fitting.fit(
    crossvit, crossvit.name, module, crossvit.variables, class_names=tuple(class_names)
  )
  assert fitted.lines()[1:] == [told] * bool(told)
  kernel = crossvit.variables['params']['head_1']['kernel']
  if 'fresh' in told:
    assert 'params/head_1/kernel' in fitted.fresh
  else:
    order = ['abcde'.index(name) for name in class_names or 'abcde']
    np.testing.assert_array_equal(fitted.arrays['params/head_1/kernel'], kernel[:, order])


@pytest.mark.extended
def test_classes_of_an_anchor_stand_behind_its_box_and_objectness():
  fields = {'widths': (8,) * 5, 'depths': (1,) * 4, 'neck_widths': (8,) * 8, 'neck_depth': 1}
  fields |= {'fusion': 'add', 'image_size': (64, 64)}
  weights = saved('icafusion_n', fields, 'abc')
  module = registry.create_model('icafusion_n', **fields)
  fitted = fitting.fit(weights, 'icafusion_n', module, weights.variables, class_names=tuple('cab'))
  kernel = weights.variables['params']['head']['level_1']['kernel'].reshape(8, 3, 8)
  expected = kernel[..., [0, 1, 2, 3, 4, 7, 5, 6]].reshape(1, 1, 8, 24)
  np.testing.assert_array_equal(fitted.arrays['params/head/level_1/kernel'], expected)


DETECTOR = {'pyramid_channels': 8, 'head_channels': 8}
MASKS = {'mask_channels': 8, 'mask_convs': 1}
# Of layers that end in classes: how its last axis is to be seen.
REGIONS = {
  'box_head/classifier': lambda x: x,
  'box_head/regressor': lambda x: np.moveaxis(x, -2, -1),
  'mask_head/classifier': lambda x: x,
}


def test_classes_of_regions_are_those_of_the_same_names():
  name = 'swiftformer_xs+mask_rcnn'
  weights = saved(name, {**SWIFTFORMER, **DETECTOR, **MASKS, 'num_classes': 3}, 'abc')
  there = weights.variables['params']['region_head']
  module = registry.create_model(name, **weights.overrides)
  fitted = fitting.fit(weights, name, module, weights.variables, class_names='cab')
  assert len(fitted.changes) == 2 * len(REGIONS)
  for path, classes_last in REGIONS.items():
    for leaf in ('kernel', 'bias'):
      before = classes_last(np.asarray(flat(there)[f'{path}/{leaf}']))
      after = classes_last(fitted.arrays[f'params/region_head/{path}/{leaf}'])
      np.testing.assert_array_equal(after[..., :3], before[..., [2, 0, 1]])
      # Behind the classes there is the background.
      np.testing.assert_array_equal(after[..., 3:], before[..., 3:])
  fitted = fitting.fit(weights, name, module, weights.variables, class_names='abd')
  assert {path.split('/', 2)[2].rpartition('/')[0] for path in fitted.fresh} == REGIONS.keys()
  assert 'other classes here: d' in fitted.lines()[1]

  # The network without masks, and on other classes.
  without = 'swiftformer_xs+faster_rcnn'
  module = registry.create_model(without, **SWIFTFORMER, **DETECTOR, num_classes=5)
  wanted = fitting.template(without, module)
  fitted = fitting.fit(weights, without, module, wanted)
  lines = fitted.lines()[1:]
  assert lines[0].endswith(': fresh, 3 classes in the weights, 5 here')
  assert lines[1].startswith('region_head/mask_head')
  assert lines[1].endswith(': dropped, this network has none')
  assert len(lines) == 2
  # And back: masks start fresh.
  arrays = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), wanted)
  opened = opening.OpenedWeights(without, {**SWIFTFORMER, **DETECTOR, 'num_classes': 5}, arrays)
  module = registry.create_model(name, **weights.overrides)
  fitted = fitting.fit(opened, name, module, weights.variables)
  assert {path.split('/')[2] for path in fitted.fresh} == {'box_head', 'mask_head'}


def test_classes_of_anchors_are_those_of_the_same_names():
  name = 'swiftformer_xs+retinanet'
  weights = saved(name, {**SWIFTFORMER, **DETECTOR, 'num_classes': 3}, 'abc')
  module = registry.create_model(name, **weights.overrides)
  fitted = fitting.fit(weights, name, module, weights.variables, class_names='cab')
  assert len(fitted.changes) == 2
  before = np.asarray(weights.variables['params']['head']['classifier']['bias']).reshape(9, 3)
  after = fitted.arrays['params/head/classifier/bias'].reshape(9, 3)
  np.testing.assert_array_equal(after, before[:, [2, 0, 1]])
  # Boxes of anchors are of no class.
  fitted = fitting.fit(weights, name, module, weights.variables, class_names='xyz')
  assert set(fitted.fresh) == {f'params/head/classifier/{leaf}' for leaf in ('kernel', 'bias')}


def test_position_embeddings_are_resized(crossvit):
  fitted = fitting.refit(crossvit, overrides={'image_size': (96, 72)})
  there = crossvit.variables['params']['embedding_0']['position_embedding']
  here = fitted.variables['params']['embedding_0']['position_embedding']
  assert here.shape == (1, 1 + 8 * 6, 8)
  np.testing.assert_array_equal(here, resize.resize_position_embedding(there, (4, 4), (8, 6)))
  assert actions(fitted)['params/embedding_0/position_embedding'] == (
    'resized from 4x4 to 8x6 patches'
  )


@pytest.mark.extended
def test_separate_positions_are_resized_as_the_model_interpolates_them():
  weights = saved('mmvit_base_audio', {**MMVIT, 'image_size': (16, 32)})
  longer = fitting.refit(weights, overrides={'image_size': (16, 64)})
  image = np.random.default_rng(0).normal(size=(1, 16, 64, 1)).astype(np.float32)
  np.testing.assert_allclose(logits(longer, image), logits(weights, image), rtol=1e-5)


@pytest.mark.parametrize(
  ('there', 'here'),
  [
    (3, 1),
    pytest.param(1, 3, marks=pytest.mark.extended),
    pytest.param(3, 5, marks=pytest.mark.extended),
  ],
)
def test_equal_channels_give_the_results_of_before(there, here):
  weights = saved('crossvit_tiny_240', {**CROSSVIT, 'num_channels': there, 'num_classes': 3})
  fitted = fitting.refit(weights, overrides={'num_channels': here})
  grey = np.random.default_rng(0).normal(size=(1, 48, 48, 1)).astype(np.float32)
  before, after = (
    logits(each, np.repeat(grey, channels, -1))
    for each, channels in ((weights, there), (fitted, here))
  )
  np.testing.assert_allclose(after, before, rtol=1e-4)
  adapted = [path for path, action in actions(fitted).items() if action.startswith('adapted')]
  assert adapted == [f'params/embedding_{d}/patch_embedding/conv/kernel' for d in (0, 1)]


def test_an_embedding_that_knows_no_rule_for_channels_is_refused():
  weights = saved('crossvit_18_t2t_240', {'depths': ((1, 1, 0),)})
  with pytest.raises(
    mapping.MappingError, match=r'token_block_1/norm1/scale: \(147,\) in the file, \(49,\)'
  ):
    fitting.refit(weights, overrides={'num_channels': 1})


@pytest.mark.parametrize('there', [True, pytest.param(False, marks=pytest.mark.extended)])
def test_a_distillation_head_changes_no_result(there):
  weights = saved('swiftformer_xs', {**SWIFTFORMER, 'num_classes': 4, 'distillation': there})
  fitted = fitting.refit(weights, overrides={'distillation': not there})
  image = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
  np.testing.assert_allclose(logits(fitted, image), logits(weights, image), rtol=1e-5)
  what = {action.split()[0].rstrip(',') for action in actions(fitted).values()}
  assert what == ({'averaged'} if there else {'copied'})


@pytest.mark.extended
def test_a_network_takes_the_classifier_that_its_backbone_was():
  weights = saved('biformer_small', {**BIFORMER, 'num_classes': 9})
  name = 'biformer_small+upernet'
  fitted = fitting.refit(weights, name, HEADS)
  there, here = flat(weights.variables), flat(fitted.variables)
  for path, array in there.items():
    collection, _, rest = path.partition('/')
    if not rest.startswith(('head/', 'norm/')):
      np.testing.assert_array_equal(here[f'{collection}/backbone/{rest}'], array)
  assert here['params/decoder/classifier/kernel'].shape[-1] == 6
  module = registry.create_model(name, **fitted.overrides)
  told = fitting.fit(weights, name, module, fitting.template(name, module)).lines()
  assert len(told) == 3
  assert told[1].endswith(': fresh, the weights have none')
  assert told[2] == 'backbone/norm, backbone/head: dropped, this network has none'
  fresh = {path.split('/', 1)[1] for path, action in actions(fitted).items() if 'fresh' in action}
  assert {path.split('/')[0] for path in fresh} == {'auxiliary_head', 'backbone', 'decoder'}
  assert all('output_norm' in path for path in fresh if path.startswith('backbone/'))

  # And back, and to other heads.
  back = fitting.refit(fitted, 'biformer_small', {'num_classes': 2})
  other = fitting.refit(fitted, 'biformer_small+semantic_fpn', {'head_channels': 8})
  for path, array in there.items():
    collection, _, rest = path.partition('/')
    if not rest.startswith(('head/', 'norm/')):
      np.testing.assert_array_equal(flat(back.variables)[path], array)
      np.testing.assert_array_equal(flat(other.variables)[f'{collection}/backbone/{rest}'], array)


def test_another_head_takes_the_backbone_and_the_auxiliary_head():
  tiny = {'depths': (1, 1, 1, 1), 'widths': (8, 8, 8, 8), 'stem_widths': (8, 8, 8)}
  tiny |= {'head_channels': 8, 'num_classes': 3}
  weights, name = saved('ccnet_resnet50', tiny), 'pspnet_resnet50'
  module = registry.create_model(name, **tiny)
  fitted = fitting.fit(weights, name, module, fitting.template(name, module))
  there = flat(weights.variables)
  kept = {path for path in there if path.split('/')[1] in ('backbone', 'auxiliary_head')}
  assert fitted.arrays.keys() == kept
  for path in kept:
    np.testing.assert_array_equal(fitted.arrays[path], there[path])
  assert fitted.fresh
  assert all(path.split('/')[1] == 'head' for path in fitted.fresh)


def test_what_is_asked_for_starts_fresh(crossvit):
  module = registry.create_model(crossvit.name, **crossvit.overrides)
  fitted = fitting.fit(
    crossvit, crossvit.name, module, crossvit.variables, fresh=['head_1/.*', 'norm_0/bias']
  )
  assert set(fitted.fresh) == {'params/head_1/kernel', 'params/head_1/bias', 'params/norm_0/bias'}
  assert not set(fitted.fresh) & set(fitted.arrays)


def test_anything_else_is_refused_with_every_name_and_both_shapes(crossvit):
  with pytest.raises(mapping.MappingError) as error:
    fitting.refit(crossvit, overrides={'widths': (8, 24), 'depths': ((1, 2, 0),)})
  message = str(error.value)
  assert 'params/norm_1/scale: (16,) in the file, (24,) in the model' in message
  assert (
    'params/encoder_0/branch_1/block_1/norm1/scale: missing in the file, (24,) in the model'
    in message
  )
  with pytest.raises(
    mapping.MappingError, match=r'(?s)holds variables of .*params/stem.*: missing in the file'
  ):
    fitting.refit(crossvit, 'swiftformer_xs', SWIFTFORMER)


def test_settings_in_which_equal_weights_mean_something_else_are_told():
  weights = saved('swiftformer_xs', {**SWIFTFORMER, 'attn_weights': 'ones', 'drop_path_rate': 0.5})
  module = registry.create_model('swiftformer_xs', **SWIFTFORMER)
  fitted = fitting.fit(weights, 'swiftformer_xs', module, weights.variables)
  assert fitted.lines()[1:] == ["another setting: attn_weights='ones' in the weights, 'l2' here"]
  # Where nothing else is said, the model is as it was saved.
  inherited = fitting.inherit(
    weights.name, weights.overrides, 'swiftformer_xs', {'attn_weights': None}
  )
  assert inherited['attn_weights'] == 'ones'


def test_arrays_have_the_dtype_that_is_wanted(crossvit):
  fitted = fitting.refit(crossvit, overrides={'param_dtype': 'bfloat16', 'num_classes': 2})
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(fitted.variables)} == {'bfloat16'}


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name in FEW else pytest.mark.extended)
    for name in [*registry.list_models(), *COMPOSITES]
    # Other tests' own; those that are a registered one in other widths and depths.
    if not name.startswith(('test_', 'minkunet', 'mit_34c', 'mit_18a_r101')) or name in FEW
  ],
)
def test_every_model_takes_its_weights_to_other_uses(name):
  model, fields = registry.create_model(name), registry.model_config(name)
  shallow = SHALLOW.get(type(model).__name__, {})
  other = {'num_classes': 7, 'num_channels': 1}
  if 'image_size' in fields:
    other['image_size'] = tuple(2 * side for side in model.image_size)
  other = {field: value for field, value in other.items() if field in fields}
  if getattr(model, 'patch_embedding', '') in ('t2t', 'performer'):
    other.pop('num_channels')
  template = fitting.template(name, registry.create_model(name, **shallow))
  nothing = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), template)
  module = registry.create_model(name, **shallow, **other)
  wanted = fitting.template(name, module)
  fitted = fitting.fit(opening.OpenedWeights(name, shallow, nothing), name, module, wanted)
  shapes = {path: leaf.shape for path, leaf in flat(wanted).items()}
  assert {*fitted.arrays, *fitted.fresh} == shapes.keys()
  assert all(array.shape == shapes[path] for path, array in fitted.arrays.items())
  of_classes = ('head', 'classifier', 'class_tokens', 'class_positions')
  assert all(any(x in path for x in of_classes) for path in fitted.fresh)
  assert bool(fitted.fresh) == ('num_classes' in other)
