"""COCO's evaluation is pycocotools' to the last bit."""

import contextlib
import io

import numpy as np
from pycocotools import coco as judge_data
from pycocotools import cocoeval as judge
from pycocotools import mask as judge_masks
import pytest

from crossattn_jax.metrics import coco

CLASSES = ('disc', 'star', 'never there', 'ring')
SIZES = np.array([(40, 60), (64, 64), (50, 30), (130, 140), (33, 77), (20, 20)])


def scenes(seed, coarse):
  """Random truths and detections; images 1 and 4 lack the one or the other, class 2 both."""
  rng = np.random.default_rng(seed)

  def boxes(count, images):
    image = rng.choice(images, count)
    high = SIZES[image][:, ::-1]
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * high[:, None]
    return image, np.round(corners / coarse) * coarse

  image, corners = boxes(60, [0, 2, 3, 4])
  label = rng.choice([0, 1, 3], 60)
  crowd = rng.random(60) < 0.15
  found = rng.integers(60, size=150)
  moved = np.round((corners[found] + rng.normal(0, 1.5, (150, 2, 2))) / coarse) * coarse
  moved = np.clip(moved, 0, SIZES[image[found]][:, None, ::-1])
  moved = np.sort(moved, axis=1)
  other, noise = boxes(40, [0, 1, 2, 3])
  scores = rng.integers(1, 12, 190) / 12  # Many ties.

  def rle(image, corners):
    """Discs in their boxes."""
    for index, ((x0, y0), (x1, y1)) in zip(image, corners, strict=True):
      height, width = SIZES[index]
      y, x = np.mgrid[:height, :width] + 0.5
      radius = ((x - (x0 + x1) / 2) / (x1 - x0 + 1e-9)) ** 2
      radius += ((y - (y0 + y1) / 2) / (y1 - y0 + 1e-9)) ** 2
      yield judge_masks.encode(np.asfortranarray(radius < 0.25, np.uint8))

  truths = coco.Instances(
    image=image,
    label=label,
    box=corners.reshape(-1, 4),
    area=rng.uniform(50, 1.3 * 96**2, 60),
    crowd=crowd,
    rle=list(rle(image, corners)),
  )
  where = np.concatenate([image[found], other])
  corners = np.concatenate([moved, noise])
  detections = coco.Instances(
    image=where,
    label=np.concatenate([label[found], rng.choice([0, 1, 3], 40)]),
    box=corners.reshape(-1, 4),
    score=scores,
    rle=list(rle(where, corners)),
  )
  return truths, detections


def judged(truths, detections, kind):
  """What pycocotools finds: its twelve numbers, the AP of each class, its table."""
  with contextlib.redirect_stdout(io.StringIO()) as out:
    expected = judge_data.COCO()
    expected.dataset = {
      'images': [{'id': i, 'height': h, 'width': w} for i, (h, w) in enumerate(SIZES.tolist())],
      'categories': [{'id': i, 'name': name} for i, name in enumerate(CLASSES)],
      'annotations': [
        {
          'id': i + 1,
          'image_id': int(truths.image[i]),
          'category_id': int(truths.label[i]),
          'bbox': xywh(truths.box[i]),
          'area': float(truths.area[i]),
          'iscrowd': int(truths.crowd[i]),
          'segmentation': truths.rle[i],
        }
        for i in range(len(truths.image))
      ],
    }
    expected.createIndex()
    found = expected.loadRes(
      [
        {
          'image_id': int(detections.image[i]),
          'category_id': int(detections.label[i]),
          'score': float(detections.score[i]),
          **(
            {'bbox': xywh(detections.box[i])}
            if kind == 'box'
            else {'segmentation': detections.rle[i]}
          ),
        }
        for i in range(len(detections.image))
      ]
    )
    evaluation = judge.COCOeval(expected, found, {'box': 'bbox', 'mask': 'segm'}[kind])
    evaluation.evaluate()
    evaluation.accumulate()
  with contextlib.redirect_stdout(io.StringIO()) as out:
    evaluation.summarize()
  precision = evaluation.eval['precision'][:, :, :, 0, -1]
  of_classes = {name: precision[:, :, i].mean() for i, name in enumerate(CLASSES)}
  return evaluation.stats, of_classes, out.getvalue()


def xywh(box):
  x_min, y_min, x_max, y_max = box.tolist()
  return [x_min, y_min, x_max - x_min, y_max - y_min]


@pytest.mark.parametrize('coarse', [1, 1e-6], ids=['whole pixels', 'fractions'])
@pytest.mark.parametrize('kind', ['box', 'mask'])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_equals_pycocotools_bit_for_bit(seed, kind, coarse):
  truths, detections = scenes(seed, coarse)
  found = coco.evaluate(truths, detections, SIZES, CLASSES, kind)
  stats, of_classes, printed = judged(truths, detections, kind)
  assert 0.1 < stats[0] < 0.9
  assert [found.get(name, -1) for name in coco.NAMES] == stats.tolist()
  assert {name: found.get(f'ap/{name}', -1) for name in CLASSES} == of_classes
  assert 'ap/never there' not in found
  assert coco.table(found) + '\n' == printed


def test_scores_of_one_image_do_not_depend_on_the_order_of_images():
  truths, detections = scenes(3, 1)
  order = np.argsort(-detections.image, kind='stable')
  turned = coco.Instances(
    **{name: getattr(detections, name)[order] for name in ('image', 'label', 'box', 'score')}
  )
  assert coco.evaluate(truths, turned, SIZES, CLASSES) == coco.evaluate(
    truths, detections, SIZES, CLASSES
  )


@pytest.mark.parametrize('kind', ['box', 'mask'])
def test_nothing_found_is_nothing_right_and_without_truths_there_is_no_precision(kind):
  truths, detections = scenes(0, 1)
  none = np.zeros(0)
  none = coco.Instances(none, none, np.zeros((0, 4)), score=none, area=none, rle=[])
  blind = coco.evaluate(truths, none, SIZES, CLASSES, kind)
  assert blind['ap'] == blind['ar100'] == blind['ap/disc'] == 0
  assert coco.evaluate(none, detections, SIZES, CLASSES, kind) == {}
