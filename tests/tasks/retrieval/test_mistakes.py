"""Queries that find their own last."""

import numpy as np

from crossattn_jax.tasks.retrieval import mistakes


def test_queries_are_ranked_by_the_place_of_their_own():
  # Two captions of each of three images. Image 2 finds its own at the places 4 and 6.
  scores = np.array(
    [
      [9, 1, 2, 3, 0, 4],
      [1, 2, 8, 3, 0, 4],
      [5, 4, 9, 1, 3, 0],
    ],
    np.float64,
  )
  found = mistakes.worst_queries([scores], [np.array([10, 11, 12])])
  assert [(x.index, x.caption, x.text) for x in found] == [
    (12, None, 'own at place 4 of 6'),
    (10, 1, 'own at place 3 of 3'),
    (12, 1, 'own at place 3 of 3'),
    (11, 0, 'own at place 2 of 3'),
  ]
  # What is found instead, best first.
  assert [(x.row, x.caption) for x in found[0].result.answers[:2]] == [(1, 0), (0, 0)]
  assert [x.row for x in found[1].result.answers] == [2, 1, 0]


def test_parts_that_were_searched_alone_keep_their_numbers():
  right, wrong = np.eye(2), np.array([[0.0, 1.0], [1.0, 0.0]])
  found = mistakes.worst_queries([right, wrong], [np.array([3, 4]), np.array([5, 6])])
  assert sorted((x.index, x.caption is None) for x in found) == [
    (5, False),
    (5, True),
    (6, False),
    (6, True),
  ]
