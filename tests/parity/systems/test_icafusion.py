import pathlib

import numpy as np
import pytest

from crossattn_jax.conversion import mapping
from crossattn_jax.conversion.systems import icafusion as rules
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.parity.systems.icafusion import models

REFERENCE = pathlib.Path(__file__).parents[2] / 'reference' / 'icafusion'


@pytest.fixture
def prediction():
  with np.load(REFERENCE / 'nms_multi_label.npz') as arrays:
    return arrays['input/prediction'].astype(np.float64)


def arrays_of(case):
  """Inputs and outputs of a recorded case, by name."""
  with np.load(REFERENCE / f'{case}.npz') as arrays:
    return [
      {name.removeprefix(kind): arrays[name] for name in arrays if name.startswith(kind)}
      for kind in ('input/', 'out/')
    ]


def detections(outputs):
  """Those of the first image: rows of corners, confidence, class."""
  return outputs['det0'][: int(outputs['count'][0])]


def test_suppression_honours_every_argument(vary, compute, prediction):
  def run(**changes):
    manifest = vary('icafusion/nms_multi_label', changes)
    manifest['shapes']['out/det0'] = [300, 6]
    return detections(compute(manifest, prediction=prediction)[0])

  recorded = run()
  np.testing.assert_array_equal(run(max_det=20), recorded[:20])
  np.testing.assert_array_equal(run(conf_thres=0.5), recorded[recorded[:, 4] > 0.5])
  assert len(run(iou_thres=0.3)) < len(recorded) < len(run(iou_thres=0.9))
  assert len(run(agnostic=True)) < len(recorded)
  best = run(multi_label=False, iou_thres=1.0)
  scores = prediction[0, :, 5:] * prediction[0, :, 4:5]
  scores = np.where(prediction[0, :, 4:5] > 0.25, scores, 0)
  np.testing.assert_array_equal(
    np.sort(best[:, 4]), np.sort(scores.max(axis=1)[scores.max(axis=1) > 0.25])
  )


def test_classes_that_are_less_apart_suppress_each_other(vary, compute, prediction):
  def run(far, **changes):
    manifest = vary('icafusion/nms_multi_label', {'max_wh': far, **changes})
    manifest['shapes']['out/det0'] = [300, 6]
    return detections(compute(manifest, prediction=prediction)[0])

  np.testing.assert_array_equal(run(4000), run(4096))
  np.testing.assert_array_equal(run(0), run(4096, agnostic=True))
  once = {'multi_label': False}
  np.testing.assert_array_equal(run(0, **once), run(4096, agnostic=True, **once))


def test_complete_iou_honours_eps(vary, compute):
  boxes = np.array([[5.0, 5.0, 4.0, 2.0]])
  manifest = vary('icafusion/op_ciou', {'eps': 0.5})
  outputs, _ = compute(manifest, pred_xywh=boxes, target_xywh=boxes)
  np.testing.assert_allclose(outputs['ciou'], [8 / (10 + 10 - 8 + 0.5)])


def test_the_head_honours_anchors_strides_and_classes(vary, compute):
  before, _ = compute(vary('icafusion/op_detect'))
  anchors = [[20, 26, 32, 60, 66, 46], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]
  after, _ = compute(vary('icafusion/op_detect', {'anchors': anchors, 'strides': [8, 16, 64]}))
  first, last = slice(0, 105), slice(141, 153)
  np.testing.assert_allclose(
    after['decoded'][:, first], before['decoded'][:, first] * [1, 1, 2, 2, 1, 1, 1, 1]
  )
  np.testing.assert_allclose(
    after['decoded'][:, last], before['decoded'][:, last] * [2, 2, 1, 1, 1, 1, 1, 1]
  )
  with pytest.raises(arguments.ArgumentError, match=r'ch is \[8, 8, 8\]'):
    adapters.find_adapter(vary('icafusion/op_detect', {'ch': [8, 8, 8]}))


@pytest.mark.extended
def test_the_loss_honours_every_argument(vary, compute):
  case = 'icafusion/loss_nc3'
  targets = arrays_of('loss_nc3')[0]['targets'][:3]
  manifest = vary(case)

  def losses(gains=(), **changes):
    changed = vary(case, {**changes, 'gains': manifest['constructor']['gains'] | dict(gains)})
    changed['shapes'] = {'out/items': [4]}
    return compute(changed, targets=targets)[0]['items']

  plain = losses()
  np.testing.assert_allclose(losses({'box': 0.1, 'obj': 0.125, 'cls': 0.0375}), 2 * plain)
  levels = [losses(balance=list(row)) for row in np.eye(3)]
  np.testing.assert_allclose(4 * levels[0][1] + levels[1][1] + 0.4 * levels[2][1], plain[1])
  for gains, changed in [
    ({'anchor_t': 2.0}, [0, 1, 2]),
    ({'cls_pw': 2.0}, [2]),
    ({'obj_pw': 2.0}, [1]),
    ({'label_smoothing': 0.2}, [2]),
    ({'fl_gamma': 1.0}, [1, 2]),
  ]:
    assert np.flatnonzero(losses(gains) != plain).tolist() == changed
  assert np.flatnonzero(losses(gr=0.5) != plain).tolist() == [1]


def test_average_precision_honours_its_thresholds(vary, compute):
  inputs, recorded = arrays_of('metric_average_precision')
  manifest = vary('icafusion/metric_average_precision', {'iou_thresholds': '0.5:0.05:0.8'})
  outputs, _ = compute(manifest, **inputs)
  np.testing.assert_allclose(outputs['ap'], recorded['ap'][:, :7])


def test_miss_rates_honour_the_number_of_images(vary, compute):
  inputs, _ = arrays_of('metric_kaist_miss_rate')
  case = 'icafusion/metric_kaist_miss_rate'
  outputs, _ = compute(vary(case), **inputs)
  more, _ = compute(vary(case, {'images': 280, 'day_images': 280}), **inputs)
  np.testing.assert_allclose(more['fppi_curve_all'], outputs['fppi_curve_all'] / 2)
  np.testing.assert_array_equal(more['mr_day'], more['mr_all'])


def test_what_the_original_s_block_never_uses_is_kept_or_dropped(vary):
  adapter = adapters.find_adapter(vary('icafusion/op_cross_block'))
  unused = {e.torch_key for e in adapter.mapping.entries if e.collection == 'unused'}
  assert len(unused) == 10
  used = {'params': adapter.template['params']}
  dropping = mapping.build_mapping(rules.block_rules(), used)
  assert all(dropping.drops(key) for key in unused)
  kept = {e.torch_key for e in adapter.mapping.entries if e.collection == 'params'}
  assert {e.torch_key for e in dropping.entries} == kept


@pytest.mark.extended
def test_the_fusion_honours_grid_and_loops(vary, compute):
  def fused(loops, rows):
    constructor = {'loops': loops, 'vert_anchors': rows}
    positions = {f'pos_emb_{m}': (1, 5 * rows, 32) for m in ('vis', 'ir')}
    return compute(vary('icafusion/op_fusion_block_eval', constructor, state=positions))

  once, taps = fused(1, 4)
  again, _ = fused(2, 4)
  assert not np.allclose(once['fused'], again['fused'])
  assert taps['vis_coefficient'].shape == (2, 32, 4, 5)
  assert fused(1, 3)[1]['vis_coefficient'].shape == (2, 32, 3, 5)


def test_the_sum_honours_its_weight(vary, compute):
  rgb, ir = np.ones((1, 4, 2, 2)), np.zeros((1, 4, 2, 2))
  outputs, _ = compute(vary('icafusion/op_add_fusion', {'weight': 0.25}), rgb=rgb, ir=ir)
  np.testing.assert_array_equal(outputs['fused'], 0.25 * rgb)


def test_convolutions_honour_side_stride_padding_and_width(vary, compute):
  x = np.random.default_rng(0).standard_normal((1, 32, 7, 6))
  state = {'conv.weight': (8, 32, 3, 3)}
  constructor = {'k': 3, 's': 2, 'c2': 8}
  maps = {'rgb': x[:, :16], 'ir': x[:, 16:]}
  padded = {name: np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))) for name, x in maps.items()}
  case = 'icafusion/op_nin_fusion'
  outputs, _ = compute(vary(case, constructor, state=state), **maps)
  same, _ = compute(vary(case, {**constructor, 'p': 0}, state=state), **padded)
  assert outputs['fused'].shape == (1, 8, 4, 3)
  np.testing.assert_array_equal(same['fused'], outputs['fused'])
  image = np.pad(x[:, :3], ((0, 0), (0, 0), (3, 3), (3, 3)))
  for padding, size in ((None, (7, 6)), (2, (6, 5))):
    manifest = vary('icafusion/op_conv_stem_train', {'p': padding}, mode='eval')
    manifest['shapes'] = {'out/y': []}
    outputs, _ = compute(manifest, x=image[:, :, :13, :11])
    assert outputs['y'].shape == (1, 16, *size)


def test_widths_that_are_not_the_inputs_are_refused(vary):
  widths = {'op_cross_block': 'd_model', 'op_nin_fusion': 'c1', 'op_vgg_block': 'c1'}
  for case, width in widths.items():
    with pytest.raises(arguments.ArgumentError, match=f'{width} is 48'):
      adapters.find_adapter(vary(f'icafusion/{case}', {width: 48}))


def test_color_jitter_honours_its_gains(vary, compute):
  inputs, _ = arrays_of('aug_hsv')
  grey = np.repeat(inputs['img'][..., :1], 3, axis=-1)
  manifest = vary('icafusion/aug_hsv', {'gains_minus_one': [0.3, 0.3, -0.5]})
  outputs, _ = compute(manifest, img=grey)
  np.testing.assert_array_equal(outputs['img'], grey // 2)


def test_the_letterbox_honours_every_argument(vary, compute):
  inputs, recorded = arrays_of('aug_letterbox')
  case = 'icafusion/aug_letterbox'
  outputs, _ = compute(vary(case, {'color': [1, 2, 3]}), **inputs)
  np.testing.assert_array_equal(outputs['img'][0, 0], [1, 2, 3])
  outputs, _ = compute(vary(case, {'new_shape': [80, 120], 'scaleup': True}), **inputs)
  np.testing.assert_array_equal(outputs['ratio'], [2, 2])
  np.testing.assert_array_equal(outputs['pad_wh'], [10, 0])
  before = recorded['labels'][:, 1:] - np.tile(recorded['pad_wh'], 2)
  np.testing.assert_allclose(outputs['labels'][:, 1:], 2 * before + [10, 0, 10, 0])


def test_the_mosaic_honours_its_draws(vary, compute):
  inputs, _ = arrays_of('aug_mosaic_pair')
  # The first image alone is seen: it ends at the centre, from which the view goes up and left.
  draws = [48, 48, 0, 0, 0, 1, 0, 0, 1, 1]
  changes = {'uniform_draws': draws, 'extra_images': [0, 0, 0]}
  outputs, _ = compute(vary('icafusion/aug_mosaic_pair', changes), **inputs)
  height, width = vary('icafusion/aug_mosaic_pair')['constructor']['image_hw'][0]
  for name in ('rgb', 'ir'):
    np.testing.assert_array_equal(
      outputs[name][48 - height :, 48 - width :], inputs[name][0, :height, :width]
    )


def test_models_honour_their_table_and_refuse_other_graphs(vary):
  case = 'icafusion/yolov5n_ninfusion_flir_eval'
  mini = vary('icafusion/mini_transfusion_eval')['constructor']['config']
  adapters.find_adapter(vary(case))
  fusions = [[*row[:2], 'NiNfusion', [1, 1]] for row in mini['backbone'][20:]]
  narrow = {**mini, 'backbone': [*mini['backbone'][:20], *fusions]}
  with pytest.raises(mapping.MappingError, match=r'misshapen: model\.0\.conv\.weight'):
    adapters.find_adapter(vary(case, {'config': narrow}))
  for changes, message in [
    ({'config': mini}, 'no csp_darknet with nin of the original'),
    ({'config': 'yolov5x_NiNfusion_FLIR'}, 'yolov5x_NiNfusion_FLIR'),
    ({'fusion': 'gated'}, "fusion is 'gated'; known are transformer, nin, add"),
    (
      {'config': {**narrow, 'head': [*mini['head'][:-1], [-1, 1, 'Detect', []]]}},
      r'config\.head is',
    ),
    ({'config': {**mini, 'backbone': mini['backbone'][1:]}}, r'config\.backbone is'),
  ]:
    with pytest.raises(arguments.ArgumentError, match=message):
      adapters.find_adapter(vary(case, changes))


def _stage(*values):
  return [-1, 1, 'ResNetlayer', list(values)]


def test_tables_of_every_backbone_and_fusion_are_read(vary):
  table = vary('icafusion/mini_transfusion_eval')['constructor']['config']
  streams = {
    'resnet': [_stage(3, 4, 1, True, 1), _stage(4, 2, 1, False, 1), _stage(8, 4, 2, False, 2),
               _stage(16, 6, 2, False, 1), _stage(24, 8, 2, False, 3)],
    'vgg': [[-1, 1, 'VGGblock', [depth, *pair]]
            for depth, *pair in ((1, 3, 4), (2, 4, 6), (1, 6, 8), (1, 8, 8), (3, 8, 10))],
  }  # fmt: skip
  for name, stream in streams.items():
    fusions = [[[i, i + 5], 1, 'NiNfusion', [1, 1]] for i in (2, 3, 4)]
    backbone = [*stream, [-4, *stream[0][1:]], *stream[1:], *fusions]
    shift = lambda x: [i - 10 if i > 0 else i for i in x] if isinstance(x, list) else x
    head = [[shift(source), *rest] for source, *rest in table['head']]
    config = {**table, 'backbone': backbone, 'head': head}
    fields = models._fields_of_table(arguments.Arguments(config), 'nin')
    assert fields['stream'] == name
    assert fields['depths'] == {'resnet': (1, 2, 1, 3), 'vgg': (1, 2, 1, 1, 3)}[name]
    assert fields['widths'] == {'resnet': (4, 2, 4, 6, 8), 'vgg': (4, 6, 8, 8, 10)}[name]
    with pytest.raises(arguments.ArgumentError, match='with add of the original'):
      models._fields_of_table(arguments.Arguments(config), 'add')
  fusions = [[*row[:3], [*row[3], 2, 3, 5]] for row in table['backbone'][20:]]
  config = {**table, 'backbone': [*table['backbone'][:20], *fusions]}
  fields = models._fields_of_table(arguments.Arguments(config), 'transformer')
  assert (fields['num_heads'], fields['mlp_ratio'], fields['fusion_depth']) == (2, 3, 5)


@pytest.mark.extended
def test_models_honour_anchors_in_either_order(vary, compute):
  def boxes(anchors):
    manifest = vary('icafusion/mini_transfusion_eval')
    manifest['constructor']['config']['anchors'] = anchors
    return compute(manifest)[0]['decoded'][..., :4]

  anchors = vary('icafusion/mini_transfusion_eval')['constructor']['config']['anchors']
  before = boxes(anchors)
  np.testing.assert_array_equal(boxes(anchors[::-1]), before)
  doubled = boxes([[2 * side for side in level] for level in anchors])
  np.testing.assert_allclose(doubled, before * [1, 1, 2, 2])
