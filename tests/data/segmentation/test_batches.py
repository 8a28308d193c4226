"""Batches of segmentation: the same promises as those of classification, and shapes per bucket."""

import io
import itertools
import json
import os

import numpy as np
from PIL import Image
import pytest
from tensorflow_datasets.datasets.cityscapes import cityscapes_dataset_builder

from crossattn_jax.data.scenes import shapes as shape_scenes
from crossattn_jax.data.segmentation import augmentation, photometric, sources, taxonomies
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
  shape_scenes.prepare('shape_scenes/tiny', data_dir)
  return data_dir


@pytest.fixture
def config(scenes_dir):
  config = data.default_config()
  config.name = 'shape_scenes/tiny'
  config.data_dir = scenes_dir
  config.image_size = (48, 40)
  return config


@pytest.fixture
def ade20k_dir(tmp_path):
  """Images of three sizes whose labels count the columns from 0."""
  for split in ('training', 'validation'):
    for kind in ('images', 'annotations'):
      (tmp_path / kind / split).mkdir(parents=True)
    for index, (height, width) in enumerate([(30, 50), (60, 32), (30, 47), (30, 50), (64, 64)]):
      noise = np.random.default_rng(index).integers(256, size=(height, width, 3), dtype=np.uint8)
      label = np.tile(np.arange(width, dtype=np.uint8), (height, 1))
      Image.fromarray(noise).save(tmp_path / 'images' / split / f'{index}.jpg')
      Image.fromarray(label).save(tmp_path / 'annotations' / split / f'{index}.png')
  return str(tmp_path)


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
    data.denormalize(bgr['image'], config), rgb['image'].astype(np.uint8)
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


def test_label_zero_of_ade20k_is_no_class(ade20k_dir):
  source = sources.create_source('ade20k_folder', 'validation', ade20k_dir)
  assert len(source) == 5
  taxonomy = taxonomies.find_taxonomy('ade20k_folder')
  labels = np.arange(151, dtype=np.uint8)
  classes = taxonomy.to_classes(labels)
  assert classes.tolist() == [255, *range(150)]
  np.testing.assert_array_equal(taxonomy.to_labels(classes), labels)
  assert taxonomy.num_classes == 150
  assert taxonomy.class_names[20] == 'car'
  assert len(np.unique(taxonomy.palette, axis=0)) == 150


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


def test_a_file_is_prepared_as_evaluation_does(ade20k_config, ade20k_dir):
  ade20k_config.evaluation.bucket_step = 32
  (*_, expected) = take(eval_batches(ade20k_config, batch_size=1))
  batch, image = data.read_image(f'{ade20k_dir}/images/validation/4.jpg', ade20k_config)
  np.testing.assert_array_equal(batch['image'], expected['image'])
  np.testing.assert_array_equal(batch['label_size'], [[64, 64]])
  assert image.size == (64, 64)


@pytest.mark.parametrize('size', [(683, 512), (512, 683), (2000, 400), (100, 100)])
def test_images_fit_as_tightly_as_they_can(size):
  height, width = data.fit(size, (2048, 512))
  assert max(height, width) == 2048 or min(height, width) == 512
  assert max(height, width) <= 2048
  assert min(height, width) <= 512
  assert abs(height / width - size[0] / size[1]) < 0.01 * size[0] / size[1]


def test_cityscapes_folders_and_lists_are_read(tmp_path):
  for folder in ('leftImg8bit/train/ulm', 'gtFine/train/ulm'):
    (tmp_path / folder).mkdir(parents=True)
  for number in range(3):
    stem = f'ulm_00000{number}_000019'
    image = tmp_path / f'leftImg8bit/train/ulm/{stem}_leftImg8bit.png'
    Image.new('RGB', (40, 20), (number, 0, 0)).save(image)
    label = np.full((20, 40), 26, np.uint8)
    label[:, :5] = 3
    Image.fromarray(label).save(tmp_path / f'gtFine/train/ulm/{stem}_gtFine_labelIds.png')
  pairs = sources.create_source('cityscapes_folder', 'train', tmp_path).pairs
  lines = ['\t'.join(os.path.relpath(path, tmp_path) for path in pair) for pair in pairs[1:]]
  (tmp_path / 'list.lst').write_text('\n'.join(lines) + '\n')
  assert sources.create_source('cityscapes_folder', 'list.lst', tmp_path).pairs == pairs[1:]

  config = data.default_config()
  config.name, config.data_dir, config.image_size = 'cityscapes_folder', str(tmp_path), (16, 16)
  config.eval_split = 'train'
  (batch, *_) = take(eval_batches(config, batch_size=3))
  assert (batch['label'][:, :, :5] == 255).all()
  assert (batch['label'][:, :, 5:] == taxonomies.CITYSCAPES.class_names.index('car')).all()

  (tmp_path / 'gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png').unlink()
  with pytest.raises(ValueError, match=r'ulm_000001_000019_gtFine_labelIds\.png.* does not exist'):
    sources.create_source('cityscapes_folder', 'train', tmp_path)
  with pytest.raises(ValueError, match=r'expected leftImg8bit/val/CITY'):
    sources.create_source('cityscapes_folder', 'val', tmp_path)


def test_cityscapes_is_read_as_the_builder_of_tfds_writes_it(tmp_path, monkeypatch):
  labels = np.full((1024, 2048), 26, np.uint8)
  labels[:, :5] = 3

  def encoded(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, 'png')
    return file.getvalue()

  def examples(builder):
    del builder
    image = encoded(np.full((1024, 2048, 3), (200, 100, 50), np.uint8))
    yield '0', {'image_id': 'ulm_1', 'image_left': image, 'segmentation_label': encoded(labels)}

  builder = cityscapes_dataset_builder.Builder
  monkeypatch.setattr(builder, '_generate_examples', examples)
  monkeypatch.setattr(
    builder, '_split_generators', lambda self, _: {'validation': self._generate_examples()}
  )
  builder(data_dir=tmp_path, file_format='array_record').download_and_prepare()
  source = sources.create_source('cityscapes', 'validation', tmp_path)
  assert source.image_size(0) == (1024, 2048)
  assert source[0]['key'] == 'cityscapes/validation[0] (ulm_1)'

  config = data.default_config()
  config.data_dir, config.channels = str(tmp_path), 'bgr'
  config.mean, config.std = (50.0, 100.0, 199.0), (1.0,) * 3
  (batch,) = take(eval_batches(config, batch_size=1))
  assert (batch['image'] == (0, 0, 1)).all()
  assert (batch['label'][:, :, :5] == 255).all()
  assert (batch['label'][:, :, 5:] == taxonomies.CITYSCAPES.class_names.index('car')).all()


def test_unreadable_files_are_named_or_replaced(ade20k_config, ade20k_dir):
  with open(f'{ade20k_dir}/annotations/training/1.png', 'wb') as file:
    file.write(b'no picture')
  with open(f'{ade20k_dir}/images/validation/1.jpg', 'wb') as file:
    file.write(b'no picture')
  ade20k_config.shuffle = False
  examples = train_stream(ade20k_config, 0)
  with pytest.raises(ValueError, match=r"unreadable example '.*1\.jpg'.*label map"):
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


def test_distortion_keeps_grey_grey_and_changes_about_fifteen_of_sixteen_images():
  rng = np.random.default_rng(0)
  image = rng.integers(40, 200, (8, 8, 3), dtype=np.uint8)
  results = [photometric.distort(image, np.random.default_rng(seed)) for seed in range(300)]
  changed = np.mean([not np.array_equal(result, image) for result in results])
  assert abs(changed - 15 / 16) < 0.05
  grey = np.repeat(image[..., :1], 3, axis=-1)
  for seed in range(20):
    result = photometric.distort(grey, np.random.default_rng(seed))
    assert np.ptp(result.astype(int), axis=-1).max() <= 1


def test_resizing_to_a_size_uses_that_size_not_a_factor():
  image = np.random.default_rng(0).integers(256, size=(7, 9, 3), dtype=np.uint8)
  np.testing.assert_array_equal(augmentation.resize(image, (7, 9)), image)
  ramp = np.repeat(np.arange(0, 80, 10, dtype=np.uint8)[None, :, None], 3, axis=0)
  doubled = augmentation.resize(ramp, (3, 16))[0, :, 0]
  assert doubled.tolist() == [0, *np.rint(np.arange(2.5, 70, 5)).astype(int).tolist(), 70]
