import numpy as np
from pycocotools import mask as pycocotools_mask
import pytest

from crossattn_jax.data.detection import annotations

SIZE = (20, 30)
SQUARE = [2, 5, 6, 5, 6, 8, 2, 8]


def objects(boxes, segmentations=None, crowd=False, area=10.0):
  count = len(boxes)
  return annotations.Objects(
    size=SIZE,
    boxes=np.array(boxes, np.float64).reshape(-1, 4),
    labels=np.zeros(count, np.int32),
    crowd=np.full(count, crowd),
    area=np.full(count, area),
    ids=1 + np.arange(count),
    segmentations=segmentations,
  )


def test_polygons_and_run_lengths_are_those_of_pycocotools():
  generator = np.random.default_rng(0)
  stains = generator.random(SIZE) < 0.3
  polygons = [(generator.random(14) * 30).tolist() for _ in range(2)]
  encoded = pycocotools_mask.encode(np.asfortranarray(stains.astype(np.uint8)))
  compressed = {'size': list(SIZE), 'counts': encoded['counts'].decode()}
  runs = np.flatnonzero(np.diff(stains.T.ravel().astype(int), prepend=0, append=2))
  uncompressed = {'size': list(SIZE), 'counts': np.diff(runs, prepend=0).tolist()}
  given = [annotations.read(mask) for mask in (polygons, compressed, uncompressed)]
  found = objects([[0, 0, 9, 9]] * 3, given)
  joined = pycocotools_mask.merge(pycocotools_mask.frPyObjects(polygons, *SIZE))
  np.testing.assert_array_equal(found.masks()[0], pycocotools_mask.decode(joined))
  np.testing.assert_array_equal(found.masks()[1], stains)
  np.testing.assert_array_equal(found.masks()[2], stains)
  assert found.run_lengths()[0] == joined
  assert found.run_lengths()[1] == found.run_lengths()[2] == encoded
  assert annotations.area(polygons, SIZE) == pycocotools_mask.area(joined)


def test_boxes_alone_have_no_masks():
  with pytest.raises(ValueError, match=r'boxes and no masks; set dataset\.masks=False'):
    objects([[0, 0, 9, 9]]).masks()


def test_what_is_learnt_is_what_mmdetection_learns():
  boxes = [
    [1, 2, 3, 4],
    [1, 2, 1.5, 9],  # Narrower than a pixel.
    [1, 2, 9, 2],
    [-9, 2, 3, 4],
    [29, 2, 99, 4],
    [30, 2, 99, 4],  # Beyond the right edge.
    [-9, 2, 0, 4],
  ]
  expected = [True, False, False, True, True, False, False]
  np.testing.assert_array_equal(objects(boxes).learnable, expected)
  assert not objects(boxes, crowd=True).learnable.any()
  assert not objects(boxes, area=0.0).learnable.any()


def test_a_polygon_of_two_corners_is_left_out_beside_others():
  assert annotations.read([[1, 1, 2, 2], SQUARE]) == [SQUARE]
  assert annotations.read([]) is annotations.read(None) is annotations.read({}) is None


@pytest.mark.parametrize(
  ('segmentation', 'message'),
  [
    ([[1, 1, 2, 2]], 'a polygon of 4 numbers; three corners have 6'),
    ([[1, 1, 2, 2, 3, 3, 4]], 'a polygon of 7 numbers, where x and y take turns'),
    ([[1, 1, 2, 2, 3, float('nan')]], 'a polygon with a coordinate that is no number'),
    ([[1, 1, 2, 2, 3, '4']], 'a polygon with a coordinate that is no number'),
    (SQUARE, r'neither a list of polygons \[\[x, y, x, y, \.\.\.\], \.\.\.\] nor run lengths'),
    ('mask.png', 'neither a list of polygons'),
    ({'counts': [1]}, r"run lengths whose 'size' is None, not \[height, width\]"),
    ({'size': [20], 'counts': [20]}, r"run lengths whose 'size' is \[20\]"),
    ({'size': [2, 3], 'counts': [2, 3]}, 'the counts add up to 5, not to 2 x 3'),
    ({'size': [2, 3], 'counts': [2, -3, 7]}, 'run lengths that cannot be read'),
    ({'size': [2, 3], 'counts': 'abc'}, 'run lengths that cannot be read'),
    ({'size': [2, 3]}, 'run lengths that cannot be read'),
  ],
)
def test_what_is_no_mask_is_refused(segmentation, message):
  with pytest.raises(ValueError, match=message):
    annotations.read(segmentation)


def test_boxes_enclose_masks():
  assert annotations.enclosing_box([SQUARE, [1.5, 6, 3, 9, 2, 6]]) == (1.5, 5, 6, 9)
  runs = {'size': [20, 30], 'counts': [25, 3, 572]}
  assert annotations.enclosing_box(runs) == (1, 5, 2, 8)


def test_images_of_another_size_are_refused():
  found = objects([])
  annotations.check_size(found, (20, 30), 'a.jpg')
  with pytest.raises(ValueError, match=r"'a.jpg' has 21 x 30 pixels .* for 20 x 30; correct one"):
    annotations.check_size(found, (21, 30), 'a.jpg')
  with pytest.raises(ValueError, match=r'EXIF data says.*dataset\.decoding\.upright'):
    annotations.check_size(found, (30, 20), 'a.jpg')
