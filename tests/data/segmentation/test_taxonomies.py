import numpy as np

from crossattn_jax.data.segmentation import sources, taxonomies


def test_label_zero_of_ade20k_is_no_class(ade20k_dir):
  source = sources.create_source('ade20k_folder', 'validation', ade20k_dir)
  assert len(source) == 5
  taxonomy = taxonomies.find_taxonomy('ade20k_folder')
  labels = np.arange(151, dtype=np.uint8)
  classes = taxonomy.to_classes(labels)
  assert classes.tolist() == [255, *range(150)]
  np.testing.assert_array_equal(taxonomy.to_labels(classes), labels)
  assert taxonomy.num_classes == 150
  assert taxonomy.class_names[20] == 'car'
  assert len(np.unique(taxonomy.palette, axis=0)) == 150


def test_cityscapes_ids_go_there_and_back():
  cityscapes, classes = taxonomies.CITYSCAPES, np.arange(19)
  np.testing.assert_array_equal(cityscapes.to_classes(cityscapes.to_labels(classes)), classes)
  ignored = [0, 1, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255]
  assert (cityscapes.to_classes(np.array(ignored)) == 255).all()
  assert cityscapes.to_labels(np.array([255])) == 0
  assert cityscapes.class_names[13] == 'car'
  assert cityscapes.to_labels(np.array([13])) == 26
