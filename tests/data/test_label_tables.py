"""Tables name files and their classes."""

import numpy as np
import pytest

from crossattn_jax.data import label_tables


@pytest.fixture
def folder(tmp_path):
  text = '\ufefffile,labels,note\na.jpg,"dog, cat",x\nb/c.jpg,,\nd.jpg,cat,\n'
  (tmp_path / 'train.csv').write_text(text, encoding='utf-8')
  (tmp_path / 'other.csv').write_text('a,b\n1,2\n')
  (tmp_path / '.hidden.csv').write_text('file,labels\n')
  return tmp_path


def test_a_table_says_which_classes_each_file_has(folder):
  table = label_tables.LabelTable(folder, 'train')
  assert table.class_names == ('cat', 'dog')
  assert table.paths == [str(folder / name) for name in ('a.jpg', 'b/c.jpg', 'd.jpg')]
  assert table.labels == [(0, 1), (), (0,)]
  np.testing.assert_array_equal(
    np.stack([table.target(i) for i in range(3)]), [[1, 1], [0, 0], [1, 0]]
  )
  assert label_tables.find_tables(folder) == ['train']
  parts = [label_tables.LabelTable(folder, f'train{part}') for part in ('[:90%]', '[90%:]')]
  assert sorted(parts[0].paths + parts[1].paths) == table.paths
  assert parts[0].class_names == parts[1].class_names == table.class_names


@pytest.mark.parametrize(
  ('split', 'text', 'message'),
  [
    ('val', None, "no table '.*val.csv'; there are train.csv"),
    (
      'val',
      'file,label\na.jpg,cat\n',
      "has no column 'labels'; expected a first line 'file,labels'",
    ),
    ('val', 'file,labels\n', 'has no rows'),
    ('val', 'file,labels\na.jpg,cat\nb.jpg\n', 'line 3 of .* has too few columns'),
    ('val', 'file,labels\na.jpg,cat,dog\n', 'line 2 of .* more entries .* quote those with commas'),
    ('val', 'file,labels\na.jpg,cow\n', "val.csv gives 'a.jpg' the label 'cow', .* .'cat', 'dog'."),
    ('train[:0.001%]', None, r"has none of the 3 files: .* 'train\[:50%\]' and 'train\[50%:\]'"),
  ],
)
def test_what_is_wrong_with_a_table_is_named(folder, split, text, message):
  if text is not None:
    (folder / f'{split}.csv').write_text(text)
  with pytest.raises(ValueError, match=message):
    label_tables.LabelTable(folder, split, ('cat', 'dog'))
