import pickle
import re

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data import pairing
from crossattn_jax.data.paired_detection import folder

ROW = '1 0.5 0.5 0.2 0.3\n'
XML = """<annotation><size><width>30</width><height>20</height><depth>3</depth></size>
<object><name>person</name><bndbox><xmin>4</xmin><ymin>5</ymin><xmax>12</xmax><ymax>18</ymax>
</bndbox></object></annotation>"""


def test_objects_are_those_of_the_lines(tmp_path, write_pairs):
  polygon = '0 0.1 0.5 0.3 0.5 0.3 0.7 0.1 0.7'
  write_pairs(tmp_path, a=ROW + polygon, b=None, c='', endings=('.jpg', '.jpeg', '.txt'))
  source = folder.PairFolder(tmp_path, 'train')
  assert source.class_names == ('person', 'car')
  assert source.category_ids == (0, 1)
  assert source.image_ids == (1, 2, 3)
  np.testing.assert_array_equal(source.num_objects, [2, 0, 0])
  assert source.image_size(0) == (20, 30)
  objects = pickle.loads(pickle.dumps(source)).annotations(0)
  np.testing.assert_allclose(objects.boxes, [[12, 7, 18, 13], [3, 10, 9, 14]], rtol=1e-12)
  np.testing.assert_array_equal(objects.labels, [1, 0])
  assert len(source.annotations(1)) == len(source.annotations(2)) == 0
  example = source[0]
  paths = [tmp_path / 'visible/train/a.jpg', tmp_path / 'infrared/train/a.jpeg']
  assert [example['key'], example['rgb_key'], example['thermal_key']] == [
    str(path) for path in (paths[0], *paths)
  ]
  assert [example['rgb'], example['thermal']] == [path.read_bytes() for path in paths]


@pytest.mark.parametrize(
  ('folders', 'split'),
  [
    (('RGB/test', 'Thermal/test', 'labels/test'), 'test'),
    (('test/color', 'test/lwir', 'test/labels'), 'test'),
    (('test/vis', 'test/ir', 'labels/test'), 'test'),
    (('visible', 'tir', 'labels'), '.'),
    (('visible/test/set00/V000', 'lwir/test/set00/V000', 'labels/test/set00/V000'), 'test'),
  ],
  ids=str,
)
def test_layouts(tmp_path, write_pairs, folders, split):
  write_pairs(tmp_path, folders, a=ROW, b='')
  source = folder.PairFolder(tmp_path, split)
  assert list(source.num_objects) == [1, 0]
  assert pairing.find_splits(tmp_path) == ([] if split == '.' else [split])


def test_names_may_end_in_what_an_image_shows(tmp_path, write_pairs):
  write_pairs(tmp_path, endings=('_RGB.jpg', '_PreviewData.jpeg', '_PreviewData.txt'), x_1=ROW)
  write_pairs(tmp_path, endings=('_visible.png', '_lwir.png', '_visible.txt'), x_2=ROW)
  source = folder.PairFolder(tmp_path, 'train')
  assert source[0]['thermal_key'].endswith('x_1_PreviewData.jpeg')
  np.testing.assert_array_equal(source.num_objects, [1, 1])


def test_objects_may_be_in_xml_files_of_all_splits(tmp_path, write_pairs):
  for split, name in (('train', 'a'), ('test', 'b')):
    folders = (f'visible/{split}', f'infrared/{split}', 'Annotations')
    endings = ('.jpg', '.jpg', '.xml')
    write_pairs(tmp_path, folders, endings=endings, table=None, **{name: XML})
  assert pairing.find_splits(tmp_path) == ['test', 'train']
  source = folder.PairFolder(tmp_path, 'test')
  assert (source.class_names, source.category_ids) == (('person',), (1,))
  np.testing.assert_array_equal(source.annotations(0).boxes, [[3, 4, 12, 18]])


def test_shares_of_a_split_are_disjoint(tmp_path, write_pairs):
  texts = dict.fromkeys('abcdefgh', ROW)
  write_pairs(tmp_path, **texts)
  shares = [folder.PairFolder(tmp_path, f'train[{s}]').image_ids for s in (':50%', '50%:')]
  assert all(shares)
  assert sorted(sum(shares, ())) == list(range(1, 9))


def test_class_names_stand_in_for_a_table(tmp_path, write_pairs):
  write_pairs(tmp_path, table=None, a=ROW)
  with pytest.raises(ValueError, match=r'nothing says what the classes .*data\.yaml'):
    folder.PairFolder(tmp_path, 'train')
  source = folder.PairFolder(tmp_path, 'train', ('person', 'bicycle'))
  assert source.class_names == ('person', 'bicycle')
  with pytest.raises(ValueError, match=r"class 1, but 'dataset\.class_names' names 1"):
    folder.PairFolder(tmp_path, 'train', ('person',))
  (tmp_path / 'data.yaml').write_text('names: [person, car]')
  source = folder.PairFolder(tmp_path, 'train', ('car', 'person'))
  np.testing.assert_array_equal(source.annotations(0).labels, [0])


def test_a_line_that_is_wrong_is_named(tmp_path, write_pairs):
  write_pairs(tmp_path, a=ROW, b='0 .5 .5 .1')
  with pytest.raises(ValueError, match=r"labels/train/b\.txt', line 1 has 4 numbers; expected '"):
    folder.PairFolder(tmp_path, 'train')


def test_images_without_partner_are_refused_by_name(tmp_path, write_pairs):
  write_pairs(tmp_path, a=ROW, b=ROW)
  (tmp_path / 'infrared/train/b.png').unlink()
  wrong = r"visible/train/b\.png' has no partner: expected '.*infrared/train' to .*'b', .*'b\.png'"
  with pytest.raises(ValueError, match=wrong):
    folder.PairFolder(tmp_path, 'train')
  Image.new('L', (30, 20)).save(tmp_path / 'infrared/train/b.png')
  Image.new('L', (30, 20)).save(tmp_path / 'infrared/train/b.jpg')
  with pytest.raises(ValueError, match=r"b\.jpg' and '.*b\.png' have the same name; remove one"):
    folder.PairFolder(tmp_path, 'train')


def test_names_that_do_not_fit_are_said(tmp_path, write_pairs, caplog):
  write_pairs(tmp_path, a=ROW, b=None)
  (tmp_path / 'labels/train/classes.txt').write_text('person')
  folder.PairFolder(tmp_path, 'train')
  assert not caplog.messages
  (tmp_path / 'labels/train/B.txt').write_text(ROW)
  folder.PairFolder(tmp_path, 'train')
  (message,) = caplog.messages
  expected = r"1 of 2 pairs .* such as 'b', but .* have no pair, .*labels/train/B\.txt'"
  assert re.match(expected, message)


def test_what_is_missing_in_a_folder_is_named(tmp_path, write_pairs):
  write_pairs(tmp_path, ('rgb/train', 'ir/train', 'labels/train'), a=ROW)
  with pytest.raises(ValueError, match=r"no pairs of split 'val'; its splits are 'train'\. Exp"):
    folder.PairFolder(tmp_path, 'val')
  with pytest.raises(ValueError, match=rf"rgb' .* 'train'\. Did you mean .*='{tmp_path}'\?"):
    folder.PairFolder(tmp_path / 'rgb', '.')
  (tmp_path / 'rgb/val').mkdir()
  with pytest.raises(ValueError, match=r"ir/val' is missing, the partner of '.*rgb/val'"):
    folder.PairFolder(tmp_path, 'val')
  (tmp_path / 'ir/val').mkdir()
  with pytest.raises(ValueError, match=r"no images in '.*rgb/val' and '.*ir/val'"):
    folder.PairFolder(tmp_path, 'val')
  labels = tmp_path / 'labels/train/a.txt'
  labels.rename(labels.with_name('c.txt'))
  with pytest.raises(ValueError, match=r"none of the 1 images .* needs '.*labels/train/a\.txt'"):
    folder.PairFolder(tmp_path, 'train')
  (tmp_path / 'labels').rename(tmp_path / 'objects')
  with pytest.raises(ValueError, match=r"has no folder 'labels' or 'annotations' for the objects"):
    folder.PairFolder(tmp_path, 'train')
  (tmp_path / 'ir').rename(tmp_path / 'night')
  with pytest.raises(ValueError, match=r"no pairs; its folders are 'night', 'objects', 'rgb'\."):
    folder.PairFolder(tmp_path, '.')


def test_files_of_two_kinds_are_refused(tmp_path, write_pairs):
  write_pairs(tmp_path, a=ROW, b=None)
  (tmp_path / 'labels/train/b.xml').write_text(XML)
  with pytest.raises(ValueError, match=r'both YOLO .* and Pascal VOC .*labels/train'):
    folder.PairFolder(tmp_path, 'train')
