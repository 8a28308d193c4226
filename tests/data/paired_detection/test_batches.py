"""Batches of pairs: one geometry for images and boxes, colours apart, one pass over all."""

import json
import shutil

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data import decoding
from crossattn_jax.data.detection import annotations
from crossattn_jax.data.paired_detection import batches as data

# (height, width) of the pairs of a folder, and corners of a rectangle in each.
PAIRS = [
  ((48, 64), (10, 8, 42, 30)), ((48, 64), (20, 16, 60, 40)), ((60, 40), (4, 12, 30, 50)),
  ((32, 32), (8, 6, 26, 28)), ((96, 128), (20, 16, 90, 70)),
]  # fmt: skip


def write(root, name, box, size):
  """A pair of dark images with a rectangle, white in the red of both and in the thermal image."""
  height, width = size
  thermal = np.full(size, 20, np.uint8)
  thermal[box[1] : box[3], box[0] : box[2]] = 250
  rgb = np.stack([thermal, thermal // 2, np.full_like(thermal, 60)], axis=-1)
  for kind, pixels in (('visible', rgb), ('infrared', thermal)):
    (root / kind / 'train').mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(root / kind / 'train' / f'{name}.png')
  (root / 'labels/train').mkdir(parents=True, exist_ok=True)
  x_min, y_min, x_max, y_max = box
  center = (x_min + x_max) / 2 / width, (y_min + y_max) / 2 / height
  row = [name % 2, *center, (x_max - x_min) / width, (y_max - y_min) / height]
  (root / 'labels/train' / f'{name}.txt').write_text(' '.join(map(str, row)))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('pairs')
  for name, (size, box) in enumerate(PAIRS):
    write(root, name, box, size)
  (root / 'data.yaml').write_text('names: [person, car]')
  return root


@pytest.fixture
def config(folder):
  config = data.default_config()
  config.data_dir, config.train_split, config.eval_split = str(folder), 'train', 'train'
  config.image_size, config.max_boxes = (64, 96), 8
  config.num_threads = 1
  return config


def without_augmentation(config):
  config.augmentation.update(dict.fromkeys(config.augmentation, 0.0))


def examples(config, count, seed=0):
  stream = data.Examples(config, 'train').train_stream(seed)
  return [stream[number] for number in range(count)]


def test_rows_are_those_of_the_spec(config):
  spec = data.batch_spec(config, 2)
  batch = next(iter(data.Examples(config, 'train').train_batches(batch_size=2, seed=0)))
  assert set(batch) - set(spec) == {'skipped'}
  for name, expected in spec.items():
    assert (batch[name].shape, batch[name].dtype) == (expected.shape, expected.dtype)
  for name in data.MODALITIES:
    assert batch[name].min() >= 0
    assert batch[name].max() <= 1


def test_an_example_depends_on_seed_and_position_alone(config):
  first, again, other = examples(config, 4), examples(config, 4), examples(config, 4, seed=1)
  for one, two in zip(first, again, strict=True):
    for name in one:
      np.testing.assert_array_equal(one[name], two[name])
  assert any((one['rgb'] != two['rgb']).any() for one, two in zip(first, other, strict=True))
  batches = data.Examples(config, 'train').train_batches(
    batch_size=2, seed=0, process_index=1, process_count=2, start=1
  )
  np.testing.assert_array_equal(next(iter(batches))['thermal'][0], first[3]['thermal'])


@pytest.mark.parametrize('rotated', [False, True])
def test_boxes_enclose_the_objects_of_both_images_wherever_augmentation_moves_them(config, rotated):
  options = config.augmentation
  options.hue = options.saturation = options.value = 0.0
  options.flip = options.flip_vertical = 0.5
  if rotated:
    options.update(degrees=20.0, shear=10.0, perspective=0.001)
  y, x = np.mgrid[: config.image_size[0], : config.image_size[1]] + 0.5
  seen = 0
  for row in examples(config, 20):
    # Red is the thermal image, whose channels are equal: geometry is one to the last bit.
    np.testing.assert_array_equal(row['rgb'][..., :1], row['thermal'][..., :1])
    np.testing.assert_array_equal(row['thermal'][..., :1], row['thermal'][..., 2:])
    white = row['thermal'][..., 0] > 0.7
    covered = np.zeros_like(white)
    for box, label in zip(row['boxes'], row['labels'], strict=True):
      if label < 0:
        assert not box.any()
        continue
      seen += 1
      # To a pixel and a half, which linear interpolation blurs.
      inner, outer = box + 1.5 * np.array([1, 1, -1, -1]), box - 1.5 * np.array([1, 1, -1, -1])
      within = (x > inner[0]) & (y > inner[1]) & (x < inner[2]) & (y < inner[3])
      around = (x > outer[0]) & (y > outer[1]) & (x < outer[2]) & (y < outer[3])
      assert white[around].any() if rotated else white[within].all()
      covered |= around
    # Less than a tenth of an object, or two pixels of it, is none.
    assert (white & ~covered).sum() <= 0.1 * 1.5**2 * 32 * 24 * 3
  assert seen > 30


def test_colours_of_both_images_are_drawn_apart(config):
  config.augmentation.update(mosaic=0.0, flip=0.0)
  (row,) = examples(config, 1)
  assert (row['rgb'][..., 0] != row['thermal'][..., 0]).any()
  np.testing.assert_array_equal(row['thermal'][..., 0], row['thermal'][..., 2])


def test_whole_pairs_are_in_the_middle_and_may_be_mirrored(config):
  without_augmentation(config)
  config.shuffle = False
  row = examples(config, 3)[2]
  # 60 x 40 pixels become 64 x 43, with 26.5 pixels of border on each side.
  scale = 64 / 60
  expected = np.array([26.5 + 4 * scale, 12 * scale, 26.5 + 30 * scale, 50 * scale])
  np.testing.assert_allclose(row['boxes'][0], expected, rtol=1e-6)
  assert row['labels'].tolist() == [0] + [-1] * 7
  np.testing.assert_array_equal(row['rgb'][:, :26], np.float32(114 / 255))
  np.testing.assert_array_equal(row['rgb'][:, 69:], np.float32(114 / 255))
  assert (row['index'], row['skipped']) == (2, 0)
  for flip, flip_vertical in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
    config.augmentation.update(flip=flip, flip_vertical=flip_vertical)
    mirrored = examples(config, 3)[2]
    step = slice(None, None, -1 if flip_vertical else 1), slice(None, None, -1 if flip else 1)
    for name in data.MODALITIES:
      np.testing.assert_array_equal(mirrored[name], row[name][step])
    x_min, y_min, x_max, y_max = expected
    moved = [96 - x_max, 96 - x_min] if flip else [x_min, x_max]
    moved += [64 - y_max, 64 - y_min] if flip_vertical else [y_min, y_max]
    np.testing.assert_allclose(mirrored['boxes'][0][[0, 2, 1, 3]], moved, rtol=1e-6)


def test_of_too_many_objects_some_are_drawn(config):
  config.max_boxes = 2
  rows = examples(config, 20)
  assert max((row['labels'] >= 0).sum() for row in rows) == 2


def test_evaluation_has_every_pair_once_in_rectangles(config):
  config.image_size = (64, 64)
  rows = {}
  for batch in data.Examples(config, 'train').eval_batches(batch_size=2):
    for number, index in enumerate(batch['index'].tolist()):
      assert batch['mask'][number] == (index >= 0)
      if index >= 0:
        rows[index] = {name: values[number] for name, values in batch.items()}
  assert sorted(rows) == list(range(len(PAIRS)))
  # A border of 16 pixels at least: 48 + 16 and 64 + 16 rounded up to multiples of 32.
  assert [rows[index]['rgb'].shape[:2] for index in range(len(PAIRS))] == [
    (64, 96), (64, 96), (96, 64), (96, 96), (64, 96)
  ]  # fmt: skip
  for index, (size, box) in enumerate(PAIRS):
    row = rows[index]
    assert row['original_size'].tolist() == list(size)
    assert row['scale'] == np.float32(64 / max(size))
    for name in data.MODALITIES:
      y, x = np.nonzero(row[name][..., 0] > 0.7)
      found = np.array([[x.min(), y.min()], [x.max() + 1, y.max() + 1]])
      found = (found - row['offset'][::-1]) / row['scale']
      np.testing.assert_allclose(found.ravel(), box, atol=1 / row['scale'])


def test_evaluation_of_published_sizes():
  config = data.default_config()
  pair = data.Pair(*(np.zeros((512, 640, 3), np.uint8),) * 2)
  assert data._eval_shape(pair.size, config) == (544, 672)
  row = data._eval_example(pair, 0, (544, 672), config)
  assert row['rgb'].shape == (544, 672, 3)
  assert (row['offset'].tolist(), row['scale']) == ([16, 16], 1)
  config.evaluation.rectangular = False
  assert data._eval_shape(pair.size, config) == (640, 640)
  batch = data.prepare_pair(pair, config)
  assert batch['thermal'].shape == (1, 640, 640, 3)
  assert (batch['offset'].tolist(), batch['scale'].tolist()) == ([[64, 0]], [1])


def test_evaluation_shrinks_to_the_mean_of_what_pixels_cover(config):
  rgb = np.random.default_rng(0).integers(256, size=(64, 192, 3)).astype(np.uint8)
  batch = data.prepare_pair(data.Pair(rgb, rgb), config)
  shown = batch['rgb'][0, 16:48] * 255
  expected = rgb.reshape(32, 2, 96, 2, 3).mean((1, 3))
  np.testing.assert_allclose(shown, expected, atol=0.51)


def test_pairs_that_cannot_be_used_are_named(config, folder, tmp_path):
  root = shutil.copytree(folder, tmp_path / 'copy')
  config.data_dir = str(root)
  Image.new('L', (64, 47)).save(root / 'infrared/train/1.png')
  wrong = r"visible/train/1\.png' has 48 x 64 .*, '.*infrared/train/1\.png' 47 x 64; pairs must"
  paths = [root / kind / 'train/1.png' for kind in ('visible', 'infrared')]
  with pytest.raises(ValueError, match=wrong):
    data.read_pair(*paths, config)
  with pytest.raises(ValueError, match=wrong + r'.*dataset\.unreadable'):
    examples(config, 8)
  paths[1].write_bytes(b'nothing')
  with pytest.raises(ValueError, match=r"infrared/train/1\.png', the partner of '.*/1\.png': the"):
    data.read_pair(*paths, config)
  config.unreadable = 'skip'
  without_augmentation(config)
  assert [int(row['index']) for row in examples(config, 5)].count(2) == 2
  batches = list(data.Examples(config, 'train').eval_batches(batch_size=1))
  assert sum(batch['mask'].item() for batch in batches) == 4
  assert sum(batch['skipped'].item() for batch in batches) == 1


def test_deep_thermal_images_need_levels(config, folder, tmp_path):
  root = shutil.copytree(folder, tmp_path / 'copy')
  deep = np.full((48, 64), 7000, np.uint16)
  deep[8:30, 10:42] = 8000
  paths = [root / 'visible/train/0.png', root / 'infrared/train/0.png']
  Image.fromarray(deep).save(paths[1])
  with pytest.raises(ValueError, match=r"infrared/train/0\.png' has 16 bits, .*decoding\.levels"):
    data.read_pair(*paths, config)
  config.decoding.levels = (7000, 8000)
  _, pair = data.read_pair(*paths, config)
  np.testing.assert_array_equal(np.unique(pair.thermal), [0, 255])


def test_objects_of_another_image_are_refused(config, monkeypatch):
  source = data.Examples(config, 'train')
  objects = source.source.annotations(0)
  swapped = annotations.Objects(**{**vars(objects), 'size': (64, 48)})
  monkeypatch.setattr(source.source, 'annotations', lambda index: swapped)
  with pytest.raises(ValueError, match=r"0\.png' has 48 x 64 pixels .*annotations are for 64 x 48"):
    source.decode(0)


def test_preprocessing_is_described(config):
  described = json.loads(json.dumps(data.describe_preprocessing(config)))
  assert described['pad_to'] == [64, 96]
  assert described['mean'] == [0, 0, 0]


@pytest.mark.parametrize(
  ('key', 'value', 'expected'),
  [
    ('image_size', (60, 64), r'\(height, width\), multiples of 32'),
    ('max_boxes', 0, 'at least 1'),
    ('augmentation.mosaic', 1.5, 'a probability'),
    ('augmentation.flip', -0.5, 'a probability'),
    ('augmentation.flip_vertical', 2.0, 'a probability'),
    ('augmentation.hue', 1.5, 'a gain'),
    ('augmentation.saturation', -0.5, 'a gain'),
    ('augmentation.value', 2.0, 'a gain'),
    ('augmentation.scale', 1.0, 'at least 0 and less than 1'),
    ('augmentation.translate', 1.5, 'a share of the image'),
    ('augmentation.degrees', 200.0, 'an angle'),
    ('augmentation.shear', 90.0, 'an angle'),
    ('augmentation.perspective', 0.01, r'from 0 to less than 0\.00625'),
    ('std', (0.0, 1.0, 1.0), 'three positive values'),
    ('decoding.levels', (5, 5), 'two levels'),
    ('unreadable', 'ignore', "'error' or 'skip'"),
  ],
)
def test_wrong_values_are_refused_by_key(config, key, value, expected):
  config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=rf'dataset\.{key} must be {expected}'):
    data.Examples(config, 'train')


def test_sizes_of_large_images_are_read_where_they_are_allowed(config, monkeypatch):
  config.decoding.max_pixels = 2 * decoding.MAX_PIXELS
  # At twice as many Pillow gives up.
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
  assert data.Examples(config, 'train').source.image_size(0) == (48, 64)


def test_objects_are_learnt_in_the_size_that_the_canvas_gives_them(config):
  sizes = data.Examples(config, 'train').learnt_sizes()
  for found, (size, box) in zip(sizes, PAIRS, strict=True):
    scale = min(64 / size[0], 96 / size[1])
    np.testing.assert_allclose(found, [scale * np.subtract(box[2:], box[:2])])
