import numpy as np

from crossattn_jax.tasks.retrieval import search


def test_answers_are_right_where_they_belong_to_the_query():
  scores = np.array([0.1, 0.9, 0.3, 0.8, 0.2, 0.7])
  image = search.best_answers(search.Query(row=1), scores, 2, 3)
  assert [(x.row, x.caption) for x in image.answers] == [(0, 1), (1, 1), (2, 1)]
  sentence = search.best_answers(search.Query('a'), scores, 2, 2)
  assert [(x.row, x.caption, x.score) for x in sentence.answers] == [(1, None, 0.9), (3, None, 0.8)]
