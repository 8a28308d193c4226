"""Batches of detection: the promises of all tasks, objects that fit their images, one shape."""

import itertools
import json
import shutil

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data import resizing
from crossattn_jax.data.detection import batches as data

# (height, width, number of objects) of the images of a folder.
IMAGES = [
  (48, 64, 2), (64, 48, 1), (48, 64, 0), (40, 64, 3), (48, 64, 1), (64, 40, 2), (50, 50, 1),
  (48, 64, 4), (30, 64, 1), (48, 60, 2), (10, 64, 0),
]  # fmt: skip
LEARNT = [number for number, (*_, count) in enumerate(IMAGES) if count]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Black images, in which each object is a rectangle in a grey of its own."""
  root = tmp_path_factory.mktemp('objects')
  (root / 'images').mkdir()
  content = {
    'images': [],
    'annotations': [],
    'categories': [{'id': 3, 'name': 'bar'}, {'id': 5, 'name': 'box'}],
  }
  for number, (height, width, count) in enumerate(IMAGES):
    pixels = np.zeros((height, width, 3), np.uint8)
    for place in range(count):
      left, top = 2 + 10 * place, 3 + 4 * place
      right, bottom = left + 8, top + 12
      pixels[top:bottom, left:right] = 100 + 40 * place
      content['annotations'].append(
        {
          'id': 1 + len(content['annotations']),
          'image_id': number,
          'category_id': 3 + 2 * (place % 2),
          'bbox': [left, top, 8, 12],
          'area': 96,
          'iscrowd': 0,
          'segmentation': [[left, top, right, top, right, bottom, left, bottom]],
        }
      )
    name = f'{number}.png'
    Image.fromarray(pixels).save(root / 'images' / name)
    content['images'].append({'id': number, 'file_name': name, 'height': height, 'width': width})
  (root / 'objects.json').write_text(json.dumps(content))
  return str(root)


@pytest.fixture
def config(folder):
  config = data.default_config()
  config.name, config.data_dir = 'coco_folder', folder
  config.train_split = config.eval_split = '.'
  config.image_size, config.max_boxes, config.masks = (96, 128), 5, True
  config.mean, config.std = (0.0,) * 3, (1.0,) * 3
  return config


def train_batches(config, **arguments):
  return data.Examples(config, config.train_split).train_batches(seed=0, **arguments)


def eval_batches(config, **arguments):
  return data.Examples(config, config.eval_split).eval_batches(**arguments)


def take(dataset, count=None):
  iterator = iter(dataset)
  batches = list(itertools.islice(iterator, count))
  iterator.close()
  return batches


def assert_equal(actual, expected):
  assert len(actual) == len(expected)
  for a, b in zip(actual, expected, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_train_batches_have_the_documented_form(config):
  for batch in take(train_batches(config, batch_size=2), 4):
    upright = batch['image'].shape[1] == 128
    height, width = (128, 96) if upright else (96, 128)
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
      'image': ((2, height, width, 3), 'float32'),
      'image_size': ((2, 2), 'int32'),
      'original_size': ((2, 2), 'int32'),
      'boxes': ((2, 5, 4), 'float32'),
      'labels': ((2, 5), 'int32'),
      'masks': ((2, 5, height, width // 8), 'uint8'),
      'index': ((2,), 'int32'),
      'skipped': ((2,), 'int32'),
    }
    original = [IMAGES[index][:2] for index in batch['index']]
    np.testing.assert_array_equal(batch['original_size'], original)
    assert all((rows > columns) == upright for rows, columns in original)
    empty = batch['labels'] < 0
    assert [5 - IMAGES[index][2] for index in batch['index']] == empty.sum(1).tolist()
    assert (batch['boxes'][empty] == 0).all()
    assert (batch['masks'][empty] == 0).all()


@pytest.mark.parametrize('crop', [0.0, 1.0])
def test_boxes_and_masks_lie_on_the_objects_that_the_image_shows(config, crop):
  options = config.augmentation
  options.short_side, options.flip = (60, 96), 0.5
  options.crop.update(probability=crop, short_side=(70, 90), short_step=10, sides=(60, 80))
  seen = 0
  for row in (data.Examples(config, '.').train_stream(0)[i] for i in range(30)):
    height, width = row['image_size']
    assert (row['image'][height:] == 0).all()
    assert (row['image'][:, width:] == 0).all()
    masks = np.unpackbits(row['masks'], axis=-1).astype(bool)
    for box, label, mask in zip(row['boxes'], row['labels'], masks, strict=True):
      if label < 0 or not mask.any():
        continue
      rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
      bounds = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
      np.testing.assert_allclose(box, bounds, atol=1)
      # Away from its edge, an object has one grey, which says its place and so its class.
      inner = mask[2:-2, 2:-2] & mask[4:, 4:] & mask[:-4, :-4] & mask[4:, :-4] & mask[:-4, 4:]
      if inner.any():
        (grey,) = set(row['image'][2:-2, 2:-2][inner][:, 0])
        assert label == (grey - 100) // 40 % 2
        seen += 1
  assert seen > 25


def test_processes_hold_contiguous_rows_of_one_stream(config):
  config.augmentation.crop.probability = 0.5
  whole = take(train_batches(config, batch_size=4), 5)
  config.cache = True
  parts = [
    take(train_batches(config, batch_size=4, process_index=index, process_count=2), 5)
    for index in range(2)
  ]
  joined = [
    {key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts, strict=True)
  ]
  assert_equal(joined, whole)
  assert {batch['image'].shape[1] for batch in whole} == {96, 128}
  assert_equal(take(train_batches(config, batch_size=4, start=3), 2), whole[3:])


def test_an_epoch_has_every_image_that_has_an_object(config):
  examples = data.Examples(config, '.')
  assert examples.epoch_length == len(LEARNT) == 9
  seen = [int(row['index']) for row in (examples.train_stream(1)[i] for i in range(9))]
  assert sorted(seen) == LEARNT
  config.skip_empty, config.image_size = False, (96, 96)
  examples = data.Examples(config, '.')
  assert examples.epoch_length == len(IMAGES)
  seen = [int(row['index']) for row in (examples.train_stream(1)[i] for i in range(len(IMAGES)))]
  assert sorted(seen) == list(range(len(IMAGES)))


def test_a_split_without_objects_is_refused(config):
  examples = data.Examples(config, '.')
  examples.source.num_objects = np.zeros(len(IMAGES), int)
  with pytest.raises(ValueError, match=r"split '\.' has an object: add annotations"):
    _ = examples.epoch_length


def test_a_split_whose_boxes_are_shares_of_their_images_is_refused(config, folder, tmp_path):
  with open(f'{folder}/objects.json') as file:
    content = json.load(file)
  for annotation in content['annotations']:
    annotation['bbox'] = [0.1, 0.2, 0.3, 0.4]
  (tmp_path / 'shares.json').write_text(json.dumps(content))
  config.data_dir, config.image_dir = str(tmp_path), f'{folder}/images'
  with pytest.raises(ValueError, match=r'can be learnt from: .* in pixels of their images'):
    _ = data.Examples(config, '.').epoch_length


def test_of_too_many_objects_a_random_part_is_drawn_each_time(config, caplog):
  config.max_boxes, config.augmentation.flip, config.image_size = 2, 0.0, (96, 96)
  examples = data.Examples(config, '.')
  parts = set()
  for seed in range(20):
    row = examples.train_example(7, np.random.default_rng(seed))
    assert (row['labels'] >= 0).all()
    parts.add(tuple(row['boxes'][:, 0]))
  # Of four, in their order.
  assert parts == {(1.5 * a, 1.5 * b) for a, b in itertools.combinations((2, 12, 22, 32), 2)}
  assert caplog.text.count('more than dataset.max_boxes=2 objects') == 1


@pytest.mark.parametrize('step', [None, 32])
def test_evaluation_sees_every_image_once_in_few_shapes(config, step):
  config.evaluation.bucket_step = step
  config.evaluation.short_side, config.evaluation.long_side = 60, 80
  batches = take(eval_batches(config, batch_size=4))
  parts = [
    take(eval_batches(config, batch_size=4, process_index=index, process_count=2))
    for index in range(2)
  ]
  assert_equal(
    [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts, strict=True)],
    batches,
  )
  seen = np.concatenate([batch['index'][batch['mask']] for batch in batches])
  assert sorted(seen) == list(range(len(IMAGES)))
  shapes = {batch['image'].shape[1:3] for batch in batches}
  few = {(96, 128), (128, 96)}
  assert shapes == (few if step is None else {(64, 96), (96, 64), (64, 64), (32, 96)})
  for batch in batches:
    assert set(batch) == {'image', 'image_size', 'original_size', 'index', 'mask', 'skipped'}
    assert (batch['index'][~batch['mask']] == -1).all()
    for image, size, original, index in zip(
      *(batch[key] for key in ('image', 'image_size', 'original_size', 'index')), strict=True
    ):
      if index >= 0:
        assert tuple(original) == IMAGES[index][:2]
        assert tuple(size) == resizing.fit(original, (80, 60))
        assert (image[size[0] :] == 0).all()
        assert (image[:, size[1] :] == 0).all()


def test_a_file_is_prepared_as_evaluation_does(config, folder):
  (*_, expected) = take(eval_batches(config, batch_size=1))
  index = int(expected['index'][0])
  batch, image = data.read_image(f'{folder}/images/{index}.png', config)
  assert image.size == IMAGES[index][1::-1]
  for key in ('image', 'image_size', 'original_size'):
    np.testing.assert_array_equal(batch[key], expected[key])
  again = data.prepare_image(np.asarray(image), config)
  np.testing.assert_array_equal(again['image'], batch['image'])
  described = json.loads(json.dumps(data.describe_preprocessing(config)))
  assert described['resize']['long_side'] == 128
  assert described['resize']['short_side'] == 96


def test_unreadable_images_are_named_or_replaced(config, folder, tmp_path):
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  (tmp_path / 'images' / '5.png').write_bytes(b'no image')
  config.data_dir = str(tmp_path)
  with pytest.raises(ValueError, match=r"unreadable image '.*5\.png'"):
    data.Examples(config, '.').train_example(5, np.random.default_rng(0))
  config.unreadable = 'skip'
  row = data.Examples(config, '.').train_example(5, np.random.default_rng(0))
  # The next image is wider than high; it is shown in the arrays of the batch.
  assert (row['index'], row['skipped'], row['image'].shape) == (6, 1, (128, 96, 3))


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('image_size', (100, 128), r'image_size must be \(height, width\) .* multiples of 32 pixels'),
    ('image_size', (128, 96), 'of images wider than high'),
    ('max_boxes', 0, 'max_boxes must be at least 1, got 0'),
    ('augmentation.short_side', (64, 128), r'in pixels that dataset\.image_size=\(96, 128\) holds'),
    ('augmentation.long_side', 160, r'augmentation\.long_side must be .* holds, got 160'),
    ('augmentation.short_step', 0, 'at least 1 pixel'),
    ('augmentation.flip', 2.0, 'a probability'),
    ('augmentation.crop.sides', (60, 40), r'\(least, most\) in pixels, got'),
    ('evaluation.bucket_step', 20, 'a multiple of 32 pixels, or None'),
    ('evaluation.short_side', 100, r'evaluation\.short_side must be'),
    ('channels', 'rbg', "channels must be one of 'rgb', 'bgr'"),
  ],
)
def test_wrong_values_are_refused_by_name(config, key, value, message):
  with config.ignore_type():
    config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=message):
    data.Examples(config, '.')


def test_masks_that_are_not_there_are_refused(config, folder, tmp_path):
  with open(f'{folder}/objects.json') as file:
    content = json.load(file)
  for annotation in content['annotations']:
    del annotation['segmentation']
  (tmp_path / 'boxes.json').write_text(json.dumps(content))
  config.data_dir, config.image_dir = str(tmp_path), f'{folder}/images'
  with pytest.raises(ValueError, match=r'set dataset\.masks=False'):
    data.Examples(config, '.')
  config.masks = False
  row = data.Examples(config, '.').train_stream(0)[0]
  assert 'masks' not in row
  assert row['labels'].max() >= 0
