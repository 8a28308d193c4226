import re

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


def test_other_classes_may_be_left_out():
  found = classes.by_name(OWN, OWN, ('fox', 'dog'), 'here', 'skip')
  assert (found.names, found.numbers) == (('fox', 'dog'), (8, 7))
  np.testing.assert_array_equal(found.labels, [-1, 1, -1])


@pytest.mark.parametrize(
  ('expected', 'message'),
  [
    (('dgo', 'cat'), "has 'dgo', but here has no such class; did you mean 'dog'? it has 'cat', 'd"),
    (('zebra',), "has 'zebra', but here has no such class; it has 'cat', 'dog', 'cow'"),
  ],
)
def test_what_would_leave_out_all_by_mistake_is_refused(expected, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    classes.by_name(OWN, OWN, expected, 'here', 'skip')


def test_an_unknown_word_for_other_classes_is_refused():
  with pytest.raises(
    ValueError, match=r"other_classes must be one of \('error', 'skip'\), got 'no'"
  ):
    classes.by_name(OWN, OWN, ('dog',), 'here', 'no')


def test_objects_of_an_unknown_class_are_refused():
  with pytest.raises(ValueError, match="here has a class 'cow' that is not among the 2 expected"):
    classes.by_name(OWN, ['cow', 'dog'], ('cat', 'dog'), 'here')
