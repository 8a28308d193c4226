import pickle

import numpy as np
import pytest

from crossattn_jax.data.retrieval import word_features

LENGTHS = [3, 1, 4]


def _captions(channels=2):
  rng = np.random.default_rng(0)
  return [rng.standard_normal((length, channels)).astype(np.float32) for length in LENGTHS]


def _open(folder, captions=3, channels=2, max_words=5):
  return word_features.WordFeatures(
    folder, 'dev', captions=captions, channels=channels, max_words=max_words
  )


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
def test_captions_are_read_as_they_were_written(tmp_path, dtype):
  captions = _captions()
  paths = word_features.write_word_features(tmp_path, 'dev', LENGTHS, iter(captions), 2, dtype)
  assert sorted(tmp_path.iterdir()) == sorted(paths)
  features = pickle.loads(pickle.dumps(_open(tmp_path)))
  for number, expected in enumerate(captions):
    read = features[number]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, expected.astype(dtype))


def test_features_are_mapped_and_not_sent_to_workers(tmp_path):
  large = (np.zeros((1, 5000), np.float32) for _ in range(3))
  word_features.write_word_features(tmp_path, 'dev', [1, 1, 1], large, 5000)
  features = _open(tmp_path, channels=5000)
  assert isinstance(features._features.array, np.memmap)
  assert len(pickle.dumps(features)) < 2000


def test_files_that_do_not_fit_are_refused_by_name_and_shape(tmp_path):
  with pytest.raises(
    ValueError, match=r"dev_words\.npy' does not exist; .*retrieval.words` writes"
  ):
    _open(tmp_path)
  word_features.write_word_features(tmp_path, 'dev', LENGTHS, _captions(), 2)
  with pytest.raises(ValueError, match=r"dev_lengths\.npy' .* shape \(3,\); .* each of the 4 capt"):
    _open(tmp_path, captions=4)
  with pytest.raises(
    ValueError, match=r'captions of 1 to 4 words; .* at most dataset\.max_words=3'
  ):
    _open(tmp_path, max_words=3)
  with pytest.raises(
    ValueError, match=r"dev_words\.npy' .* shape \(8, 2\); expected floats \[8, 3\]"
  ):
    _open(tmp_path, channels=3)
  np.save(tmp_path / 'dev_lengths.npy', np.array([3, 1, 3]))
  with pytest.raises(
    ValueError, match=r"expected floats \[7, 2\]: all words that 'dev_lengths\.npy'"
  ):
    _open(tmp_path)
  np.save(tmp_path / 'dev_lengths.npy', np.array([4.0, 1, 3]))
  with pytest.raises(ValueError, match=r"dev_lengths\.npy' is an array of float64 .* integers"):
    _open(tmp_path)


def test_what_is_not_complete_is_not_left_behind(tmp_path):
  with pytest.raises(
    ValueError, match=r'caption 1 .*expected features of shape \(1, 2\), not \(2, 2\)'
  ):
    word_features.write_word_features(
      tmp_path, 'dev', [3, 1], [np.ones((3, 2)), np.ones((2, 2))], 2
    )
  assert not list(tmp_path.iterdir())
