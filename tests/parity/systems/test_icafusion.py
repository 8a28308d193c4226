import pathlib

import numpy as np
import pytest

from crossattn_jax.conversion import mapping
from crossattn_jax.conversion.systems import icafusion as rules
from crossattn_jax.parity import adapters, arguments

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


def test_widths_that_are_not_the_inputs_are_refused(vary):
  widths = {'op_cross_block': 'd_model', 'op_nin_fusion': 'c2', 'op_vgg_block': 'c1'}
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
  with pytest.raises(mapping.MappingError, match=r'misshapen: model\.0\.conv\.weight'):
    adapters.find_adapter(vary(case, {'config': mini}))
  for changes, message in [
    ({'config': 'yolov5x_NiNfusion_FLIR'}, 'yolov5x_NiNfusion_FLIR'),
    ({'fusion': 'gated'}, "fusion is 'gated'; known are transformer, nin, add"),
    ({'config': {**mini, 'head': [*mini['head'][:-1], []]}}, r'config\.head is'),
    ({'config': {**mini, 'backbone': mini['backbone'][1:]}}, r'config\.backbone is'),
  ]:
    with pytest.raises(arguments.ArgumentError, match=message):
      adapters.find_adapter(vary(case, changes))


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
