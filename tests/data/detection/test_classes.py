import numpy as np
import pytest

from crossattn_jax.data.detection import classes

OWN = {'cat': 3, 'dog': 7, 'cow': 5}


def test_a_data_set_has_its_own_classes():
  found = classes.by_name(OWN, ['dog'], (), 'here')
  assert (found.names, found.numbers) == (('cat', 'dog', 'cow'), (3, 7, 5))
  np.testing.assert_array_equal(found.labels, [0, 1, 2])


def test_classes_are_mapped_by_name_and_those_it_has_not_are_numbered():
  found = classes.by_name(OWN, ['dog'], ('fox', 'dog', 'cat', 'hen'), 'here')
  assert found.numbers == (8, 7, 3, 9)
  np.testing.assert_array_equal(found.labels, [2, 1, -1])


def test_objects_of_an_unknown_class_are_refused():
  with pytest.raises(ValueError, match="here has a class 'cow' that is not among the 2 expected"):
    classes.by_name(OWN, ['cow', 'dog'], ('cat', 'dog'), 'here')
