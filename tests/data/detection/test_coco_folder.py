import pickle

import numpy as np

from crossattn_jax.data.detection import coco_folder


def test_objects_are_those_of_the_file(write_coco):
  source = coco_folder.CocoFolder(write_coco(), 'train')
  assert source.class_names == ('cat', 'dog')
  assert source.category_ids == (2, 8)
  assert source.image_ids == (7, 3, 9)
  np.testing.assert_array_equal(source.num_objects, [2, 1, 0])
  assert source.has_masks
  assert len(source) == 3
  assert source[0]['key'].endswith('train2017/a.png')
  objects = source.annotations(0)
  np.testing.assert_array_equal(objects.boxes, [[0, 0, 2, 20], [10, 10, 22, 12]])
  np.testing.assert_array_equal(objects.labels, [1, 0])
  np.testing.assert_array_equal(objects.crowd, [True, False])
  np.testing.assert_array_equal(objects.area, [30, 8])
  np.testing.assert_array_equal(objects.ids, [5, 6])
  np.testing.assert_array_equal(objects.learnable, [False, True])
  masks = np.zeros((2, 20, 30), bool)
  masks[0, :, 0] = masks[0, :10, 1] = True
  masks[1, 10:12, 10:12] = masks[1, 10:12, 20:22] = True
  np.testing.assert_array_equal(objects.masks(), masks)
  assert len(source.annotations(2)) == 0
  assert source.annotations(2).masks().shape == (0, 20, 30)


def test_a_source_can_be_pickled(write_coco):
  source = pickle.loads(pickle.dumps(coco_folder.CocoFolder(write_coco(), 'train')))
  np.testing.assert_array_equal(source.annotations(1).boxes, [[2, 5, 6, 8]])
  assert source.annotations(1).masks().sum() == 12
