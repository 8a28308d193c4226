import json
import pathlib

import jax
import numpy as np
import pytest
from scipy import special

from crossattn_jax import models
from crossattn_jax.conversion import convert, correspondence, mapping, start
from crossattn_jax.conversion.systems import mmsegmentation as segmentation
from crossattn_jax.parity import adapters, arguments, cases, replay

REFERENCE = pathlib.Path(__file__).parents[2] / 'reference'

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


WIDTHS = {
  'semantic_fpn': {'head_channels': 8, 'pyramid_channels': 8},
  'upernet': {'head_channels': 8, 'auxiliary_channels': 4},
}


def _template(module):
  image = jax.ShapeDtypeStruct((1, *module.image_size, 3), np.float32)
  return jax.eval_shape(module.init, jax.random.key(0), image)


def _state(module):
  """A made-up checkpoint of mmsegmentation."""
  built = mapping.build_mapping(segmentation.segmentor_rules(module), _template(module))
  rng = np.random.RandomState(0)
  return {
    entry.torch_key: rng.standard_normal(entry.torch_shape).astype(np.float32)
    for entry in built.entries
  }


@pytest.mark.parametrize(
  ('name', 'head'),
  [
    pytest.param(name, head, marks=[pytest.mark.extended] if name != 'swiftformer_xs' else [])
    for name in SMALL
    for head in WIDTHS
  ],
)
def test_a_checkpoint_says_which_head_it_has_and_how_wide(name, head):
  name, fields = f'{name}+{head}', {'image_size': (64, 64), **SMALL[name]}
  module = models.create_model(name, num_classes=7, **WIDTHS[head], **fields)
  state = _state(module)
  conversion = convert.to_flax(name, state, fields)
  assert conversion.overrides == {'num_classes': 7, **WIDTHS[head], **fields}
  assert {line.torch_key for line in conversion.report} == set(state)
  back = convert.to_torch(name, conversion.variables, conversion.overrides)
  assert set(back) == set(state)
  assert all(np.array_equal(back[key], state[key]) for key in state)
  template = _template(module)
  assert jax.tree.map(np.shape, conversion.variables) == jax.tree.map(np.shape, dict(template))
  kernel = conversion.variables['params']['decoder']
  kernel = kernel['decoder']['classifier'] if head == 'semantic_fpn' else kernel['classifier']
  np.testing.assert_array_equal(kernel['bias'], state['decode_head.conv_seg.bias'])


@pytest.mark.extended
@pytest.mark.parametrize('name', SMALL)
def test_a_classifier_gives_the_backbone_of_a_segmentor(name):
  fields = {'image_size': (64, 64), **SMALL[name]}
  classifier = models.create_model(name, num_classes=3, **fields)
  built = mapping.build_mapping(correspondence.backbone_rules(classifier), _template(classifier))
  rng = np.random.RandomState(0)
  state = {
    entry.torch_key: rng.standard_normal(entry.torch_shape).astype(np.float32)
    for entry in built.entries
  }
  composite = f'{name}+semantic_fpn'
  conversion = start.start_from_classifier(composite, state, 7, fields)
  template = _template(models.create_model(composite, num_classes=7, **fields))
  assert jax.tree.map(np.shape, conversion.variables) == jax.tree.map(np.shape, dict(template))
  taken = {line.torch_key for line in conversion.report if line.torch_key and line.flax_path}
  dropped = {line.torch_key for line in conversion.report if line.action.startswith('dropped')}
  assert taken | dropped == set(state)
  assert {key.split('.')[0] for key in dropped} <= {'norm', 'head', 'dist_head'}


def test_a_classifier_is_no_segmentor():
  with pytest.raises(mapping.MappingError, match=r'no segmentor of .* keys begin with fc'):
    convert.to_flax('biformer_small+upernet', {'fc.weight': np.zeros((2, 2))})


def test_a_checkpoint_of_another_head_is_refused():
  shapes = {'decode_head.conv_seg.weight': (7, 8, 1, 1)}
  state = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
  with pytest.raises(mapping.MappingError, match='is of UPerNet, not of SemanticFPN'):
    convert.to_flax('swiftformer_xs+semantic_fpn', state)


def test_a_resnet_has_the_keys_of_resnet_v1c_and_they_convert_both_ways():
  name, small = 'resnet50_deep_stem+semantic_fpn', {'depths': (1,) * 4, 'widths': (4, 4, 8, 8)}
  module = models.create_model(name, **small)
  variables = jax.eval_shape(module.init, jax.random.key(0), np.ones((1, 32, 32, 3)))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, leaf.dtype), variables)
  state = convert.to_torch(name, variables, small)
  assert state['backbone.stem.6.weight'].shape == (128, 64, 3, 3)
  assert state['backbone.stem.7.running_var'].shape == (128,)
  assert state['backbone.layer4.0.downsample.0.weight'].shape == (32, 32, 1, 1)
  back = convert.to_flax(name, state, small).variables
  jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_a_backbone_without_correspondence_is_named():
  module = models.create_model('regnety_160+semantic_fpn')
  with pytest.raises(LookupError, match='RegNet has no PyTorch correspondence as a backbone'):
    segmentation.segmentor_rules(module)


# Kinds of networks of which no case was recorded.


def _read(system, name):
  return cases.read_case(REFERENCE / system / f'{name}.json')


def _write(folder, manifest, outputs, stored=None):
  """Writes a case of `manifest`, changed to have these outputs and these inputs besides the image.

  Outputs are arrays, or recorded ones.
  """
  arrays, shapes = {f'input/{name}': array for name, array in (stored or {}).items()}, {}
  for name, output in outputs.items():
    shapes[f'out/{name}'] = list(output.shape)
    if isinstance(output, cases.Recorded):
      arrays[f'sub:{output.stride}/out/{name}'] = output.values
    else:
      arrays[f'out/{name}'] = output
  inputs = {'image': manifest['inputs']['image']}
  for name, array in (stored or {}).items():
    inputs[name] = {'kind': 'stored', 'shape': list(array.shape), 'dtype': str(array.dtype)}
  manifest = manifest | {
    'inputs': inputs,
    'shapes': shapes,
    'float32_relative_error': dict.fromkeys(shapes, 1e-6),
    'grad_param': {},
  }
  np.savez(folder / 'case.npz', **arrays)
  (folder / 'case.json').write_text(json.dumps(manifest))
  return cases.read_case(folder / 'case.json')


def _replayed(case):
  """What replaying a case computes in float64, and whether it agrees with the case."""
  adapter = adapters.find_adapter(case.manifest)
  arrays = replay.run_case(case, adapter, 'float64')
  return arrays, lambda case: [
    row.array for row in replay.judge(case, adapter, 'float64', arrays) if not row.passed
  ]


def _cross_entropy(logits, labels):
  """Of NCHW logits, over all pixels, those without a class included."""
  chosen = np.take_along_axis(logits, np.where(labels == 255, 0, labels), axis=1)
  loss = special.logsumexp(logits, axis=1, keepdims=True) - chosen
  return np.sum(loss, where=labels != 255, keepdims=False).reshape(1) / labels.size


@pytest.mark.extended
def test_semantic_fpn_with_its_loss_replays(tmp_path):
  recorded = _read('crossformer', 'seg_semantic_fpn_mini')
  logits = recorded.recorded['out/logits']
  rng = np.random.default_rng(0)
  labels = rng.integers(21, size=(1, 1, *logits.shape[2:]))
  labels[rng.random(labels.shape) < 0.1] = 255
  manifest = recorded.manifest | {'module': 'SemanticFPN+loss'}
  outputs = {'logits': logits, 'decode/loss_ce': np.zeros(1)}
  case = _write(tmp_path, manifest, outputs, {'labels': labels})
  arrays, wrong = _replayed(case)
  assert wrong(case) == ['out/decode/loss_ce']
  # The logits are PyTorch's, then.
  outputs['decode/loss_ce'] = _cross_entropy(arrays['out/logits'], labels)
  assert not wrong(_write(tmp_path, manifest, outputs, {'labels': labels}))


@pytest.mark.extended
def test_upernet_without_its_loss_replays(tmp_path):
  recorded = _read('crossformer', 'seg_upernet_mini_train_losses')
  manifest = recorded.manifest | {'module': 'UPerNet'}
  labels = recorded.inputs['labels']
  shape = (labels.shape[0], 21, *labels.shape[2:])
  outputs = {'logits': np.zeros(shape), 'aux_logits': np.zeros(shape)}
  case = _write(tmp_path, manifest, outputs)
  arrays, wrong = _replayed(case)
  assert wrong(case) == ['out/logits', 'out/aux_logits']
  outputs = {name: arrays[f'out/{name}'] for name in outputs}
  assert not wrong(_write(tmp_path, manifest, outputs))
  # PyTorch's losses are those of these logits.
  for name, weight, loss in (('logits', 1, 'decode/loss_ce'), ('aux_logits', 0.4, 'aux/loss_ce')):
    expected = recorded.recorded[f'out/{loss}'].values
    np.testing.assert_allclose(weight * _cross_entropy(outputs[name], labels), expected, rtol=1e-8)


@pytest.mark.extended
def test_swiftformer_with_semantic_fpn_replays(tmp_path):
  backbone = _read('swiftformer', 'swiftformer_xs_features_grad').manifest
  head = _read('swiftformer', 'op_semantic_fpn_eval').manifest
  widths = [backbone['shapes'][f'out/c{level}'][1] for level in range(2, 6)]
  head_state = []
  for entry in head['state']:
    if entry['key'].startswith('neck.lateral_convs') and entry['key'].endswith('weight'):
      width = widths[int(entry['key'].split('.')[2])]
      entry = entry | {'shape': [entry['shape'][0], width, 1, 1], 'std': width**-0.5}
    head_state.append(entry)
  prefixed = [entry | {'key': f'backbone.{entry["key"]}'} for entry in backbone['state']]
  manifest = backbone | {
    'module': 'SwiftFormer+SemanticFPN',
    'state': prefixed + head_state,
    'parameter_count': backbone['parameter_count']
    + sum(int(np.prod(entry['shape'])) for entry in head_state if entry['kind'] == 'param'),
  }
  case = _write(tmp_path, manifest, {'logits': np.zeros((1, 5, 16, 24))})

  def part(manifest, weights, inputs):
    """By the adapter of the backbone alone or of the head alone, which PyTorch's cases judge."""
    adapter = adapters.find_adapter(manifest)
    with replay.precision_context('float64'):
      variables = replay.to_precision(adapter.mapping.to_flax(weights), 'float64')
      outputs, _ = jax.jit(adapter.run)(variables, inputs)
      return jax.tree.map(np.asarray, outputs)

  weights = {'backbone': {}, 'head': {}}
  for key, value in case.weights.items():
    weights['backbone' if key.startswith('backbone.') else 'head'][
      key.removeprefix('backbone.')
    ] = value
  maps = part(backbone, weights['backbone'], replay.to_precision(dict(case.inputs), 'float64'))
  inputs = {
    name: head['inputs'][name] | {'shape': list(array.shape)} for name, array in maps.items()
  }
  constructor = head['constructor'] | {'in_channels': widths}
  head = head | {'state': head_state, 'inputs': inputs, 'constructor': constructor}
  outputs = part(head, weights['head'], maps)
  _, wrong = _replayed(case)
  assert wrong(case) == ['out/logits']
  # The levels of the head are outputs too, where a case has them.
  whole = _write(tmp_path, manifest, outputs)
  _, wrong = _replayed(whole)
  assert not wrong(whole)


# Other arguments than the recorded ones.


def test_the_loss_takes_weights_and_the_way_of_counting_from_the_case(vary, compute):
  weights = [0.5, 1.0, 2.0]
  c = {'loss_weight': 0.3, 'num_classes': 3, 'ignore_index': 2, 'class_weight': weights}
  rng = np.random.default_rng(0)
  logits, labels = rng.standard_normal((2, 3, 5, 4)), rng.integers(3, size=(2, 1, 5, 4))
  valid = labels[:, 0] != 2
  true = np.take_along_axis(logits, labels, 1)[:, 0] - special.logsumexp(logits, axis=1)
  total = -(np.asarray(weights)[labels[:, 0]] * true)[valid].sum()
  for only_valid, count in ((False, valid.size), (True, valid.sum())):
    manifest = vary('crossformer/seg_loss_ce', c | {'avg_non_ignore': only_valid})
    loss = compute(manifest, logits=logits, labels=labels)[0]['loss']
    np.testing.assert_allclose(loss, 0.3 * total / count, rtol=1e-12)


def test_a_head_of_three_levels_gives_each_on_request(vary, compute):
  manifest = vary(
    'swiftformer/op_semantic_fpn_eval', {'in_channels': [6, 8, 10]},
    outputs=['p4', 'decode_head.scale_heads.2'],
    without=('neck.lateral_convs.3', 'neck.fpn_convs.3', 'decode_head.scale_heads.3'),
  )  # fmt: skip
  del manifest['inputs']['c5']
  manifest['shapes'] = {name: s for name, s in manifest['shapes'].items() if 'heads.3' not in name}
  outputs, _ = compute(manifest)
  assert outputs['logits'].shape == (2, 5, 16, 24)
  assert outputs['p4'].shape == (2, 16, 4, 6)
  assert outputs['decode_head.scale_heads.2'].shape == (2, 12, 16, 24)


def test_heads_refuse_what_they_have_not(vary):
  for case, changes, message in (
    ('seg_fcn_aux_head', {'num_convs': 2}, 'num_convs is 2'),
    ('seg_uper_head', {'align_corners': True}, 'align_corners is True'),
    ('seg_fpn_neck', {'no_norm_on_lateral': True}, 'no_norm_on_lateral is True'),
  ):
    with pytest.raises(arguments.ArgumentError, match=message):
      adapters.find_adapter(vary(f'crossformer/{case}', changes))
