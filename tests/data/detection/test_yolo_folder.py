import pickle

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data.detection import yolo_folder

TABLE = 'names: [cat, dog]\n'


def write(root, images='images/train', labels='labels/train', table=TABLE, size=(30, 20), **texts):
  """Images, of (width, height) pixels, and the text of each, None for none."""
  for name, text in texts.items():
    for folder in (images, labels):
      (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size).save(root / images / f'{name}.png')
    if text is not None:
      (root / labels / f'{name}.txt').write_text(text)
  if table:
    (root / 'data.yaml').write_text(table)
  return root


def test_objects_are_those_of_the_lines(tmp_path):
  texts = {'a': '1 0.5 0.5 0.2 0.3\n\n0 0.25 0.75 0.5 0.5\n', 'b': None, 'c': ''}
  source = yolo_folder.YoloFolder(write(tmp_path, **texts), 'train')
  assert source.class_names == ('cat', 'dog')
  assert source.category_ids == (0, 1)
  assert source.image_ids == (1, 2, 3)
  np.testing.assert_array_equal(source.num_objects, [2, 0, 0])
  assert source.masks_missing.endswith("a.txt', line 1 is a box")
  objects = source.annotations(0)
  assert objects.size == (20, 30)
  np.testing.assert_allclose(objects.boxes, [[12, 7, 18, 13], [0, 10, 15, 20]], rtol=1e-12)
  np.testing.assert_array_equal(objects.labels, [1, 0])
  np.testing.assert_allclose(objects.area, [36, 150], rtol=1e-12)
  np.testing.assert_array_equal(objects.ids, [1, 2])
  assert not objects.crowd.any()
  assert objects.learnable.all()
  assert len(source.annotations(1)) == len(source.annotations(2)) == 0


def test_polygons_are_masks(tmp_path):
  # Rectangles of 6 x 4 and of 3 x 20 pixels.
  text = '0 0.1 0.5 0.3 0.5 0.3 0.7 0.1 0.7\n1 0 0 .1 0 .1 1 0 1'
  source = yolo_folder.YoloFolder(write(tmp_path, a=text), 'train')
  assert source.masks_missing is None
  objects = pickle.loads(pickle.dumps(source)).annotations(0)
  expected = np.zeros((2, 20, 30), bool)
  expected[0, 10:14, 3:9] = expected[1, :, :3] = True
  np.testing.assert_array_equal(objects.masks(), expected)
  np.testing.assert_array_equal(objects.area, [24, 60])
  np.testing.assert_allclose(objects.boxes, [[3, 10, 9, 14], [0, 0, 3, 20]], rtol=1e-12)


def test_objects_are_those_of_photos_upright(tmp_path):
  root = write(tmp_path, a='0 0.5 0.5 1 0.5')
  exif = Image.Exif()
  exif[0x0112] = 6  # To be turned by 90 degrees.
  Image.new('RGB', (30, 20)).save(root / 'images/train/a.png', exif=exif)
  objects = yolo_folder.YoloFolder(root, 'train').annotations(0)
  assert objects.size == (30, 20)
  np.testing.assert_array_equal(objects.boxes, [[0, 7.5, 20, 22.5]])
  stored = yolo_folder.YoloFolder(root, 'train', upright=False).annotations(0)
  np.testing.assert_array_equal(stored.boxes, [[0, 5, 30, 15]])


def test_classes_are_mapped_by_name(tmp_path):
  root = write(tmp_path, table='names: {0: cat, 1: dog, 2: cow}', a='1 .5 .5 .5 .5')
  source = yolo_folder.YoloFolder(root, 'train', class_names=('dog', 'fox', 'cat'))
  assert source.class_names == ('dog', 'fox', 'cat')
  assert source.category_ids == (1, 3, 0)
  np.testing.assert_array_equal(source.annotations(0).labels, [0])
  with pytest.raises(ValueError, match=r"has a class 'dog' that is not among the 1 expected"):
    yolo_folder.YoloFolder(root, 'train', class_names=('cat',))


def test_other_classes_are_left_out_and_counted(tmp_path, caplog):
  triangle = '1 .1 .1 .5 .1 .5 .5'
  root = write(tmp_path, a=f'0 .5 .5 .5 .5\n{triangle}', b='0 .5 .5 .1 .1', c=triangle)
  source = yolo_folder.YoloFolder(root, 'train', class_names=('dog',), other_classes='skip')
  assert (source.class_names, source.category_ids) == (('dog',), (1,))
  assert (source.num_objects.tolist(), source.masks_missing) == ([1, 0, 1], None)
  assert source.annotations(0).labels.tolist() == source.annotations(2).labels.tolist() == [0]
  np.testing.assert_allclose(source.annotations(0).boxes, [[3, 2, 15, 10]])
  assert '2 of 4 objects of ' in caplog.text


@pytest.mark.parametrize(
  ('images', 'labels', 'split', 'table'),
  [
    ('images/train', 'labels/train', 'train', TABLE),
    ('train/images', 'train/labels', 'train', TABLE),
    ('images', 'labels', '.', TABLE),
    # Roboflow's table names a folder above its own.
    ('train/images', 'train/labels', 'train', TABLE + 'train: ../train/images'),
    ('images/a', 'labels/a', 'train', TABLE + 'path: ../datasets/pets\ntrain: images/a'),
    ('sub/images/a', 'sub/labels/a', 'train', TABLE + 'path: sub\ntrain: [images/a]'),
    ('photos', 'photos', 'train', TABLE + 'train: photos'),
    ('images/a', 'labels/a', 'train', TABLE + 'train: list.txt'),
  ],
)
def test_layouts(tmp_path, images, labels, split, table):
  write(tmp_path, images, labels, table, a='1 .5 .5 .2 .2')
  (tmp_path / 'list.txt').write_text('./images/a/a.png\n')
  source = yolo_folder.YoloFolder(tmp_path, split)
  assert [source[0]['key']] == [str(tmp_path / images / 'a.png')]
  np.testing.assert_allclose(source.annotations(0).boxes, [[12, 8, 18, 12]], rtol=1e-12)
  assert yolo_folder.find_splits(tmp_path) == ([] if split == '.' else ['train'])
  assert yolo_folder.is_likely(tmp_path)


def test_classes_may_be_listed(tmp_path):
  write(tmp_path, table=None, a='1 .5 .5 .2 .2')
  with pytest.raises(ValueError, match=r"write '.*data\.yaml' with a line such as 'names: \[cat"):
    yolo_folder.YoloFolder(tmp_path, 'train')
  (tmp_path / 'classes.txt').write_text('cat\ndog\n\n')
  assert yolo_folder.YoloFolder(tmp_path, 'train').class_names == ('cat', 'dog')


def test_shares_do_not_overlap(tmp_path):
  write(tmp_path, **{f'image{number}': '1 .5 .5 .2 .2' for number in range(30)})
  shares = [yolo_folder.YoloFolder(tmp_path, f'train[{s}]').image_ids for s in (':60%', '60%:')]
  assert sorted(shares[0] + shares[1]) == list(range(1, 31))


def test_repeated_lines_are_one_object(tmp_path, caplog):
  line = '1 .5 .5 .2 .2\n'
  source = yolo_folder.YoloFolder(write(tmp_path, a=line + line, b=line), 'train')
  np.testing.assert_array_equal(source.num_objects, [1, 1])
  assert '1 lines are repeated and left out, such as' in caplog.text
  assert "a.txt', line 2" in caplog.text


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('cat .5 .5 .2 .2', r"is 'cat .5 .5 .2 .2'; expected numbers: 'class x y width height'"),
    ('0 .5 .5 .2', 'has 4 numbers; expected'),
    ('0 .5 .5 .2 .2 .9', 'has 6 numbers; expected .* a sixth may be a score'),
    ('0 .5 .5 .2 .2 .9 .9 .8', 'has 8 numbers; expected'),
    ('2 .5 .5 .2 .2', r"has the class 2, but '.*data\.yaml' names 2, which are called 0 to 1"),
    ('-1 .5 .5 .2 .2', 'has the class -1, but'),
    ('0.5 .5 .5 .2 .2', 'has the class 0.5, but'),
    ('0 15 10 4 5', r"has '15', where shares .* from 0 to 1, not pixels"),
    ('0 .5 .5 -.2 .2', r"has '-0.2', where shares"),
    ('0 .5 .5 nan .2', r"has 'nan', where shares"),
  ],
)
def test_a_wrong_line_is_refused_by_file_and_number(tmp_path, line, message):
  write(tmp_path, a=f'0 .5 .5 .2 .2\n{line}\n')
  with pytest.raises(ValueError, match=rf"labels/train/a\.txt', line 2 {message}"):
    yolo_folder.YoloFolder(tmp_path, 'train')


@pytest.mark.parametrize(
  ('table', 'message'),
  [
    ('names: [cat, no]', "has the name False; put it in quotes: 'no' is read as False"),
    ('names: [cat, cat]', "names 'cat' more than once"),
    ('names: []', 'names no classes'),
    ('names: {1: cat, 2: dog}', "'names' must be a list, or say the numbers from 0 on"),
    ('names: cat', "'names' must be a list"),
    ('names: [cat, dog]\nnc: 3', "'nc' is 3, but 2 classes are named"),
    ('names: [cat', 'is not YAML'),
    ('names: [cat, dog]\ntrain: there', "names 'there', which is not there: neither '.*/there'"),
    ('names: [cat, dog]\ntrain: list.txt', 'names 1 of 1 images that are not there, such as'),
  ],
)
def test_a_wrong_table_is_refused(tmp_path, table, message):
  write(tmp_path, table=table, a='1 .5 .5 .2 .2')
  (tmp_path / 'list.txt').write_text('b.png\n')
  with pytest.raises(ValueError, match=message):
    yolo_folder.YoloFolder(tmp_path, 'train')


def test_a_folder_without_objects_is_refused(tmp_path):
  write(tmp_path, a=None)
  with pytest.raises(ValueError, match=r"a\.png' needs '.*labels/train/a\.txt'; expected"):
    yolo_folder.YoloFolder(tmp_path, 'train')
  (tmp_path / 'labels/train/a.txt').write_text('')
  with pytest.raises(ValueError, match=r'files of objects of split .* are all empty'):
    yolo_folder.YoloFolder(tmp_path, 'train')
  with pytest.raises(ValueError, match=r"no images of split 'val', but of 'train'; expected"):
    yolo_folder.YoloFolder(tmp_path, 'val')
