import pickle

import numpy as np
import pytest

from crossattn_jax.data.detection import coco_folder


def test_objects_are_those_of_the_file(write_coco):
  source = coco_folder.CocoFolder(write_coco(), 'train')
  assert source.class_names == ('cat', 'dog')
  assert source.category_ids == (2, 8)
  assert source.image_ids == (7, 3, 9)
  np.testing.assert_array_equal(source.num_objects, [2, 1, 0])
  assert source.masks_missing is None
  assert len(source) == 3
  assert source[0]['key'].endswith('train2017/a.png')
  objects = source.annotations(0)
  np.testing.assert_array_equal(objects.boxes, [[0, 0, 2, 20], [10, 10, 22, 12]])
  np.testing.assert_array_equal(objects.labels, [1, 0])
  np.testing.assert_array_equal(objects.crowd, [True, False])
  np.testing.assert_array_equal(objects.area, [30, 8])
  np.testing.assert_array_equal(objects.ids, [5, 6])
  np.testing.assert_array_equal(objects.learnable, [False, True])
  masks = np.zeros((2, 20, 30), bool)
  masks[0, :, 0] = masks[0, :10, 1] = True
  masks[1, 10:12, 10:12] = masks[1, 10:12, 20:22] = True
  np.testing.assert_array_equal(objects.masks(), masks)
  assert len(source.annotations(2)) == 0
  assert source.annotations(2).masks().shape == (0, 20, 30)


def test_a_source_can_be_pickled(write_coco):
  source = pickle.loads(pickle.dumps(coco_folder.CocoFolder(write_coco(), 'train')))
  np.testing.assert_array_equal(source.annotations(1).boxes, [[2, 5, 6, 8]])
  assert source.annotations(1).masks().sum() == 12


@pytest.mark.parametrize(
  ('file', 'images', 'split'),
  [
    ('annotations/instances_train2017.json', 'train2017', 'train'),
    ('annotations/instances_train2017.json', 'images/train2017', 'train2017'),
    ('annotations/instances_train.json', 'images', 'train'),
    ('annotations/train.json', 'train', 'train'),
    ('annotations/train.json', 'images/train', 'train'),
    ('train.json', 'images', 'train'),
    ('train_annotations.json', 'train', 'train'),
    ('train/_annotations.coco.json', 'train', 'train'),
    ('train/labels.json', 'train/data', 'train'),
    ('train/annotations.json', 'train/images', 'train'),
    ('result.json', 'images', '.'),
    ('result.json', '.', 'result'),
    ('labels/my.json', 'images', 'labels/my.json'),
  ],
)
def test_layouts(write_coco, file, images, split):
  root = write_coco(file=file, images=images)
  # Of other tasks, and of systems.
  (root / 'annotations').mkdir(exist_ok=True)
  for other in ('captions_train2017.json', 'person_keypoints_train2017.json', '._train.json'):
    (root / 'annotations' / other).write_text('{}')
  source = coco_folder.CocoFolder(root, split)
  assert source[0]['key'] == str(root / images / 'a.png')
  if split in ('train', 'result'):
    assert list(coco_folder.find_splits(root)) == [split]


def test_years_are_part_of_a_name_where_they_differ(write_coco, coco_dict):
  root = write_coco()
  write_coco(file='annotations/instances_train2014.json')
  assert sorted(coco_folder.find_splits(root)) == ['train2014', 'train2017']
  with pytest.raises(ValueError, match=r"no COCO file of split 'train', but of 'train2014', 'tra"):
    coco_folder.CocoFolder(root, 'train')


def test_files_of_one_name_are_called_by_their_paths(write_coco):
  write_coco(file='train.json', images='images')
  root = write_coco(file='annotations/train.json', images='images')
  assert sorted(coco_folder.find_splits(root)) == ['annotations/train.json', 'train.json']
  with pytest.raises(ValueError, match=r"split 'train', but of 'annotations/train.json', 'train.j"):
    coco_folder.CocoFolder(root, 'train')
  assert len(coco_folder.CocoFolder(root, 'annotations/train.json')) == 3


def test_images_may_be_said_to_be_elsewhere(write_coco, tmp_path):
  root = write_coco(images='somewhere/else')
  with pytest.raises(ValueError, match=r"such as 'a\.png', are in none of .*dataset\.image_dir"):
    coco_folder.CocoFolder(root, 'train')
  with pytest.raises(ValueError, match=r"are in none of 'nowhere'; set dataset\.image_dir"):
    coco_folder.CocoFolder(root, 'train', image_dir='nowhere')
  source = coco_folder.CocoFolder(root, 'train', image_dir='somewhere/else')
  assert source[1]['key'].endswith('somewhere/else/b.png')
  absolute = coco_folder.CocoFolder(root, 'train', image_dir=str(tmp_path / 'somewhere/else'))
  assert absolute[1]['key'] == source[1]['key']


def test_images_that_are_missing_are_counted(write_coco):
  root = write_coco()
  (root / 'train2017/b.png').unlink()
  with pytest.raises(ValueError, match=r"names 1 of 3 images that are not in .*, such as 'b\.png'"):
    coco_folder.CocoFolder(root, 'train')


def test_classes_are_mapped_by_name(write_coco):
  names = ('dog', 'fox', 'cat', 'cow')
  source = coco_folder.CocoFolder(write_coco(), 'train', class_names=names)
  assert source.class_names == names
  assert source.category_ids == (8, 9, 2, 10)
  np.testing.assert_array_equal(source.annotations(0).labels, [0, 2])
  with pytest.raises(ValueError, match=r"has a class 'dog' that is not among the 1 expected"):
    coco_folder.CocoFolder(write_coco(), 'train', class_names=('cat',))


def test_other_classes_are_left_out_and_counted(write_coco, coco_dict, caplog):
  del coco_dict['annotations'][2]['segmentation']  # The cat's: a mask that nobody needs.
  source = coco_folder.CocoFolder(
    write_coco(coco_dict), 'train', class_names=('dog',), other_classes='skip'
  )
  assert (source.class_names, source.category_ids) == (('dog',), (8,))
  assert (source.num_objects.tolist(), source.masks_missing) == ([1, 1, 0], None)
  assert [source.annotations(index).ids.tolist() for index in range(3)] == [[5], [11], []]
  assert list(source.annotations(0).segmentations) == [{'size': [20, 30], 'counts': [0, 30, 570]}]
  assert '1 of 3 objects of ' in caplog.text


def test_a_class_without_objects_may_be_unknown(write_coco, coco_dict):
  coco_dict['categories'].append({'id': 5, 'name': 'cow'})
  source = coco_folder.CocoFolder(write_coco(coco_dict), 'train', class_names=('dog', 'cat'))
  np.testing.assert_array_equal(source.annotations(0).labels, [0, 1])


def test_shares_do_not_overlap(write_coco, coco_dict):
  coco_dict['images'] += [
    {'id': 100 + number, 'file_name': f'{number}.png', 'height': 20, 'width': 30}
    for number in range(30)
  ]
  root = write_coco(coco_dict)
  shares = [coco_folder.CocoFolder(root, f'train[{share}]') for share in (':60%', '60%:')]
  ids = shares[0].image_ids + shares[1].image_ids
  assert sorted(ids) == sorted(image['id'] for image in coco_dict['images'])
  assert sum(share.num_objects.sum() for share in shares) == 3
  for share in shares:
    for index, number in enumerate(share.image_ids):
      expected = [a['id'] for a in coco_dict['annotations'] if a['image_id'] == number]
      assert share.annotations(index).ids.tolist() == expected


def test_an_object_without_a_mask_is_named(write_coco, coco_dict):
  del coco_dict['annotations'][0]['segmentation']
  source = coco_folder.CocoFolder(write_coco(coco_dict), 'train')
  assert source.masks_missing.startswith('annotation 11 of ')
  assert source.annotations(0).segmentations is None


def test_unknown_splits_are_told_what_there_is(write_coco):
  with pytest.raises(ValueError, match=r"no COCO file of split 'val', but of 'train'; expected"):
    coco_folder.CocoFolder(write_coco(), 'val')
