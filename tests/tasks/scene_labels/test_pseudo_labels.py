"""Labels of supervoxels, by hand; the recorded cases are in tests/parity."""

import numpy as np

from crossattn_jax.tasks.scene_labels import pseudo_labels

SCORES = np.array([[0.6, 0.3, 0.9], [0.4, 0.45, 0.9], [0.1, 0.2, 0.0], [0.5, 0.3, 0.0]])


def test_supervoxels_get_the_likeliest_class_of_the_scene_or_none():
  # Nothing is of class 2, which the scene does not hold; class 1 gets its best supervoxel.
  labels = pseudo_labels.supervoxel_labels(SCORES, np.array([1, 1, 0]))
  np.testing.assert_array_equal(labels, [0, 1, -1, 0])
  labels = pseudo_labels.supervoxel_labels(SCORES, np.array([1, 1, 0]), 0.55, forced=())
  np.testing.assert_array_equal(labels, [0, -1, -1, -1])


def test_classes_are_forced_in_order_those_of_other_scenes_onto_the_first_supervoxel():
  labels = pseudo_labels.supervoxel_labels(SCORES, np.array([1, 0, 0]), 0.9)
  np.testing.assert_array_equal(labels, [0, -1, -1, -1])
  labels = pseudo_labels.supervoxel_labels(SCORES, np.array([1, 0, 0]), 0.9, forced=[0, 2])
  np.testing.assert_array_equal(labels, [2, -1, -1, -1])
