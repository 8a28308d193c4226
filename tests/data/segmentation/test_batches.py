"""Batches of segmentation: the same promises as those of classification, and shapes per bucket."""

import itertools
import json
import pathlib

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data import levels
from crossattn_jax.data.scenes import dataset
from crossattn_jax.data.segmentation import batches as data


def train_batches(config, **arguments):
  return data.Examples(config, config.train_split).train_batches(**arguments)


def eval_batches(config, **arguments):
  return data.Examples(config, config.eval_split).eval_batches(**arguments)


def train_stream(config, seed):
  return data.Examples(config, config.train_split).train_stream(seed)


@pytest.fixture(scope='module')
def scenes_dir(tmp_path_factory) -> str:
  data_dir = str(tmp_path_factory.mktemp('tfds'))
  dataset.prepare('shape_scenes/tiny', data_dir)
  return data_dir


@pytest.fixture
def config(scenes_dir):
  config = data.default_config()
  config.name = 'shape_scenes/tiny'
  config.data_dir = scenes_dir
  config.image_size = (48, 40)
  return config


@pytest.fixture
def ade20k_config(ade20k_dir):
  config = data.default_config()
  config.name, config.data_dir = 'ade20k_folder', ade20k_dir
  config.train_split, config.eval_split = 'training', 'validation'
  config.image_size = (32, 32)
  config.augmentation.resize = 'ratio'
  config.augmentation.base_size = (128, 32)
  config.augmentation.max_class_share = 0.75
  config.augmentation.photometric = True
  return config


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
  (batch,) = take(train_batches(config, batch_size=6, seed=0), 1)
  assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
    'image': ((6, 48, 40, 3), 'float32'),
    'label': ((6, 48, 40), 'int32'),
    'skipped': ((6,), 'int32'),
  }
  assert set(np.unique(batch['label'])) <= {*range(7), 255}


@pytest.mark.parametrize('recipe', ['scales', 'ratio'])
def test_processes_hold_contiguous_rows_of_one_stream_that_the_seed_determines(config, recipe):
  config.augmentation.resize = recipe
  config.augmentation.base_size = (128, 64)
  whole = take(train_batches(config, batch_size=8, seed=0), 4)
  parts = [
    take(
      train_batches(config, batch_size=8, seed=0, process_index=index, process_count=2),
      4,
    )
    for index in range(2)
  ]
  joined = [
    {key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts, strict=True)
  ]
  assert_equal(joined, whole)
  (other,) = take(train_batches(config, batch_size=8, seed=1), 1)
  assert not np.array_equal(other['image'], whole[0]['image'])


def test_resumes_bit_exactly_from_a_json_state(config):
  dataset = train_batches(config, batch_size=8, seed=0)
  expected = take(dataset, 6)
  config.cache = True
  iterator = iter(train_batches(config, batch_size=8, seed=0))
  head = [next(iterator) for _ in range(2)]
  state = json.dumps(iterator.get_state())
  iterator.close()
  resumed = iter(dataset)
  resumed.set_state(json.loads(state))
  tail = [next(resumed) for _ in range(4)]
  resumed.close()
  assert_equal(head + tail, expected)


def test_colours_are_in_the_order_of_the_config(config):
  config.augmentation.scales, config.augmentation.flip = (1.0,), 0.0
  config.image_size, config.shuffle = (64, 64), False
  config.mean, config.std = (0.0,) * 3, (1.0,) * 3
  (rgb,) = take(train_batches(config, batch_size=2, seed=0), 1)
  config.channels, config.mean = 'bgr', (100.0, 110.0, 120.0)
  (bgr,) = take(train_batches(config, batch_size=2, seed=0), 1)
  np.testing.assert_array_equal(bgr['image'][..., ::-1] + (120, 110, 100), rgb['image'])
  np.testing.assert_array_equal(
    levels.denormalize(bgr['image'], config), rgb['image'].astype(np.uint8)
  )


def test_beyond_the_image_is_the_mean_colour_and_no_class(config):
  config.image_size, config.augmentation.scales = (80, 72), (0.5,)
  config.augmentation.flip = 0.0
  (batch,) = take(train_batches(config, batch_size=2, seed=0), 1)
  assert (batch['image'][:, 32:] == 0).all()
  assert (batch['image'][:, :, 32:] == 0).all()
  assert (batch['label'][:, 32:] == 255).all()
  assert (batch['label'][:, :32, :32] < 7).all()


def test_crops_that_one_class_fills_are_drawn_again(config):
  config.augmentation.resize, config.augmentation.base_size = 'ratio', (128, 64)
  config.augmentation.ratio, config.image_size = (1.0, 1.0), (24, 24)

  def share_of_ground(limit):
    config.augmentation.max_class_share = limit
    batches = take(train_batches(config, batch_size=24, seed=0), 4)
    labels = np.concatenate([batch['label'] for batch in batches])
    return ((labels == 0).mean((1, 2)) >= 0.75).mean()

  assert share_of_ground(1.0) > 0.4
  assert share_of_ground(0.75) < 0.1


def test_the_ratio_recipe_pads_last_and_at_the_end(ade20k_config):
  ade20k_config.augmentation.ratio = (0.5, 0.6)
  (batch,) = take(train_batches(ade20k_config, batch_size=16, seed=0), 1)
  rows = (batch['label'] != 255).any(2).sum(1)
  assert (rows < 20).sum() > 8  # Landscape images.
  for image, label, height in zip(batch['image'], batch['label'], rows, strict=True):
    assert (image[height:] == 0).all()
    assert (label[height:] == 255).all()
    assert (label[:height] != 255).any(1).all()


@pytest.mark.parametrize('process_count', [1, 2])
def test_evaluation_shows_every_pixel_once_in_few_shapes(ade20k_config, process_count):
  ade20k_config.evaluation.bucket_step = 16
  parts = [
    take(
      eval_batches(ade20k_config, batch_size=2, process_index=index, process_count=process_count)
    )
    for index in range(process_count)
  ]
  shapes = [(32, 64), (64, 32), (32, 48), (64, 64)]
  assert [[batch['image'].shape[1:3] for batch in part] for part in parts] == (
    [shapes] * process_count
  )
  seen, pixels = 0, 0
  for batch in itertools.chain(*parts):
    for row in np.flatnonzero(batch['mask']):
      height, width = batch['image_size'][row]
      assert batch['label_size'][row].tolist() == [height, width]
      assert (batch['image'][row, height:] == 0).all()
      assert (batch['image'][row, :, width:] == 0).all()
      label = batch['label'][row]
      assert label[0, :width].tolist() == [255, *range(width - 1)]
      pixels += (label != 255).sum()
      seen += 1
    assert (batch['label'][~batch['mask']] == 255).all()
  assert seen == 5
  assert pixels == sum(h * (w - 1) for h, w in [(30, 50), (60, 32), (30, 47), (30, 50), (64, 64)])


def test_evaluation_fits_and_stretches_images_and_leaves_labels_alone(ade20k_config):
  options = ade20k_config.evaluation
  options.resize, options.base_size, options.stretch_to = 'fit', (128, 40), 32
  options.label_step = 1
  batches = take(eval_batches(ade20k_config, batch_size=1))
  by_label = {batch['label'].shape[1:]: batch['image'].shape[1:3] for batch in batches}
  # 30 x 50 -> 40 x 67 -> 64 x 96, and so on.
  assert by_label == {
    (30, 50): (64, 96),
    (60, 32): (96, 64),
    (30, 47): (64, 64),
    (64, 64): (64, 64),
  }


def test_images_fit_the_crops_where_nobody_says_into_what(ade20k_config):
  ade20k_config.image_size = (48, 32)
  ade20k_config.evaluation.resize = 'fit'

  def first_batches(base_size):
    for options in (ade20k_config.augmentation, ade20k_config.evaluation):
      options.base_size = base_size
    return [
      take(train_batches(ade20k_config, batch_size=4, seed=0), 1)[0],
      take(eval_batches(ade20k_config, batch_size=1))[0],
    ]

  assert_equal(first_batches(None), first_batches((128, 32)))


def test_a_file_is_prepared_as_evaluation_does(ade20k_config, ade20k_dir):
  ade20k_config.evaluation.bucket_step = 32
  (*_, expected) = take(eval_batches(ade20k_config, batch_size=1))
  batch, image = data.read_image(f'{ade20k_dir}/images/validation/4.jpg', ade20k_config)
  np.testing.assert_array_equal(batch['image'], expected['image'])
  np.testing.assert_array_equal(batch['label_size'], [[64, 64]])
  assert image.size == (64, 64)


LABEL = np.tile(np.arange(3, dtype=np.uint8), (2, 1))
COLORS = np.array([[[128, 64, 128], [0, 0, 1], [0, 0, 0]]] * 2, np.uint8)


@pytest.mark.parametrize(
  ('label', 'message'),
  [
    (LABEL + np.uint8(200), r'holds 200, 201, 202 in 100\.00% of its pixels, which is no class'),
    (LABEL.astype(np.uint16) + np.uint16(255), r'holds 255, 256, 257 in 100\.00%'),
    (
      LABEL.astype(np.int32) - 1,
      r"holds -1 in 33\.33%.*expected 0, 1 'wall', 2 'building', .*more",
    ),
    (LABEL.astype(np.float32) / 2, r'holds 0\.5 in 33\.33%'),
    (COLORS, r'holds colours \(mode RGB\), not one label per pixel'),
    (LABEL[:, :2], r'2 x 2 pixels, the image 2 x 3'),
  ],
)
def test_labels_that_are_no_class_are_refused_by_file_and_value(
  ade20k_config, ade20k_dir, encoded_label, label, message
):
  Image.new('RGB', (3, 2)).save(f'{ade20k_dir}/images/training/1.jpg')
  path = pathlib.Path(ade20k_dir, 'annotations/training/1.png')
  path.write_bytes(encoded_label(label))
  examples = data.Examples(ade20k_config, 'training')
  with pytest.raises(ValueError, match=f"label map '{path}'.*{message}"):
    examples.read(1)


def test_unreadable_files_are_named_or_replaced(ade20k_config, ade20k_dir):
  with open(f'{ade20k_dir}/annotations/training/1.png', 'wb') as file:
    file.write(b'no picture')
  with open(f'{ade20k_dir}/images/validation/1.jpg', 'wb') as file:
    file.write(b'no picture')
  ade20k_config.shuffle = False
  examples = train_stream(ade20k_config, 0)
  with pytest.raises(ValueError, match=r"unreadable image '.*1\.jpg'.*label map"):
    examples[1]
  ade20k_config.unreadable = 'skip'
  assert train_stream(ade20k_config, 0)[1]['skipped'] == 1
  batches = take(eval_batches(ade20k_config, batch_size=1))
  assert sum(int(batch['mask'].sum()) for batch in batches) == 4
  assert sum(int(batch['skipped'].sum()) for batch in batches) == 1


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('channels', 'rbg', "channels must be one of 'rgb', 'bgr'"),
    ('augmentation.resize', 'crop', "must be one of 'scales', 'ratio'"),
    ('augmentation.photometric', True, "or augmentation.resize 'ratio'"),
    ('evaluation.bucket_step', 0, 'at least 1 pixel'),
    ('name', 'cityscape', "did you mean 'cityscapes'"),
  ],
)
def test_wrong_values_are_refused_by_name(config, key, value, message):
  config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=message):
    train_batches(config, batch_size=2, seed=0)
