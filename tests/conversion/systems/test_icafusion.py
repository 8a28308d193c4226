"""Whole state dicts, there and back."""

import json
import pathlib

import numpy as np
import pytest

from crossattn_jax.conversion import correspondence, mapping, recognition
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
  # YOLOv5 has one stream, layers 0 to 9, and the same neck and head as layers 10 to 24.
  single = {}
  for key, x in pairs.items():
    _, layer, rest = key.split('.', 2)
    if not 10 <= int(layer) <= 22:
      number = int(layer) - (13 if int(layer) > 22 else 0)
      single[f'model.{number}.{rest}'] = x
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
