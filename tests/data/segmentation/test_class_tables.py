import json

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data.segmentation import class_tables, taxonomies


def read(folder, text, name='classes.csv'):
  (folder / name).write_text(text)
  return class_tables.read_table(class_tables.find_table(folder))


def test_values_names_and_colours_are_those_of_the_table(tmp_path):
  table = read(
    tmp_path,
    'value,name,colour\n0,background,#000000\n255,road,#804080\n7,,\n9,road,\n4,tree,lime\n',
  )
  assert table.class_names == ('background', 'road', 'tree')
  assert table.palette.tolist() == [[0, 0, 0], [128, 64, 128], [0, 255, 0]]
  labels = np.array([[0, 255, 7, 9, 4]], np.uint8)
  assert table.to_classes(labels).tolist() == [[0, 1, 255, 1, 2]]
  assert table.to_labels(np.arange(3)).tolist() == [0, 255, 4]
  with pytest.raises(ValueError, match=r"holds 1 in 100.00% .*0 'background', 255 'road', 7, 9 'r"):
    table.to_classes(np.full((2, 2), 1, np.uint8))


def test_values_may_be_large_and_255_is_as_any_other(tmp_path):
  table = read(tmp_path, 'name, value\nsky, 1000\nsea, 2\n')
  assert table.to_classes(np.array([[1000, 2]], np.uint16)).tolist() == [[0, 1]]
  written = table.to_labels(np.arange(2))
  assert (written.dtype, written.tolist()) == (np.uint16, [1000, 2])
  with pytest.raises(ValueError, match='holds 255 in'):
    table.to_classes(np.array([[255, 2]], np.uint8))


def test_without_values_masks_hold_colours(tmp_path):
  table = read(tmp_path, 'color,name\n#804080,road\n#000000,\n#808080,sky\n')
  assert (table.class_names, table.holds) == (('road', 'sky'), 'color')
  assert table.to_classes(np.array([[0x804080, 0, 0x808080]])).tolist() == [[0, 255, 1]]
  with pytest.raises(ValueError, match=r"holds #0000ff .* expected #804080 'road', #000000, #808"):
    table.to_classes(np.array([[255]]))


def test_a_json_file_is_the_same_table(tmp_path):
  rows = [
    {'value': 0, 'name': 'background', 'color': [1, 2, 3]},
    {'value': 255, 'name': 'road', 'color': '#804080'},
  ]
  table = read(tmp_path, json.dumps(rows), 'classes.json')
  assert table.class_names == ('background', 'road')
  assert table.palette.tolist() == [[1, 2, 3], [128, 64, 128]]
  assert table.labels == {0: 0, 255: 1}
  (tmp_path / 'classes.csv').write_text('')
  with pytest.raises(ValueError, match=r'both classes\.csv and classes\.json'):
    class_tables.find_table(tmp_path)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'names no class; expected rows such as'),
    ('value,name\n0,\n', 'names no class'),
    ('0,background\n255,road\n', r'line 2 has the columns 0, background; expected value,name'),
    ('value,name\n0,a\nx,b\n', r"line 3: the value 'x' is no whole number"),
    ('value,name\n0,a\n0,b\n', r'line 3 repeats the value'),
    ('value,name\n0,a\n-1,b\n', r'line 3: the value -1 of a class is not in 0\.\.65535'),
    ('value,name\n0\n', r'line 2 has not as many entries'),
    ('value,name,color\n0,a,#12\n', r"line 2: the colour '#12' is none; expected '#rrggbb'"),
    ('color,name\n#112233,a\n,b\n', r'line 3 has no colour, and there is no column of values'),
    (
      'value,name\n' + ''.join(f'{i},n{i}\n' for i in range(256)),
      r'has 256 classes; at most 255 are possible',
    ),
  ],
)
def test_tables_that_are_wrong_are_refused_by_line(tmp_path, text, message):
  with pytest.raises(ValueError, match=rf'classes\.csv.*{message}'):
    read(tmp_path, text)


@pytest.mark.parametrize(
  ('masks', 'rows'),
  [
    ([[0, 255], [0, 3]], 'value,name\n0,\n3,\n255,'),
    ([[[0, 0, 1], [255, 0, 0]], [[0, 0, 0], [1, 1, 1]]], 'color,name\n#000000,\n#000001,\n'),
  ],
)
def test_a_missing_table_is_proposed_from_what_masks_hold(tmp_path, masks, rows):
  paths = []
  for number, mask in enumerate(masks):
    paths.append(str(tmp_path / f'{number}.png'))
    Image.fromarray(np.array([mask], np.uint8)).save(paths[-1])
  (tmp_path / 'damaged.png').write_bytes(b'no image')
  error = class_tables.missing_table(tmp_path, [*paths, str(tmp_path / 'damaged.png')])
  assert 'classes.csv' in str(error)
  assert rows in str(error)


def test_classes_are_mapped_by_name_and_others_refused(tmp_path):
  table = read(tmp_path, 'value,name\n1,sky\n2,sea\n255,\n')
  moved = table.by_name(('land', 'sea', 'sky'), 'the table')
  labels = np.array([[1, 2, 255]], np.uint8)
  assert moved.to_classes(labels).tolist() == [[2, 1, 255]]
  with pytest.raises(ValueError, match=r"the table has a class 'sea' .*not among the 1 expected"):
    table.by_name(('sky',), 'the table')


def test_released_taxonomies_know_their_files():
  for taxonomy in taxonomies.TAXONOMIES.values():
    classes = np.arange(taxonomy.num_classes)
    np.testing.assert_array_equal(taxonomy.to_classes(taxonomy.to_labels(classes)), classes)
