"""Against sorting as the original does it; the recorded cases are replayed in tests/parity."""

import numpy as np
import pytest

from crossattn_jax.metrics import retrieval


def _sorted_ranks(scores, target):
  """The place of any of `target` in a stable ascending order that is then reversed."""
  order = np.argsort(scores, kind='stable')[::-1]
  return min(int(np.flatnonzero(order == index)[0]) for index in target)


@pytest.mark.parametrize('captions', [1, 2, 5])
def test_ranks_are_places_in_the_sorted_list_with_ties(captions):
  rng = np.random.default_rng(captions)
  scores = rng.integers(0, 6, (12, 12 * captions)).astype(np.float32)
  own = np.arange(12 * captions).reshape(12, captions)
  np.testing.assert_array_equal(
    retrieval.image_to_text_ranks(scores, captions),
    [_sorted_ranks(row, target) for row, target in zip(scores, own, strict=True)],
  )
  np.testing.assert_array_equal(
    retrieval.text_to_image_ranks(scores, captions),
    [_sorted_ranks(column, [i // captions]) for i, column in enumerate(scores.T)],
  )


def test_a_perfect_search_has_recalls_of_one_hundred():
  metrics = retrieval.retrieval_metrics(np.kron(np.eye(4), np.ones((1, 5))))
  assert metrics['rsum'] == 600
  assert {metrics[f'{way}_{place}'] for way in ('i2t', 't2i') for place in ('medr', 'meanr')} == {1}


def test_medians_between_places_are_rounded_down():
  metrics = retrieval.rank_metrics(np.array([0, 1, 4, 7]))
  assert metrics == {'r1': 25.0, 'r5': 75.0, 'r10': 100.0, 'medr': 3.0, 'meanr': 4.0}


def test_folds_are_searched_alone():
  """Every image's captions score best within its fold, and those of another fold higher."""
  scores = np.kron(np.eye(4), np.ones((1, 2)))
  scores[:2, 4:] = 2
  assert retrieval.retrieval_metrics(scores, captions_per_image=2, folds=2)['i2t_r1'] == 100
  assert retrieval.retrieval_metrics(scores, captions_per_image=2)['i2t_r1'] == 50


def test_captions_may_search_by_other_scores():
  found, lost = np.kron(np.eye(4), np.ones((1, 2))), np.zeros((4, 8))
  table = retrieval.retrieval_metrics(found, captions_per_image=2, text_scores=lost)
  assert (table['i2t_r1'], table['t2i_r1']) == (100, 25)
  with pytest.raises(ValueError, match=r'text_scores have shape \(3, 6\), scores \(4, 8\)'):
    retrieval.retrieval_metrics(found, captions_per_image=2, text_scores=lost[:3, :6])


def test_scores_that_cannot_be_ranked_are_refused():
  scores = np.zeros((4, 20))
  with pytest.raises(ValueError, match=r'\[images, 3 \* images\], not of shape \(4, 20\)'):
    retrieval.retrieval_metrics(scores, captions_per_image=3)
  with pytest.raises(ValueError, match='4 images cannot be cut into folds=3 equal parts'):
    retrieval.retrieval_metrics(scores, folds=3)
  scores[1, 2] = np.nan
  with pytest.raises(ValueError, match='1 of 80 scores are not finite'):
    retrieval.retrieval_metrics(scores)
