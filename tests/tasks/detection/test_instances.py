"""Detections on the host: rows without padding, masks as run lengths, COCO's result file."""

import json

import numpy as np
from pycocotools import mask as judge

from crossattn_jax.geometry import mask_pasting
from crossattn_jax.tasks.detection import instances

SIZES = np.array([(40, 30), (25, 50)])


def found():
  """Two images, of which the second has one detection."""
  rng = np.random.default_rng(0)
  low = rng.uniform(0, 12, (2, 3, 2))
  return {
    'index': np.array([7, 4]),
    'original_size': SIZES,
    'boxes': np.concatenate([low, low + rng.uniform(3, 12, (2, 3, 2))], axis=-1),
    'scores': np.array([[0.9, 0.8, 0.3], [0.5, 0, 0]]),
    'labels': np.array([[2, 0, 2], [1, -1, -1]]),
    'masks': rng.uniform(0, 1, (2, 3, 7, 7)),
  }


def test_rows_have_what_was_found_and_no_padding():
  batch = found()
  rows = instances.to_rows(batch)
  assert rows['seen'].tolist() == [7, 4]
  assert rows['image'].tolist() == [7, 7, 7, 4]
  assert rows['label'].tolist() == [2, 0, 2, 1]
  np.testing.assert_array_equal(rows['box'][3], batch['boxes'][1, 0])
  ends = np.cumsum(rows['length'])
  assert ends[-1] == len(rows['counts'])
  counts = rows['counts'][ends[2] :].tobytes()
  mask = judge.decode({'size': [25, 50], 'counts': counts}).astype(bool)
  expected = mask_pasting.paste_masks(batch['masks'][1, :1], batch['boxes'][1, :1], (25, 50))
  np.testing.assert_array_equal(mask, expected[0])


def test_masks_of_large_images_are_encoded_a_few_at_a_time(monkeypatch):
  batch = found()
  arguments = batch['masks'][0], batch['boxes'][0], SIZES[0]
  at_once = instances.encode_masks(*arguments)
  monkeypatch.setattr(instances, '_PIXELS_AT_ONCE', 1)
  assert instances.encode_masks(*arguments) == at_once
  assert instances.encode_masks(arguments[0][:0], arguments[1][:0], SIZES[0]) == []


def test_result_files_are_cocos():
  batch = found()
  of_image = {name: batch[name][0] for name in ('boxes', 'scores', 'labels', 'masks')}
  entries = json.loads(json.dumps(instances.to_coco(of_image, SIZES[0], 139, (3, 5, 90))))
  assert [entry['category_id'] for entry in entries] == [90, 3, 90]
  assert {entry['image_id'] for entry in entries} == {139}
  x_min, y_min, x_max, y_max = of_image['boxes'][1]
  np.testing.assert_allclose(
    entries[1]['bbox'], [x_min, y_min, x_max - x_min, y_max - y_min], atol=1e-3
  )
  expected = mask_pasting.paste_masks(of_image['masks'], of_image['boxes'], SIZES[0])
  masks = [judge.decode(entry['segmentation']) for entry in entries]
  np.testing.assert_array_equal(masks, expected)
