"""Whole state dicts, there and back."""

import json
import pathlib

import numpy as np
import pytest

from crossattn_jax.conversion import (
  convert,
  correspondence,
  fitting,
  mapping,
  opening,
  reading,
  recognition,
  start,
  torch_files,
)
from crossattn_jax.conversion.systems import icafusion
from crossattn_jax.heads.detection import yolo
from crossattn_jax.models import registry

REFERENCE = pathlib.Path(__file__).parents[2] / 'reference' / 'icafusion'
MINI = {
  'widths': (8, 16, 32, 64, 128),
  'depths': (1, 1, 1, 1),
  'neck_widths': (64, 64, 32, 32, 32, 64, 64, 128),
  'neck_depth': 1,
  'grids': ((8, 10), (4, 5), (2, 3)),
  'image_size': (128, 160),
}


def state_dict(case):
  """Arrays of the names and shapes of a recorded case, buffers too."""
  rng = np.random.default_rng(0)
  entries = json.loads((REFERENCE / f'{case}.json').read_text())['state']
  return {entry['key']: rng.standard_normal(entry['shape']) for entry in entries}


def shapes_of(state):
  return {key: x.shape for key, x in state.items()}


def as_yolov5(state):
  """YOLOv5 in a pair: one stream, layers 0 to 9, and the same neck and head as layers 10 to 24."""
  single = {}
  for key, x in state.items():
    _, layer, rest = key.split('.', 2)
    if not 10 <= int(layer) <= 22 and rest != 'anchor_grid':
      number = int(layer) - (13 if int(layer) > 22 else 0)
      single[f'model.{number}.{rest}'] = x
  return single


def with_anchors(state, sizes):
  """The state dict with anchors of other sizes, in half precision as official files have them."""
  head = next(key for key in state if key.endswith('.anchors')).removesuffix('anchors')
  anchors = {'anchors': np.divide(sizes, np.reshape([8, 16, 32], (3, 1, 1)))}
  if f'{head}anchor_grid' in state:
    anchors['anchor_grid'] = np.reshape(sizes, (3, 1, 3, 1, 1, 2))
  return state | {head + name: x.astype(np.float16) for name, x in anchors.items()}


def pickled(state, names):
  """A network as the unpickler makes it of one that was pickled whole, its modules in modules."""

  def module(part):
    own = {key: x for key, x in part.items() if '.' not in key}
    inner = {}
    for key, x in part.items():
      if key not in own:
        child, _, rest = key.partition('.')
        inner.setdefault(child, {})[rest] = x
    made = type('Part', (torch_files.Foreign,), {'__module__': 'models.common'})()
    children = {child: module(rest) for child, rest in inner.items()}
    made.state = {'_parameters': {}, '_buffers': own, '_modules': children, 'training': False}
    return made

  network = module(state)
  network.state |= {'names': names, 'nc': len(names), 'yaml': {'nc': len(names)}}
  return network


def open_file(monkeypatch, tmp_path, content, **overrides):
  path = tmp_path / 'weights.pt'
  path.touch()
  monkeypatch.setattr(reading, '_read', lambda path: content)
  return opening.open_weights(path, 'icafusion_n', {**MINI, **overrides})


def fit(opened, class_names=(), **fields):
  module = registry.create_model('icafusion_n', **{**MINI, **fields})
  wanted = fitting.template('icafusion_n', module)
  return fitting.fit(opened, 'icafusion_n', module, wanted, class_names=class_names)


def test_a_state_dict_comes_back_but_for_buffers_and_what_is_never_used():
  state = state_dict('mini_transfusion_eval')
  for unused in (False, True):
    module = registry.create_model('icafusion_n', **MINI, unused_parameters=unused)
    whole, _ = correspondence.model_mapping('icafusion_n', module)
    variables = whole.to_flax(state)
    assert ('unused' in variables) == unused
    back = whole.to_torch(variables)
    for key, x in back.items():
      np.testing.assert_array_equal(x, state[key])
    lost = {key.split('.', 2)[2] for key in set(state) - set(back)}
    lost = {key for key in lost if not key.endswith('num_batches_tracked')}
    kinds = {key.removeprefix('crosstransformer.0.').split('.')[0] for key in lost}
    dropped = set() if unused else {'ln_input', 'ln_output', 'LN1', 'mlp'}
    assert kinds == {'anchors', 'anchor_grid'} | dropped


@pytest.mark.extended
@pytest.mark.parametrize(
  ('case', 'name', 'fields'),
  [
    ('yolov5n_transfusion_flir_train', 'icafusion_n', {'fusion': 'transformer', 'num_classes': 3}),
    ('yolov5n_ninfusion_flir_eval', 'icafusion_n', {'fusion': 'nin', 'num_classes': 3}),
    ('yolov5l_transfusion_flir_eval', 'icafusion_l', {'fusion': 'transformer', 'num_classes': 3}),
    (
      'yolov5_resnet50_transfusion_kaist_eval',
      'icafusion_resnet50',
      {'fusion': 'transformer', 'num_classes': 1},
    ),
    (
      'yolov5_vgg16_transfusion_flir_eval',
      'icafusion_vgg16',
      {'fusion': 'transformer', 'num_classes': 3},
    ),
  ],
)
def test_official_state_dicts_tell_fusion_and_classes(case, name, fields):
  entries = json.loads((REFERENCE / f'{case}.json').read_text())['state']
  shapes = {entry['key']: tuple(entry['shape']) for entry in entries}
  told, found = recognition.match(name, shapes, {})
  assert told.items() >= fields.items()
  found.check(shapes)


def test_a_sum_is_told_by_what_is_missing():
  shapes = shapes_of(state_dict('mini_transfusion_eval'))
  shapes = {key: x for key, x in shapes.items() if key.split('.')[1] not in ('20', '21', '22')}
  assert recognition.told_fields('icafusion_n', shapes, MINI)['fusion'] == 'add_official'


def test_a_state_dict_of_another_size_is_refused():
  module = registry.create_model('icafusion_n', **{**MINI, 'widths': (8, 16, 32, 64, 64)})
  whole, _ = correspondence.model_mapping('icafusion_n', module)
  with pytest.raises(mapping.MappingError, match=r'misshapen: model\.7\.conv\.weight'):
    whole.to_flax(state_dict('mini_transfusion_eval'))


def test_a_single_stream_takes_the_state_dict_of_yolov5_and_none_of_a_pair():
  fields = {**MINI, 'modalities': ('thermal',)}
  pairs = state_dict('mini_transfusion_eval')
  single = as_yolov5(pairs)
  told, mapped = recognition.match('icafusion_n', shapes_of(single), fields)
  assert told == {**fields, 'num_classes': 3}
  params = mapped.to_flax(single)['params']
  assert set(params) == {'stream_thermal', 'neck', 'head'}
  kernel = single['model.24.m.1.weight'].transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(params['head']['level_1']['kernel'], kernel)
  module = registry.create_model('icafusion_n', **fields)
  whole, _ = correspondence.model_mapping('icafusion_n', module)
  with pytest.raises(mapping.MappingError, match=r'model\.2[0-9]'):
    whole.to_flax(pairs)


ANCHORS = (
  ((8, 11), (16, 30), (30.5, 21)),
  ((30, 61), (60, 45), (59, 99)),
  ((99, 90), (150, 190), (300, 311)),
)


def test_an_official_file_gives_its_average_its_classes_and_its_anchors(monkeypatch, tmp_path):
  names = ['person', 'car', 'bicycle']
  state = with_anchors(state_dict('mini_transfusion_eval'), ANCHORS)
  other = pickled({key: x + 1 for key, x in state.items()}, names)
  content = {'epoch': 3, 'model': other, 'ema': pickled(state, names), 'optimizer': None}
  opened = open_file(monkeypatch, tmp_path, content)
  assert opened.class_names == tuple(names)
  assert opened.overrides.items() <= {**MINI, 'anchor_sizes': ANCHORS}.items()
  assert opened.overrides['anchor_sizes'] == ANCHORS
  kernel = state['model.12.cv1.conv.weight'].transpose(2, 3, 1, 0)
  stream = opened.variables['params']['stream_thermal']
  np.testing.assert_array_equal(stream['stage_0']['deep']['conv']['kernel'], kernel)
  assert 'ema' in opened.told

  # The same anchors keep the head; with others its results would mean other boxes.
  assert not fit(opened, anchor_sizes=np.multiply(ANCHORS, 1.0002).tolist()).changes
  fitted = fit(opened)
  assert {path.split('/')[1] for path in fitted.fresh} == {'head'}
  assert 'the weights are for anchor_sizes=(((8.0, 11.0), (16.0, 30.0),' in fitted.lines()[1]
  assert not fitted.differences
  # Of two streams, one alone takes its own.
  fitted = fit(opened, modalities=('thermal',))
  kernel = state['model.10.conv.weight'].transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(
    fitted.arrays['params/stream_thermal/stem/conv/kernel'], kernel.astype(np.float32)
  )
  assert {path.split('/')[1] for path in fitted.fresh} == {'neck', 'head'}

  # Back again, for the original to load strictly: only counters of batches are missing.
  back = convert.to_torch('icafusion_n', opened.variables, opened.overrides)
  lost = set(state) - set(back)
  assert lost == {key for key in state if key.endswith('num_batches_tracked')}
  assert not set(back) - set(state)
  for key, x in back.items():
    assert x.shape == state[key].shape
    if '.mlp.' not in key and '.ln_' not in key and 'former.0.LN1' not in key:
      np.testing.assert_array_equal(x, state[key])


def test_yolov5_fills_both_streams_and_nothing_else(monkeypatch, tmp_path):
  state = as_yolov5(with_anchors(state_dict('mini_transfusion_eval'), yolo.COCO_ANCHORS.sizes))
  opened = open_file(monkeypatch, tmp_path, {'model': pickled(state, ['a', 'b', 'c'])})
  assert opened.overrides['modalities'] == ('rgb',)
  fitted = fit(opened, fusion='nin')
  assert {path.split('/')[1] for path in fitted.arrays} == {'stream_rgb', 'stream_thermal'}
  for path, x in fitted.arrays.items():
    np.testing.assert_array_equal(x, fitted.arrays[path.replace('thermal', 'rgb')])
  kernel = state['model.9.cv2.conv.weight'].transpose(2, 3, 1, 0)
  np.testing.assert_allclose(fitted.arrays['params/stream_thermal/pooled/join/conv/kernel'], kernel)
  assert fitted.lines()[1:] == [
    'neck, head: fresh, that of the weights is for other streams',
    'fusion_3/conv, fusion_4/conv, fusion_5/conv: fresh, the weights have none',
  ]
  # As a detector of thermal images alone it is taken whole.
  assert not fit(opened, modalities=('thermal',)).changes


def test_a_yolov5_of_other_layers_is_refused_by_name(monkeypatch, tmp_path):
  state = as_yolov5(state_dict('mini_transfusion_eval'))
  state['model.0.conv.conv.weight'] = state.pop('model.0.conv.weight')
  with pytest.raises(mapping.MappingError, match=r'weights\.pt: .* before v6\.0: .* a Focus'):
    open_file(monkeypatch, tmp_path, {'model': pickled(state, ['a'])})


def torchvision_resnet(widths, classes):
  """The state dict of a torchvision ResNet with one bottleneck a stage."""
  rng, state, channels = np.random.default_rng(0), {}, 3

  def unit(conv, norm, shape):
    state[f'{conv}.weight'] = rng.standard_normal(shape)
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
      state[f'{norm}.{leaf}'] = rng.standard_normal(shape[0])
    state[f'{norm}.num_batches_tracked'] = np.int64(1)

  unit('conv1', 'bn1', (widths[0], channels, 7, 7))
  channels = widths[0]
  for stage, width in enumerate(widths[1:], 1):
    block = f'layer{stage}.0'
    unit(f'{block}.conv1', f'{block}.bn1', (width, channels, 1, 1))
    unit(f'{block}.conv2', f'{block}.bn2', (width, width, 3, 3))
    unit(f'{block}.conv3', f'{block}.bn3', (4 * width, width, 1, 1))
    unit(f'{block}.downsample.0', f'{block}.downsample.1', (4 * width, channels, 1, 1))
    channels = 4 * width
  state |= {'fc.weight': rng.standard_normal((classes, channels)), 'fc.bias': np.zeros(classes)}
  return state


@pytest.mark.extended
def test_both_streams_start_from_an_image_classifier():
  state = torchvision_resnet((8, 8, 8, 8, 8), 10)
  fields = {**MINI, 'widths': (8,) * 5, 'neck_widths': (8,) * 8, 'grids': ((2, 2),) * 3}
  started = start.start_from_classifier('icafusion_resnet50', state, 2, fields)
  params, statistics = started.variables['params'], started.variables['batch_stats']
  for stream in ('stream_rgb', 'stream_thermal'):
    block = params[stream]['stage_1']['block_0']
    kernel = state['layer2.0.conv2.weight'].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(block['conv_1']['conv']['kernel'], kernel)
    shortcut = statistics[stream]['stage_3']['block_0']['shortcut']['norm']['var']
    np.testing.assert_array_equal(shortcut, state['layer4.0.downsample.1.running_var'])
  fresh = {line.flax_path.split('/')[1] for line in started.report if not line.torch_key}
  assert fresh == {'fusion_3', 'fusion_4', 'fusion_5', 'neck', 'head'}
  lost = {line.torch_key for line in started.report if not line.flax_path}
  assert {key for key in lost if 'num_batches' not in key} == {'fc.weight', 'fc.bias'}
  with pytest.raises(mapping.MappingError, match=r'unexpected: features\.0\.weight'):
    start.start_from_classifier(
      'icafusion_resnet50', {'features.0.weight': state['fc.bias']}, 2, fields
    )


def test_the_convolutions_of_torchvisions_vgg_are_those_of_a_stream():
  rules = icafusion.classifier_rules(registry.create_model('icafusion_vgg16'))
  layers = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
  paths = [(s, i) for s, depth in enumerate((2, 2, 3, 3, 3)) for i in range(depth)]
  for layer, (s, i) in zip(layers, paths, strict=True):
    (path,) = filter(None, (rule.path_of(f'features.{layer}.weight') for rule in rules))
    assert path == f'block_{s}/conv_{i}/kernel'
  assert recognition.knows(rules, 'classifier.6.bias')


def test_an_image_classifier_is_named_with_what_makes_a_start_of_it(monkeypatch, tmp_path):
  state = {f'features.{i}.bias': np.zeros(64, np.float32) for i in (0, 2)}
  path = tmp_path / 'vgg16.pth'
  path.touch()
  monkeypatch.setattr(reading, '_read', lambda path: state)
  with pytest.raises(
    mapping.MappingError, match=r'stream_rgb and stream_thermal .* --start=CLASSES'
  ):
    opening.open_weights(path, 'icafusion_vgg16')
