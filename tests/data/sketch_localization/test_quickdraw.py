import itertools
import os
import pickle

import numpy as np
import pytest

from crossattn_jax.data import pipeline
from crossattn_jax.data.sketch_localization import quickdraw

NAMES = ('dog', 'hot dog')
COUNT = 40


def numbers(source, label):
  return [source.drawing(label, number)[0][1, 1] for number in range(source.counts[label])]


def test_every_drawing_is_in_one_part(quickdraw_dir):
  parts = [quickdraw.open_source(quickdraw_dir, part, NAMES) for part in quickdraw.PARTS]
  for label in range(len(NAMES)):
    found = [numbers(part, label) for part in parts]
    assert sorted(itertools.chain(*found)) == list(range(COUNT))
    assert [len(each) for each in found] == [part.counts[label] for part in parts]
    assert len(found[0]) > 25


def test_parts_depend_on_keys_alone(quickdraw_dir):
  before = numbers(quickdraw.open_source(quickdraw_dir, 'valid', ('dog',)), 0)
  path = quickdraw_dir / 'dog.ndjson'
  # In another order, with empty lines between them.
  path.write_text('\n\n'.join(reversed(path.read_text().splitlines())))
  after = numbers(quickdraw.open_source(quickdraw_dir, 'valid', ('dog',)), 0)
  assert sorted(after) == sorted(before)
  assert after != before


def test_lines_are_looked_for_once(quickdraw_dir, monkeypatch):
  first = numbers(quickdraw.open_source(quickdraw_dir, 'train', NAMES), 1)
  assert (quickdraw_dir / 'hot dog.index.npy').exists()
  monkeypatch.setattr(quickdraw, '_scan', None)
  assert numbers(quickdraw.open_source(quickdraw_dir, 'train', NAMES), 1) == first


def test_files_that_have_changed_are_looked_at_again(quickdraw_dir):
  assert quickdraw.open_source(quickdraw_dir, 'train', ('dog',)).counts.sum() > 1
  path = quickdraw_dir / 'dog.ndjson'
  lines = path.read_text().splitlines()
  path.write_text('\n'.join(lines[:20]))
  index = quickdraw_dir / 'dog.index.npy'
  os.utime(index, (2e9, 2e9))  # A copy may be older than its index.
  counts = [quickdraw.open_source(quickdraw_dir, part, ('dog',)) for part in ('train', 'valid')]
  assert sum(source.counts[0] for source in counts) <= 20
  assert len(np.load(index)) == 21


def test_a_folder_that_may_not_be_written_is_read(quickdraw_dir, monkeypatch):
  def refuse(*args):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(np, 'save', refuse)
  source = quickdraw.open_source(quickdraw_dir, 'train', ('dog',))
  assert len(numbers(source, 0)) == source.counts[0] > 25
  assert not (quickdraw_dir / 'dog.index.npy').exists()


def test_names_as_browsers_save_them(quickdraw_dir):
  path = quickdraw_dir / 'hot dog.ndjson'
  path.rename(quickdraw_dir / 'full_simplified_hot dog.ndjson')
  assert quickdraw.find_classes(quickdraw_dir) == ('cat', 'dog', 'hot dog')
  assert quickdraw.open_source(quickdraw_dir, 'train', ('Hot dog',)).counts[0] > 25


def test_a_worker_gets_no_drawings(quickdraw_dir, stroke3_dir):
  for folder in (quickdraw_dir, stroke3_dir):
    source = quickdraw.open_source(folder, 'train', ('dog',))
    source.drawing(0, 1)
    assert len(pickle.dumps(source)) < 2000
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.drawing(0, 1)[0], source.drawing(0, 1)[0])


def test_a_class_without_a_file_is_named(quickdraw_dir, stroke3_dir):
  with pytest.raises(ValueError, match=r"no drawings of 'bear': expected 'bear.ndjson'; .*'cat'"):
    quickdraw.open_source(quickdraw_dir, 'train', ('cat', 'bear'))
  with pytest.raises(ValueError, match=r"expected 'cat.test.ptr.npy'"):
    quickdraw.open_source(stroke3_dir, 'test', ('cat',))


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('{"key_id": "1", "word": "dog"}', "line 3 has no 'drawing'"),
    ('{"key_id": "1", "drawing": []}', 'line 3 has no strokes'),
    ('{"key_id": "1", "drawing": [[1, 2}', 'line 3 is not JSON'),
    ('{"key_id": "1", "drawing": [[[1], [2], [0]]]}', 'line 3 has times in stroke 1'),
  ],
)
def test_a_line_that_is_no_drawing_is_named(quickdraw_dir, line, message):
  path = quickdraw_dir / 'dog.ndjson'
  lines = path.read_text().splitlines()
  path.write_text('\n'.join([*lines[:2], line, *lines[3:]]))
  parts = [quickdraw.open_source(quickdraw_dir, part, ('dog',)) for part in quickdraw.PARTS]
  with pytest.raises(pipeline.UnreadableError, match=rf"dog.ndjson', {message}"):
    _ = [numbers(part, 0) for part in parts]


def test_files_that_end_in_the_middle_are_refused(quickdraw_dir):
  path = quickdraw_dir / 'dog.ndjson'
  path.write_text(path.read_text()[:-20])
  with pytest.raises(ValueError, match=r"dog.ndjson', line 40 is no JSON object.*load it again"):
    quickdraw.open_source(quickdraw_dir, 'train', ('dog',))
  path.write_text('\n')
  with pytest.raises(ValueError, match=r'dog.ndjson. is empty'):
    quickdraw.open_source(quickdraw_dir, 'train', ('dog',))


def test_stroke3_is_read_by_its_starts(stroke3_dir):
  source = quickdraw.open_source(stroke3_dir, 'valid', ('dog', 'cat'))
  assert source.counts.tolist() == [3, 3]
  (stroke,) = source.drawing(1, 2)
  np.testing.assert_array_equal(stroke, [[2, 1], [3, 8]])


def test_stroke3_of_other_files_is_refused(stroke3_dir):
  np.save(stroke3_dir / 'dog.train.ptr.npy', np.arange(4))
  with pytest.raises(ValueError, match=r'is of steps 0 to 3, but .* has 10: they do not belong'):
    quickdraw.open_source(stroke3_dir, 'train', ('dog',))
  np.save(stroke3_dir / 'cat.train.strokes.npy', np.zeros((10, 5), np.int16))
  with pytest.raises(ValueError, match=r'cat.train.strokes.npy. is \[10, 5\]; expected \[steps, 3'):
    quickdraw.open_source(stroke3_dir, 'train', ('cat',))


def test_a_drawing_of_stroke3_without_steps_is_named(stroke3_dir):
  np.save(stroke3_dir / 'dog.train.ptr.npy', np.array([0, 4, 4, 10]))
  source = quickdraw.open_source(stroke3_dir, 'train', ('dog',))
  with pytest.raises(pipeline.UnreadableError, match=r"dog.train.strokes.npy', drawing 1 has"):
    source.drawing(0, 1)
