import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data.detection import sources, voc_folder

OBJECT = """
<object><name>{name}</name><difficult>{difficult}</difficult>
<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""
SIZE = '<size><width>30</width><height>20</height><depth>3</depth></size>'


def entry(*box, name='dog', difficult=0):
  return OBJECT.format(*box, name=name, difficult=difficult)


def write(root, images='JPEGImages', texts='Annotations', size=SIZE, **objects):
  """Images of 20 x 30 pixels and the XML file of each, None for none."""
  for name, found in objects.items():
    for folder in (images, texts):
      (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (30, 20)).save(root / images / f'{name}.jpg')
    if found is not None:
      (root / texts / f'{name}.xml').write_text(f'<annotation>{size}{found}</annotation>')
  return root


def test_objects_are_those_of_the_files(tmp_path):
  # The first box covers all of the image: pixels count from 1, the last one included.
  objects = entry(1, 1, 30, 20) + entry(4, 5, 6, 8, name='cat', difficult=1)
  write(tmp_path, a=objects, b='', c=None, d=entry(2, 2, 3, 3))
  source = voc_folder.VocFolder(tmp_path, '.')
  assert (source.class_names, source.category_ids) == (('cat', 'dog'), (1, 2))
  assert source.image_ids == (1, 2, 3, 4)
  np.testing.assert_array_equal(source.num_objects, [2, 0, 0, 1])
  assert source[0]['key'] == str(tmp_path / 'JPEGImages/a.jpg')
  found = source.annotations(0)
  assert found.size == (20, 30)
  np.testing.assert_array_equal(found.boxes, [[0, 0, 30, 20], [3, 4, 6, 8]])
  np.testing.assert_array_equal(found.labels, [1, 0])
  np.testing.assert_array_equal(found.area, [600, 12])
  np.testing.assert_array_equal(found.learnable, [True, False])
  np.testing.assert_array_equal(found.ids, [1, 2])
  np.testing.assert_array_equal(source.annotations(3).ids, [3])
  assert len(source.annotations(1)) == len(source.annotations(2)) == 0


def test_classes_are_mapped_by_name(tmp_path):
  write(tmp_path, a=entry(1, 1, 3, 3))
  source = voc_folder.VocFolder(tmp_path, '.', class_names=('cat', 'dog'))
  assert (source.class_names, source.category_ids) == (('cat', 'dog'), (2, 1))
  np.testing.assert_array_equal(source.annotations(0).labels, [1])
  with pytest.raises(ValueError, match="has a class 'dog' that is not among the 1 expected"):
    voc_folder.VocFolder(tmp_path, '.', class_names=('cat',))


def test_other_classes_are_left_out_and_counted(tmp_path, caplog):
  write(tmp_path, a=entry(1, 1, 3, 3, name='cat') + entry(1, 1, 5, 5), b=entry(1, 1, 2, 2))
  source = voc_folder.VocFolder(tmp_path, '.', class_names=('cat',), other_classes='skip')
  assert (source.class_names, source.category_ids) == (('cat',), (1,))
  assert source.num_objects.tolist() == [1, 0]
  np.testing.assert_array_equal(source.annotations(0).boxes, [[0, 0, 3, 3]])
  assert len(source.annotations(1)) == 0
  assert '2 of 3 objects of ' in caplog.text


def test_a_size_that_is_not_said_is_the_image_s(tmp_path):
  write(tmp_path, size='<size><width>0</width><height>0</height></size>', a=entry(1, 1, 3, 3))
  assert voc_folder.VocFolder(tmp_path, '.').annotations(0).size == (20, 30)


@pytest.mark.parametrize(
  ('images', 'texts', 'split'),
  [
    ('JPEGImages', 'Annotations', '.'),
    ('images', 'annotations', '.'),
    ('images/train', 'annotations/train', 'train'),
    ('train/images', 'train/annotations', 'train'),
    ('train', 'train', 'train'),
    ('.', '.', '.'),
  ],
)
def test_layouts(tmp_path, images, texts, split):
  write(tmp_path, images, texts, a=entry(1, 1, 3, 3))
  source = sources.create_source('detection_folder', split, tmp_path)
  assert isinstance(source, voc_folder.VocFolder)
  assert source[0]['key'] == str(tmp_path / images / 'a.jpg')
  assert voc_folder.find_splits(tmp_path) == ([] if split == '.' else [split])


def test_released_splits_are_lists(tmp_path):
  write(tmp_path, a=entry(1, 1, 3, 3), b=entry(1, 1, 3, 3), c=entry(1, 1, 3, 3))
  lists = tmp_path / 'ImageSets/Main'
  lists.mkdir(parents=True)
  (lists / 'train.txt').write_text('c\na\n')
  (lists / 'val.txt').write_text('b\nd\n')
  (lists / 'dog_train.txt').write_text('c  1\na -1\n')
  assert voc_folder.find_splits(tmp_path) == ['train', 'val']
  source = voc_folder.VocFolder(tmp_path, 'train')
  assert [source[i]['key'] for i in range(2)] == [
    str(tmp_path / f'JPEGImages/{name}.jpg') for name in 'ca'
  ]
  with pytest.raises(ValueError, match=r'names 2 images, of which 2 files are not there, such as'):
    voc_folder.VocFolder(tmp_path, 'val')


@pytest.mark.parametrize(
  ('objects', 'message'),
  [
    (entry(5, 1, 3, 3), r"object 2 \('dog'\) has a <bndbox> of .* which has a negative side"),
    (entry(1, 'x', 3, 3), r"object 2 \('dog'\) has a <bndbox> of .*'ymin': 'x'.* expected numbers"),
    (entry(31, 1, 40, 3), r'outside of the image, which is 20 x 30 pixels \(height x width\)'),
    ('<object><name>dog</name></object>', r"object 2 \('dog'\) has a <bndbox> of .*expected num"),
    ('<object></object>', r"object 2 \(''\) has no <name>"),
    ('<object>', 'is not XML'),
  ],
)
def test_a_wrong_object_is_refused_by_file_and_number(tmp_path, objects, message):
  write(tmp_path, a=entry(1, 1, 3, 3) + objects)
  with pytest.raises(ValueError, match=message) as caught:
    voc_folder.VocFolder(tmp_path, '.')
  assert "Annotations/a.xml'" in str(caught.value)


def test_what_is_no_folder_of_pascal_voc_is_refused(tmp_path):
  write(tmp_path, a='')
  with pytest.raises(ValueError, match=r"XML files of split '\.' of '.*' have no objects"):
    voc_folder.VocFolder(tmp_path, '.')
  with pytest.raises(ValueError, match=r"no images and XML files of split 'val', but of none"):
    voc_folder.VocFolder(tmp_path, 'val')
  (tmp_path / 'Annotations/b.xml').write_text('<annotation/>')
  with pytest.raises(ValueError, match=r"1 of 2 XML files in .* have no image in .*b\.xml'; add"):
    voc_folder.VocFolder(tmp_path, '.')
  (tmp_path / 'Annotations/b.xml').unlink()
  (tmp_path / 'Annotations/a.xml').write_text('<plist/>')
  with pytest.raises(ValueError, match=r"a\.xml' has <plist>, where <annotation> of Pascal VOC"):
    voc_folder.VocFolder(tmp_path, '.')
