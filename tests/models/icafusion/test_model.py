"""What the recorded cases (tests/parity) do not show: counts, options, decoding, errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.heads.detection import yolo

TINY = {
  'widths': (8, 8, 8, 16, 16),
  'depths': (1, 1, 1, 1),
  'neck_widths': (16, 16, 8, 8, 8, 16, 16, 16),
  'neck_depth': 1,
  'grids': ((4, 6), (4, 4), (2, 3)),
  'num_heads': 2,
  'num_classes': 3,
}

# By size, fusion and classes: parameters as published, of which the transformers never use some.
COUNTS = {
  ('n', 'transformer', 3): (5_923_436, 693_056),
  ('n', 'transformer', 1): (5_920_730, 693_056),
  ('n', 'nin', 3): (2_986_376, 0),
  ('n', 'add_official', 1): (2_811_638, 0),
  ('s', 'transformer', 3): (23_266_412, 2_762_368),
  ('s', 'add_official', 1): (11_193_782, 0),
  ('m', 'transformer', 7): (59_937_936, 6_207_936),
  ('m', 'nin', 1): (34_587_510, 0),
  ('m', 'add_official', 1): (33_039_222, 0),
  ('l', 'transformer', 3): (120_262_764, 11_029_760),
  ('l', 'nin', 9): (75_516_798, 0),
  ('l', 'add_official', 3): (72_731_976, 0),
  ('resnet50', 'transformer', 1): (313_767_642, 44_079_616),
  ('resnet50', 'nin', 3): (136_152_264, 0),
  ('vgg16', 'transformer', 1): (62_170_074, 4_732_672),
  ('vgg16', 'nin', 3): (42_686_664, 0),
}

# Of YOLOv5 v6 with the 80 classes of COCO, as published: what is left of one stream.
YOLOV5_COUNTS = {'n': 1_872_157, 's': 7_235_389, 'm': 21_190_557, 'l': 46_563_709}


def _pair(batch=1, height=64, width=96):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.uniform(size=(batch, height, width, 3)), jnp.float32) for _ in range(2)]


def _tiny(**fields):
  """A small model, and variables with which it sees objects."""
  model = models.create_model('icafusion_n', **TINY | fields)
  init = jax.jit(model.init)
  return model, init(jax.random.key(0), *_pair())


@pytest.mark.parametrize(
  'built', [pytest.param(x, marks=[] if x[0] == 'n' else pytest.mark.extended) for x in COUNTS]
)
def test_parameters_are_as_many_as_published_but_for_those_never_used(built):
  size, fusion, classes = built
  model = models.create_model(f'icafusion_{size}', fusion=fusion, num_classes=classes)
  image = jax.ShapeDtypeStruct((1, 320, 320, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image, image)
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(variables['params']))
  published, unused = COUNTS[built]
  assert count == published - unused
  assert set(variables) == {'params', 'batch_stats'}


@pytest.mark.parametrize('size', YOLOV5_COUNTS)
def test_a_single_stream_has_the_parameters_of_yolov5(size):
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  model = models.create_model(f'icafusion_{size}', num_classes=80, modalities=('thermal',))
  params = jax.eval_shape(model.init, jax.random.key(0), image, image)['params']
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == YOLOV5_COUNTS[size]
  assert set(params) == {'stream_thermal', 'neck', 'head'}


def test_a_single_stream_sees_one_image_only():
  model = models.create_model('icafusion_n', **TINY, modalities=('thermal',))
  run = jax.jit(lambda *pair: model.init_with_output(jax.random.key(0), *pair)[0])
  rgb, thermal = _pair()
  outputs, features = run(rgb, thermal)
  names = [f'{x}_{level}' for x in ('thermal', 'pyramid') for level in (3, 4, 5)]
  assert sorted(features) == sorted(names)
  jax.tree.map(np.testing.assert_array_equal, run(1 - rgb, thermal)[0], outputs)
  assert not np.allclose(run(rgb, 1 - thermal)[0]['logits'], outputs['logits'])


@pytest.mark.parametrize('fusion', ['transformer', 'add'])
def test_outputs_and_features_have_documented_shapes(fusion):
  model = models.create_model('icafusion_n', **TINY, fusion=fusion)
  image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
  (outputs, features), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image, image)
  anchors = 3 * (8 * 12 + 4 * 6 + 2 * 3)
  shapes = {name: x.shape for name, x in outputs.items()}
  assert shapes == {
    'box_logits': (2, anchors, 4),
    'objectness': (2, anchors),
    'logits': (2, anchors, 3),
  }
  for name in ('rgb', 'thermal', 'fused', 'pyramid'):
    sizes = [features[f'{name}_{level}'].shape[:3] for level in (3, 4, 5)]
    assert sizes == [(2, 8, 12), (2, 4, 6), (2, 2, 3)]
  assert len(features) == 12


@pytest.mark.extended
def test_what_is_detected_is_what_the_outputs_say():
  model, variables = _tiny(fusion='nin')
  pair = _pair(2)
  found = model.apply(variables, *pair, method='detect', score_threshold=0.2, max_boxes=7)
  outputs, _ = model.apply(variables, *pair)
  grid = yolo.COCO_ANCHORS.of_input((64, 96))
  expected = yolo.decode_yolo(outputs, grid, score_threshold=0.2, max_boxes=7)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, expected)
  assert found.boxes.shape == (2, 7, 4)
  assert (found.scores[:, 0] > 0.2).all()


@pytest.mark.extended
def test_it_computes_in_bfloat16_and_its_outputs_are_wider():
  model, variables = _tiny()
  half = model.clone(dtype=jnp.bfloat16)
  (exact, _), (rounded, features) = (jax.jit(x.apply)(variables, *_pair()) for x in (model, half))
  assert features['pyramid_3'].dtype == jnp.bfloat16
  for name, x in rounded.items():
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, exact[name], atol=0.05)


@pytest.mark.slow
def test_the_smallest_published_model_computes_in_bfloat16():
  model = models.create_model('icafusion_n')
  variables = jax.jit(model.init)(jax.random.key(0), *_pair())
  half = model.clone(dtype=jnp.bfloat16)
  exact, rounded = (jax.jit(x.apply)(variables, *_pair())[0] for x in (model, half))
  for name, x in rounded.items():
    error = jnp.linalg.norm(x - exact[name]) / jnp.linalg.norm(exact[name])
    assert error < 0.02


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'fusion': 'nine'}, "fusion='nine' is not one of transformer, nin, add, add_official"),
    ({'stream': 'resnet18'}, "stream='resnet18' is not one of csp_darknet, resnet, vgg"),
    ({'modalities': ()}, r"modalities=\(\) is neither \('rgb', 'thermal'\) nor one of them alone"),
    ({'modalities': ('thermal', 'rgb')}, r"modalities=\('thermal', 'rgb'\) is neither"),
    ({'modalities': ('lidar',)}, r"modalities=\('lidar',\) is neither"),
    ({'grids': ((4, 4),)}, r'grids=\(\(4, 4\),\) needs 3 entries'),
    ({'neck_widths': (8,)}, r'neck_widths=\(8,\) needs 8 entries'),
  ],
)
def test_wrong_fields_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    models.create_model('icafusion_n', **fields)


@pytest.mark.parametrize(
  ('rgb', 'thermal', 'message'),
  [
    ((1, 64, 64, 3), (1, 64, 96, 3), r'thermal ones \(1, 64, 96, 3\); pairs must show the same'),
    ((1, 64, 72, 3), (1, 64, 72, 3), '64 x 72 pixels: take heights and widths that are mult'),
    ((1, 64, 64, 3), (1, 64, 64, 1), 'ICAFusion expects images .*, 3'),
  ],
)
def test_wrong_pairs_are_refused(rgb, thermal, message):
  model = models.create_model('icafusion_n', **TINY)
  images = (jnp.zeros(rgb), jnp.zeros(thermal))
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), *images)
