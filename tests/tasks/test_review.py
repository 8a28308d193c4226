"""Counts, shares and rankings that are known by hand."""

from etils import epath
import numpy as np
from PIL import Image
import pytest

from crossattn_jax.tasks import multi_label, review, review_pictures

COUNTS = np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]])


def test_shares_are_of_the_true_class_and_unknown_where_it_does_not_occur():
  confusion = review.Confusion(COUNTS, ['cat', 'dog', 'emu'], 'images')
  np.testing.assert_array_equal(confusion.shares[:2], [[0.8, 0.2, 0], [0.25, 0.75, 0]])
  assert np.isnan(confusion.shares[2]).all()
  assert confusion.to_csv().splitlines() == [
    'true \\ predicted (images),cat,dog,emu',
    'cat,8,2,0',
    'dog,1,3,0',
    'emu,0,0,0',
  ]


def test_the_worst_come_first_and_what_is_right_is_no_mistake():
  found = review.worst(
    np.array([7, 5, 9, 4]), np.array([0.5, 0.0, np.nan, 2.0]), lambda row: f'row {row}'
  )
  assert [(x.index, x.text) for x in found] == [(9, 'row 2'), (4, 'row 3'), (7, 'row 0')]
  table = review.mistakes_csv(found, ['a,b', 'c', 'd'])
  assert table.splitlines() == ['example,error,text', '"a,b",inf,row 2', 'c,2,row 3', 'd,0.5,row 0']


def test_scenes_are_ranked_by_the_share_of_wrong_points():
  confusion = np.array([[[3, 1], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [5, 5]]])
  found = review.worst_matrices(np.array([0, 1, 2]), confusion)
  assert [(x.index, x.error, x.text) for x in found] == [
    (2, 0.5, '50.0% wrong'),
    (0, 0.25, '25.0% wrong'),
  ]


def test_of_several_labels_rows_say_what_is_found_and_what_is_found_falsely_beside_it():
  true = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]], bool)
  found = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]], bool)
  confusion = multi_label.confusion(found, true, ['a', 'b', 'c'])
  np.testing.assert_array_equal(confusion.counts, [[1, 1, 0], [0, 1, 0], [0, 0, 0]])
  np.testing.assert_array_equal(confusion.shares, [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 0]])


def test_the_loss_of_several_labels_is_the_binary_cross_entropy():
  logits, label = np.array([[0.0, 2.0], [-9.0, 9.0]]), np.array([[1, 0], [0, 1]])
  shown = multi_label.review_of(
    {'index': np.array([3, 8]), 'logits': logits, 'label': label}, ['a', 'b']
  )
  expected = [(np.log(2) + np.log(1 + np.exp(2))) / 2, np.log(1 + np.exp(-9))]
  assert [x.index for x in shown.mistakes] == [3, 8]
  assert [x.error for x in shown.mistakes] == pytest.approx(expected)


def test_of_very_many_classes_there_is_no_matrix(monkeypatch):
  monkeypatch.setattr(review, 'MOST_CLASSES', 1)
  examples = {'index': np.array([3]), 'logits': np.zeros((1, 2)), 'label': np.eye(2)[:1]}
  shown = multi_label.review_of(examples, ['a', 'b'])
  assert shown.confusion is None
  assert len(shown.mistakes) == 1


@pytest.mark.extended
@pytest.mark.parametrize('count', [2, 20, 1000])
def test_pictures_stay_small_whatever_the_number_of_classes(count, tmp_path):
  counts = np.random.default_rng(0).integers(0, 3, (count, count)) + 9 * np.eye(count, dtype=int)
  names = [f'a rather long name of class {number}' for number in range(count)]
  path = epath.Path(tmp_path / 'confusion.png')
  review_pictures.confusion(path, review.Confusion(counts, names, 'pixels'))
  with Image.open(path) as picture:
    assert max(picture.size) < 2000
    assert np.asarray(picture).std() > 10
