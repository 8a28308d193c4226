import collections
import io
import multiprocessing
import os

import numpy as np
from PIL import Image
import pytest
from sklearn import datasets
import tensorflow_datasets as tfds

from crossattn_jax.data.classification import digits, sources


def test_splits_are_stratified_and_disjoint_and_hold_every_digit(digits_dir):
  splits = {
    split: sources.create_source('digits', split, digits_dir) for split in ('train', 'test')
  }
  assert {split: len(source) for split, source in splits.items()} == {'train': 1442, 'test': 355}
  original = datasets.load_digits()
  seen = {}
  for split, source in splits.items():
    counts = collections.Counter()
    for index in range(len(source)):
      example = source[index]
      number = int(example['key'].split('digit_')[1].rstrip(')'))
      assert number not in seen
      seen[number] = split
      assert example['label'] == original.target[number]
      counts[example['label']] += 1
      pixels = np.asarray(Image.open(io.BytesIO(example['image'])))
      np.testing.assert_array_equal(pixels, np.round(original.images[number] * 255 / 16))
    every = np.bincount(original.target)
    share = np.array([counts[digit] for digit in range(10)]) / every
    np.testing.assert_allclose(share, {'train': 0.8, 'test': 0.2}[split], atol=0.01)
  assert sorted(seen) == list(range(1797))


def test_preparing_again_leaves_the_files_alone(digits_dir):
  folder = os.path.join(digits_dir, 'digits', '1.0.0')
  before = {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(folder)}
  digits.prepare(digits_dir)
  assert {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(folder)} == before


def test_default_folder_is_that_of_tfds(monkeypatch, tmp_path):
  asked = []
  monkeypatch.setattr(
    digits, 'Digits', lambda data_dir, file_format: asked.append(data_dir) or _Prepared(tmp_path)
  )
  digits.prepare()
  assert asked == [None]  # TFDS resolves None to its own default.


class _Prepared:
  def __init__(self, path):
    self.data_path = path


def test_another_process_that_finishes_first_wins(tmp_path, monkeypatch):
  generate = digits.Digits._generate_examples

  def generate_while_a_rival_finishes(self, split):
    monkeypatch.setattr(digits.Digits, '_generate_examples', generate)
    digits.prepare(tmp_path)
    return generate(self, split)

  monkeypatch.setattr(digits.Digits, '_generate_examples', generate_while_a_rival_finishes)
  digits.prepare(tmp_path)
  assert os.listdir(tmp_path / 'digits') == ['1.0.0']
  assert len(sources.create_source('digits', 'test', tmp_path)) == 355


def test_processes_may_prepare_at_once(tmp_path):
  context = multiprocessing.get_context('spawn')
  processes = [context.Process(target=digits.prepare, args=(str(tmp_path),)) for _ in range(2)]
  for process in processes:
    process.start()
  for process in processes:
    process.join()
  assert [process.exitcode for process in processes] == [0, 0]
  assert os.listdir(tmp_path / 'digits') == ['1.0.0']


def test_failure_to_write_is_not_hidden(tmp_path, monkeypatch):
  def fail(self, split):
    raise OSError('disk full')

  monkeypatch.setattr(digits.Digits, '_generate_examples', fail)
  with pytest.raises(OSError, match='disk full'):
    digits.prepare(tmp_path)


def test_tfds_opens_it_by_name(digits_dir):
  builder = tfds.builder('digits', data_dir=digits_dir)
  assert builder.info.splits['train'].num_examples == 1442
  assert builder.info.features['label'].names == [str(digit) for digit in range(10)]
