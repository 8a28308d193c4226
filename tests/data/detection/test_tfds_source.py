import cloudpickle
import numpy as np
import pytest
import tensorflow_datasets as tfds

from crossattn_jax.data.detection import tfds_source


def test_coco_of_tfds_has_boxes_and_its_own_numbers(tmp_path, image, coco_tfds):
  source = tfds_source.TfdsSource('coco/2017', 'train', tmp_path)
  assert source.class_names[12] == 'class 12'
  # 12 is left out of COCO's numbers, and 91 is beyond them.
  assert source.category_ids[10:14] == (11, 13, 14, 15)
  assert source.category_ids[-1] == 90
  assert len(source.category_ids) == 80
  assert source.image_ids == (139, 140)
  np.testing.assert_array_equal(source.num_objects, [2, 0])
  assert source[0]['key'] == 'coco/2017/train[0] (139.jpg)'
  with open(image, 'rb') as file:
    assert source[0]['image'] == file.read()
  objects = cloudpickle.loads(cloudpickle.dumps(source)).annotations(0)
  assert objects.size == source.image_size(0) == (50, 40)
  np.testing.assert_allclose(objects.boxes, [[10, 5, 30, 25]] * 2, rtol=1e-6)
  np.testing.assert_array_equal(objects.labels, [12, 12])
  np.testing.assert_array_equal(objects.area, [321, 321])
  np.testing.assert_array_equal(objects.ids, [90, 90])
  np.testing.assert_array_equal(objects.crowd, [False, True])
  assert len(source.annotations(1)) == 0


def test_what_is_known_of_all_examples_is_read_once(tmp_path, coco_tfds):
  source = tfds_source.TfdsSource('coco/2017', 'train', tmp_path)
  examples, read = list(source._examples), []

  class Examples:
    def __getitem__(self, index):
      read.append(index)
      return examples[index]

    def __len__(self):
      return len(examples)

  source._examples = Examples()
  assert (source.image_ids, source.num_objects.tolist()) == ((139, 140), [2, 0])
  assert [source.image_size(index) for index in range(2)] == [(50, 40)] * 2
  assert read == [0, 1, 2]  # That there is no third one ends the loop.


def test_difficult_objects_of_pascal_voc_are_not_learnt(tmp_path, image, write_tfds):
  objects = {
    'bbox': tfds.features.BBoxFeature(),
    'label': tfds.features.ClassLabel(names=['aeroplane', 'bicycle']),
    'is_difficult': np.bool_,
  }
  box = tfds.features.BBox(ymin=0.1, xmin=0.25, ymax=0.5, xmax=0.75)
  rows = [{'bbox': box, 'label': 1, 'is_difficult': difficult} for difficult in (True, False)]
  write_tfds('voc', '2007', objects, [{'image': image, 'objects': rows}])
  source = tfds_source.TfdsSource(
    'voc/2007', 'train', tmp_path, class_names=('bicycle', 'aeroplane')
  )
  assert (source.category_ids, source.image_ids) == ((2, 1), (1,))
  found = source.annotations(0)
  np.testing.assert_array_equal(found.labels, [0, 0])
  np.testing.assert_array_equal(found.learnable, [False, True])
  np.testing.assert_allclose(found.area, [400, 400], rtol=1e-6)
  np.testing.assert_array_equal(found.ids, [1, 2])


def test_other_classes_are_left_out_and_counted(tmp_path, image, write_tfds, caplog):
  objects = {
    'bbox': tfds.features.BBoxFeature(),
    'label': tfds.features.ClassLabel(names=['aeroplane', 'bicycle']),
  }
  boxes = [tfds.features.BBox(ymin=0.0, xmin=0.0, ymax=y, xmax=1.0) for y in (0.5, 1.0)]
  rows = [{'bbox': box, 'label': label} for label, box in enumerate(boxes)]
  examples = [{'image': image, 'objects': rows}, {'image': image, 'objects': rows[:1]}]
  write_tfds('voc', '2007', objects, examples)
  source = tfds_source.TfdsSource(
    'voc/2007', 'train', tmp_path, class_names=('bicycle',), other_classes='skip'
  )
  assert (source.category_ids, source.num_objects.tolist()) == ((2,), [1, 0])
  np.testing.assert_array_equal(source.annotations(0).boxes, [[0, 0, 40, 50]])
  np.testing.assert_array_equal(source.annotations(0).labels, [0])
  assert len(source.annotations(1)) == 0
  assert '2 of 3 objects of voc/2007/train' in caplog.text


def test_a_data_set_without_boxes_is_refused(tmp_path, image, write_tfds):
  objects = {'label': tfds.features.ClassLabel(num_classes=2)}
  write_tfds('pets', '1', objects, [{'image': image, 'objects': []}])
  with pytest.raises(ValueError, match="is not for detection: expected 'image' and a sequence of"):
    tfds_source.TfdsSource('pets', 'train', tmp_path)
