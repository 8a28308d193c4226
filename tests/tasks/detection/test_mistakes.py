"""Missed and false boxes, told by hand."""

import numpy as np

from crossattn_jax.metrics import coco
from crossattn_jax.tasks.detection import mistakes


def box(x, y=0):
  return [x, y, x + 10, y + 10]


def test_an_object_of_the_same_class_is_preferred_to_a_nearer_one():
  matches = mistakes.match(
    np.array([box(1), box(0), box(50), box(81)]),
    np.array([0, 1, 0, 0]),
    np.array([box(0), box(30), box(80)]),
    np.array([0, 1, 1]),
    np.array([False, False, True]),
  )
  # The second box is of no object that is left, the third of none; the last is in a crowd.
  assert matches.truth.tolist() == [0, -1, -1, -1]
  assert matches.missed.tolist() == [False, True, False]
  assert matches.false.tolist() == [False, True, True, False]


def test_nothing_is_found_or_there():
  none, labels = np.zeros((0, 4)), np.zeros(0, int)
  one, label, crowd = np.array([box(0)]), np.zeros(1, int), np.zeros(1, bool)
  missed = mistakes.match(none, labels, one, label, crowd)
  assert (missed.missed.tolist(), missed.false.tolist()) == ([True], [])
  false = mistakes.match(one, label, none, labels, crowd[:0])
  assert (false.missed.tolist(), false.false.tolist()) == ([], [True])


def test_counts_have_a_class_for_nothing_and_images_are_ranked_by_their_mistakes():
  truths = coco.Instances(
    image=np.array([0, 0, 2]),
    label=np.array([0, 1, 1]),
    box=np.array([box(0), box(30), box(0)]),
    crowd=np.zeros(3, bool),
  )
  found = coco.Instances(
    image=np.array([2, 0, 0]), label=np.array([0, 0, 1]), box=np.array([box(1), box(0), box(60)])
  )
  shown = mistakes.review_of(truths, found, np.array([4, 5, 8]), ['cup', 'pen'])
  assert shown.confusion.names == ('cup', 'pen', 'nothing')
  # A cup is found, a pen is missed, one is taken for a cup, and a pen is where nothing is.
  np.testing.assert_array_equal(shown.confusion.counts, [[1, 0, 0], [1, 0, 1], [0, 1, 0]])
  assert [(x.index, x.text) for x in shown.mistakes] == [
    (4, '1 missed, 1 false'),
    (8, '1 missed, 1 false'),
  ]
