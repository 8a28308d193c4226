import json
import os
import re

import numpy as np
import pytest

from crossattn_jax.data.detection import coco


@pytest.fixture
def read(tmp_path):
  """Reads what a file of a content says: a dictionary, or a text."""

  def write(content):
    path = tmp_path / 'train.json'
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding='utf-8')
    return coco.read(path)

  return write


def test_annotations_are_sorted_by_their_images(read, coco_dict):
  # The order of the lists does not matter.
  file = read(dict(reversed(coco_dict.items())))
  assert file.categories == ((2, 'cat'), (8, 'dog'))
  np.testing.assert_array_equal(file.image, [0, 0, 1])
  np.testing.assert_array_equal(file.ids, [5, 6, 11])
  np.testing.assert_array_equal(file.category, [1, 0, 1])
  np.testing.assert_array_equal(file.boxes[2], [2, 5, 6, 8])
  assert file.segmentations([2]) == [[[2, 5, 6, 5, 6, 8, 2, 8]]]


def test_what_the_file_does_not_say_is_taken_from_masks_and_boxes(read, coco_dict):
  polygon, runs, pair = coco_dict['annotations']
  del polygon['bbox'], polygon['area'], polygon['iscrowd'], runs['bbox'], runs['area']
  del pair['segmentation'], pair['area']
  file = read(coco_dict)
  np.testing.assert_array_equal(file.boxes, [[0, 0, 2, 20], [10, 10, 22, 12], [2, 5, 6, 8]])
  np.testing.assert_array_equal(file.area, [30, 24, 12])
  np.testing.assert_array_equal(file.has_mask, [True, False, True])
  np.testing.assert_array_equal(file.crowd, [True, False, False])


@pytest.mark.parametrize('escaped', [True, False])
@pytest.mark.parametrize('mark', ['', '\ufeff'])
def test_names_in_any_script(read, coco_dict, escaped, mark):
  coco_dict['categories'][0]['name'] = 'собака 🐕'
  coco_dict['images'][0]['file_name'] = 'ä.png'
  file = read(mark + json.dumps(coco_dict, ensure_ascii=escaped, indent=2))
  assert file.categories[1] == (8, 'собака 🐕')
  assert file.file_names[0] == 'ä.png'
  assert file.segmentations([2]) == [[[2, 5, 6, 5, 6, 8, 2, 8]]]


def test_a_side_of_zero_is_kept(read, coco_dict):
  # COCO's train2017 has such a box.
  coco_dict['annotations'][0]['bbox'] = [2, 5, 4, 0]
  np.testing.assert_array_equal(read(coco_dict).boxes[2], [2, 5, 6, 5])


def test_boxes_partly_beyond_their_image_are_kept(read, coco_dict):
  coco_dict['annotations'][0]['bbox'] = [-2, 5, 40, 3]
  np.testing.assert_array_equal(read(coco_dict).boxes[2], [-2, 5, 38, 8])


def test_the_group_that_roboflow_adds_is_no_class(read, coco_dict):
  for category in coco_dict['categories']:
    category['supercategory'] = 'pets'
  coco_dict['categories'].insert(0, {'id': 0, 'name': 'pets', 'supercategory': 'none'})
  assert read(coco_dict).categories == ((2, 'cat'), (8, 'dog'))
  coco_dict['annotations'][0]['category_id'] = 0
  assert read(coco_dict).categories == ((0, 'pets'), (2, 'cat'), (8, 'dog'))


def test_a_file_is_read_once(read, coco_dict):
  file = read(coco_dict)
  assert coco.read(file.path) is file
  # Written again: another file.
  coco_dict['annotations'].pop()
  again = read(coco_dict)
  os.utime(file.path, (1, 1))
  assert len(coco.read(file.path).ids) == len(again.ids) == 2
  with pytest.raises(ValueError, match='has changed since it was opened'):
    file.segmentations([1])


def change(key, place, **fields):
  """Changes an entry; None removes a field."""

  def apply(content):
    entry = content[key][place]
    for name, value in fields.items():
      if value is None:
        del entry[name]
      else:
        entry[name] = value

  return apply


def pop(key):
  return lambda content: content.pop(key)


def empty(key):
  return lambda content: content[key].clear()


WRONG = {
  'no images': (pop('images'), "has no 'images', but 'annotations', 'categories', 'info'"),
  'no categories': (pop('categories'), "has no 'categories', but"),
  'no list of annotations': (pop('annotations'), "has no 'annotations', but"),
  'empty images': (empty('images'), "'images' is empty"),
  'empty annotations': (empty('annotations'), "'annotations' is empty: there is nothing to"),
  'images twice': (
    change('images', 1, id=7),
    "2 images have the same id 7 ('a.png', 'b.png'); 1 ids are taken more than once",
  ),
  'annotations twice': (change('annotations', 0, id=5), '2 annotations have the same id 5; 1 ids'),
  'categories twice': (change('categories', 0, id=2), "'dog' and 'cat' have the same id 2"),
  'names twice': (
    change('categories', 0, name='cat'),
    "categories 2 and 8 have the same name 'cat'; rename or remove one",
  ),
  'unknown image': (
    change('annotations', 0, image_id=77),
    'annotation 11 names 77, which is none of the 3 images; 1 of 3 annotations are such',
  ),
  'unknown category': (
    change('annotations', 0, category_id=1),
    'annotation 11 names 1, which is none of the 2 categories',
  ),
  'captions': (
    change('annotations', 0, category_id=None),
    "annotation 11 has no 'category_id': expected instances, no captions and no panoptic segments",
  ),
  'annotation without id': (change('annotations', 0, id=None), "annotation has no 'id', where a"),
  'image with a name for its id': (
    change('images', 0, id='a'),
    "image has the id 'a', where a whole number is expected",
  ),
  'image without a file': (change('images', 0, file_name=None), "image 7 has no 'file_name'"),
  'image without a size': (
    change('images', 0, height=None),
    "image 7 ('a.png') has the height None; expected its pixels",
  ),
  'category without a name': (change('categories', 0, name=None), "category 8 has no 'name'"),
  'negative side': (
    change('annotations', 0, bbox=[2, 5, -4, 3]),
    'annotation 11 of image 3 has the bbox [2, 5, -4, 3]; expected [x, y, width, height], '
    'with no negative sides; correct or remove it',
  ),
  'a crowd in words': (
    change('annotations', 0, iscrowd='0'),
    "annotation 11 has the 'iscrowd' '0'; expected 0 or 1",
  ),
  'no number': (
    change('annotations', 0, bbox=[2, 5, float('nan'), 3]),
    'has the bbox [2, 5, nan, 3]; expected',
  ),
  'a list in a box': (
    change('annotations', 0, bbox=[2, 5, [4], 3]),
    'annotation 11 of image 3 has the bbox [2, 5, [4], 3]; expected [x, y, width, height]',
  ),
  'text as an area': (
    change('annotations', 0, area='large'),
    "annotation 11 of image 3 has the area 'large'; expected pixels; correct or remove it",
  ),
  'three numbers': (change('annotations', 0, bbox=[2, 5, 4]), 'has the bbox [2, 5, 4]; expected'),
  'neither box nor mask': (
    change('annotations', 0, bbox=None, segmentation=None),
    'annotation 11 of image 3 has neither a bbox nor a segmentation; correct or remove it',
  ),
  'two corners': (
    change('annotations', 0, segmentation=[[1, 2, 3, 4]]),
    'annotation 11 of image 3 has a polygon of 4 numbers; three corners have 6',
  ),
  'outside': (
    change('annotations', 0, bbox=[30, 5, 4, 3]),
    'annotation 11 has the bbox [30.0, 5.0, 4.0, 3.0] outside of image 3, which is 20 x 30 pixels '
    '(height x width); 1 of 3 annotations are such; correct or remove them',
  ),
  'mask of another size': (
    change('annotations', 1, segmentation={'size': [30, 20], 'counts': [0, 30, 570]}),
    'annotation 5 has a mask of 30 x 20 pixels in image 7, which is 20 x 30 pixels (height x',
  ),
  'damaged run lengths': (
    change('annotations', 1, segmentation={'size': [20, 30], 'counts': [0, 30]}),
    'annotation 5 of image 7 has run lengths that cannot be read: the counts add up to 30, not to',
  ),
  'an entry that is no object': (
    lambda content: content['images'].append(3),
    "'images' hold 3, where an object is expected",
  ),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_cannot_be_is_refused_by_name(read, coco_dict, case):
  spoil, message = WRONG[case]
  spoil(coco_dict)
  with pytest.raises(ValueError, match=re.escape(message)) as caught:
    read(coco_dict)
  assert "train.json'" in str(caught.value)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'is empty; expected a COCO file'),
    ('shapes', 'is not JSON; expected a COCO file'),
    ('{"images": [{"id": 1', 'ends in the middle|is not JSON'),
    ('{"images": [', 'ends in the middle, after 12 bytes'),
    ('{"images": [{"id": 1,,}]}', 'is not JSON: .* at byte'),
    (
      '[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]',
      'is a list of detections, the result',
    ),
    ('[1, 2]', 'is a list, not an object with images, annotations, categories: no COCO file'),
    ('{"shapes": [], "imagePath": "a.jpg"}', 'is a LabelMe file of one image; convert'),
    ('{"_via_settings": {}, "_via_img_metadata": {}}', 'is a project of the VGG annotator; export'),
    ('{"a": 1}', "has no 'images', but 'a'; a COCO file has images, annotations, categories"),
    ('{}', "has no 'images', but nothing"),
  ],
)
def test_what_is_no_coco_file_is_refused_by_name(read, text, message):
  with pytest.raises(ValueError, match=message) as caught:
    read(text)
  assert "train.json'" in str(caught.value)
