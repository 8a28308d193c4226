"""Shares of a folder are the same everywhere, and stay so when files come and go."""

import unicodedata

import ml_collections
import pytest

from crossattn_jax.data import splits

NAMES = [f'class_{number % 7}/{number:05d}.jpg' for number in range(10_000)]


def share(split: str) -> set[str]:
  parsed = splits.FolderSplit.parse(split)
  return {name for name in NAMES if parsed.has(name)}


def test_shares_are_parts_of_the_whole_and_about_as_large_as_they_say():
  train, evaluation = share('train[:90%]'), share('train[90%:]')
  assert train | evaluation == set(NAMES) == share('train')
  assert not train & evaluation
  assert len(evaluation) == pytest.approx(1000, abs=5 * 30)  # Five standard deviations.
  assert share('.[:12.5%]') < share('.[:25%]') < train
  assert share('.[25%:75%]') == share('.[:75%]') - share('.[:25%]')


def test_a_file_s_place_depends_on_its_path_alone():
  # The first bytes of `printf PATH | b2sum -l 64`, as a fraction of 2**64: 0.2678, 0.4124.
  first = splits.FolderSplit.parse('train[26.7%:26.8%]')
  second = splits.FolderSplit.parse('train[41.2%:41.3%]')
  assert first.has('cat/0.jpg')
  assert second.has('dog/1.png')
  assert not first.has('dog/1.png')
  composed, decomposed = (
    unicodedata.normalize(form, 'Kätzchen/für.jpg') for form in ('NFC', 'NFD')
  )
  for stop in range(10, 100, 10):
    each = splits.FolderSplit('train', 0, stop)
    assert each.has(composed) == each.has(decomposed)


@pytest.mark.parametrize('split', ['train[10:20]', 'train[90%:10%]', 'train[:190%]', 'train[', ']'])
def test_other_slices_are_refused_with_examples(split):
  with pytest.raises(ValueError, match=r"split '.*' is not .* 'train\[:90%\]' or '.\[90%:\]'"):
    splits.FolderSplit.parse(split)


@pytest.mark.parametrize(
  ('available', 'whole', 'expected'),
  [
    (('test', 'train', 'val'), None, ('train', 'val')),
    (('Test', 'Train'), '.', ('Train', 'Test')),
    (('training', 'validation', 'valid'), '.', ('training', 'validation')),
    (('more', 'train'), '.', ('train[:90%]', 'train[90%:]')),
    (('cat', 'dog'), '.', ('.[:90%]', '.[90%:]')),
  ],
)
def test_splits_are_found_by_their_names_or_held_out(available, whole, expected):
  config = ml_collections.ConfigDict({'name': 'image_folder', 'data_dir': '/d'})
  config.train_split = config.eval_split = None
  (note,) = splits.complete(config, available, whole)
  assert (config.train_split, config.eval_split) == expected
  assert note == f"splits of '/d': {expected[0]!r} for training, {expected[1]!r} for evaluation"


@pytest.mark.parametrize(
  ('given', 'available', 'message'),
  [
    ((None, None), ('cat', 'val'), "no split 'train', but 'cat', 'val'; .* if these are classes"),
    ((None, '.[90%:]'), ('cat', 'dog'), "no split 'train'"),
    (('train[:50%]', None), ('train',), 'set dataset.eval_split'),
  ],
)
def test_where_it_is_not_clear_what_to_train_on_it_is_asked(given, available, message):
  config = ml_collections.ConfigDict({'name': 'image_folder', 'data_dir': '/d'})
  config.train_split, config.eval_split = given
  with pytest.raises(ValueError, match=message):
    splits.complete(config, available, '.')


def test_what_is_given_is_kept():
  config = ml_collections.ConfigDict({'name': 'image_folder', 'data_dir': '/d'})
  config.train_split, config.eval_split = 'photos', None
  splits.complete(config, ('photos', 'val'))
  assert (config.train_split, config.eval_split) == ('photos', 'val')
