import itertools
import json

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data.classification import batches as data


def train_batches(config, **arguments):
  return data.Examples(config, config.train_split).train_batches(**arguments)


def eval_batches(config, **arguments):
  return data.Examples(config, config.eval_split).eval_batches(**arguments)


def take(dataset, count: int) -> list[dict[str, np.ndarray]]:
  iterator = iter(dataset)
  batches = list(itertools.islice(iterator, count))
  iterator.close()
  # Copies, since worker processes hand over shared memory.
  return [{key: np.array(value) for key, value in batch.items()} for batch in batches]


def assert_equal(actual, expected):
  assert len(actual) == len(expected)
  for a, b in zip(actual, expected, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def folder_config(data_dir: str):
  """Pixels pass unchanged, so that batches show the numbers of the images they hold."""
  config = data.default_config()
  config.name = 'image_folder'
  config.data_dir = data_dir
  config.eval_split = 'val'
  config.image_size = (12, 10)
  config.mean, config.std = (0.0,) * 3, (1 / 255,) * 3
  config.augmentation.crop = 'none'
  config.augmentation.rand_augment.num_ops = 0
  config.augmentation.color_jitter = 0.0
  config.augmentation.random_erasing.probability = 0.0
  return config


def numbers(batch) -> list[int]:
  colors = np.round(batch['image'][:, 0, 0]).astype(int)
  return (colors[:, 0] + 256 * colors[:, 1]).tolist()


def stream(batches) -> list[int]:
  return [number for batch in batches for number in numbers(batch)]


def test_train_batches_have_the_documented_form(digits_config):
  (batch,) = take(train_batches(digits_config, batch_size=6, seed=0), 1)
  assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
    'image': ((6, 8, 8, 1), 'float32'),
    'label': ((6,), 'int32'),
    'skipped': ((6,), 'int32'),
  }


def test_same_seed_gives_the_same_batches_and_another_seed_others(digits_config):
  first = take(train_batches(digits_config, batch_size=16, seed=3), 4)
  again = take(train_batches(digits_config, batch_size=16, seed=3), 4)
  other = take(train_batches(digits_config, batch_size=16, seed=4), 4)
  assert_equal(again, first)
  assert not np.array_equal(other[0]['image'], first[0]['image'])
  assert not np.array_equal(other[0]['label'], first[0]['label'])


def test_element_does_not_depend_on_the_batch_size(digits_config):
  small = take(train_batches(digits_config, batch_size=8, seed=0), 6)
  large = take(train_batches(digits_config, batch_size=24, seed=0), 2)
  for key in small[0]:
    np.testing.assert_array_equal(
      np.concatenate([batch[key] for batch in small]),
      np.concatenate([batch[key] for batch in large]),
    )


@pytest.mark.parametrize('process_count', [2, 4])
def test_processes_hold_contiguous_rows_of_the_same_global_batches(digits_config, process_count):
  whole = take(train_batches(digits_config, batch_size=16, seed=0), 3)
  shards = [
    take(
      train_batches(
        digits_config,
        batch_size=16,
        seed=0,
        process_index=index,
        process_count=process_count,
      ),
      3,
    )
    for index in range(process_count)
  ]
  joined = [
    {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    for parts in zip(*shards, strict=True)
  ]
  assert_equal(joined, whole)


@pytest.mark.parametrize('process_count', [1, 2])
def test_any_batch_may_be_the_first(digits_config, process_count):
  def of_process(index, **arguments):
    return train_batches(
      digits_config,
      batch_size=16,
      seed=0,
      process_index=index,
      process_count=process_count,
      **arguments,
    )

  for index in range(process_count):
    assert_equal(take(of_process(index, start=2), 2), take(of_process(index), 4)[2:])
  # Later epochs too: 1442 images are 90 batches.
  (late,) = take(of_process(0, start=1000), 1)
  assert len(late['label']) == 16 // process_count


def test_epochs_are_permutations_that_differ(image_folder):
  config = folder_config(image_folder('train', {'a': 7, 'b': 5}))
  batches = take(train_batches(config, batch_size=4, seed=0), 9)
  epochs = [stream(batches[start : start + 3]) for start in (0, 3, 6)]
  assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2]


def test_without_shuffling_the_order_is_that_of_the_split(image_folder):
  config = folder_config(image_folder('train', {'a': 3, 'b': 2}))
  config.shuffle = False
  batches = take(train_batches(config, batch_size=5, seed=0), 2)
  assert [numbers(batch) for batch in batches] == [[0, 1, 2, 3, 4]] * 2
  assert batches[0]['label'].tolist() == [0, 0, 0, 1, 1]


def test_augmentation_differs_between_epochs(digits_config):
  digits_config.train_split = 'train[:8]'
  digits_config.shuffle = False
  first, second = take(train_batches(digits_config, batch_size=8, seed=0), 2)
  np.testing.assert_array_equal(first['label'], second['label'])
  assert not np.array_equal(first['image'], second['image'])


def test_cached_images_give_the_same_batches(digits_config):
  digits_config.train_split = 'train[:32]'
  expected = take(train_batches(digits_config, batch_size=16, seed=0), 6)
  digits_config.cache = True
  assert_equal(take(train_batches(digits_config, batch_size=16, seed=0), 6), expected)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_resumes_bit_exactly_from_a_json_state(digits_config, num_workers):
  expected = take(train_batches(digits_config, batch_size=8, seed=0), 8)
  digits_config.num_workers = num_workers
  dataset = train_batches(digits_config, batch_size=8, seed=0)
  iterator = iter(dataset)
  head = [{k: np.array(v) for k, v in next(iterator).items()} for _ in range(3)]
  state = json.dumps(iterator.get_state())
  iterator.close()
  resumed = iter(dataset)
  resumed.set_state(json.loads(state))
  tail = [{k: np.array(v) for k, v in next(resumed).items()} for _ in range(5)]
  resumed.close()
  assert_equal(head + tail, expected)


def test_repeated_augmentation_follows_the_sampler_of_the_recipe(image_folder):
  config = folder_config(image_folder('train', {'a': 300, 'b': 240}))
  config.shuffle = False
  config.repeated_augmentation = 3
  # An epoch of 540 images is floor(540 / 256) * 256 = 512 samples: 171 images, the last one twice.
  assert data.Examples(config, config.train_split).steps_per_epoch(128) == 4
  batches = take(train_batches(config, batch_size=128, seed=0), 5)
  assert stream(batches) == [p // 3 for p in range(512)] + [p // 3 for p in range(128)]


def test_repeated_augmentation_augments_every_copy_differently(digits_config):
  digits_config.repeated_augmentation = 3
  digits_config.augmentation.random_erasing.probability = 1.0
  (batch,) = take(train_batches(digits_config, batch_size=6, seed=0), 1)
  assert batch['label'][:3].tolist() == [batch['label'][0]] * 3
  assert not np.array_equal(batch['image'][0], batch['image'][1])


def test_repeated_augmentation_reshuffles_over_all_images(image_folder):
  config = folder_config(image_folder('train', {'a': 256}))
  config.repeated_augmentation = 3
  epochs = [numbers(b) for b in take(train_batches(config, batch_size=256, seed=0), 2)]
  assert [len(set(epoch)) for epoch in epochs] == [86, 86]
  assert set(epochs[0]) != set(epochs[1])


def test_repeated_augmentation_of_too_few_images_is_refused(image_folder):
  config = folder_config(image_folder('train', {'a': 255}))
  config.repeated_augmentation = 3
  with pytest.raises(
    ValueError, match=r'dataset\.repeated_augmentation needs at least 256 examples'
  ):
    train_batches(config, batch_size=8, seed=0)


def test_steps_per_epoch_counts_whole_batches(digits_config):
  assert data.Examples(digits_config, digits_config.train_split).steps_per_epoch(128) == 1442 // 128
  assert data.Examples(digits_config, digits_config.train_split).steps_per_epoch(4096) == 1


@pytest.mark.parametrize('process_count', [1, 2, 4])
@pytest.mark.parametrize('batch_size', [4, 12, 16, 64])
def test_evaluation_counts_every_example_once(image_folder, batch_size, process_count):
  image_folder('train', {'a': 1, 'b': 1})
  config = folder_config(image_folder('val', {'a': 9, 'b': 8}))
  shards = [
    take(
      eval_batches(config, batch_size=batch_size, process_index=index, process_count=process_count),
      1000,
    )
    for index in range(process_count)
  ]
  assert {len(shard) for shard in shards} == {-(-17 // batch_size)}
  seen = []
  for parts in zip(*shards, strict=True):
    for batch in parts:
      assert batch['image'].shape == (batch_size // process_count, 12, 10, 3)
      seen += np.array(numbers(batch))[batch['mask']].tolist()
      assert not batch['label'][~batch['mask']].any()
      assert not batch['image'][~batch['mask']].any()
  assert seen == list(range(17))


def test_evaluation_in_a_worker_equals_evaluation_in_process(digits_config):
  expected = take(eval_batches(digits_config, batch_size=100), 10)
  assert sum(int(batch['mask'].sum()) for batch in expected) == 355
  digits_config.num_workers = 1
  assert_equal(take(eval_batches(digits_config, batch_size=100), 10), expected)


def test_small_evaluation_images_are_neither_resized_nor_cropped(digits_config):
  (batch,) = take(eval_batches(digits_config, batch_size=1), 1)
  source = data.sources.create_source('digits', 'test', digits_config.data_dir)
  image = data.image_ops.decode(source[0]['image'], 1)
  np.testing.assert_array_equal(
    data.denormalize(batch['image'], digits_config)[0, ..., 0], np.asarray(image)
  )
  np.testing.assert_allclose(batch['image'][0, ..., 0], np.asarray(image) / 127.5 - 1, atol=1e-6)


def break_image(data_dir: str, path: str) -> str:
  file = f'{data_dir}/{path}'
  with open(file, 'r+b') as opened:
    opened.truncate(40)
  return file


@pytest.mark.parametrize('num_workers', [0, 1])
def test_unreadable_training_image_is_an_error_that_names_it(image_folder, num_workers):
  config = folder_config(image_folder('train', {'a': 4}))
  path = break_image(config.data_dir, 'train/a/002.png')
  config.num_workers = num_workers
  with pytest.raises(Exception, match='unreadable image') as error:
    take(train_batches(config, batch_size=4, seed=0), 1)
  message = str(error.value)
  assert path in message
  assert "dataset 'image_folder', split 'train'" in message
  assert "dataset.unreadable = 'skip'" in message


def test_unreadable_training_image_is_replaced_by_the_next_and_counted(image_folder, caplog):
  config = folder_config(image_folder('train', {'a': 5}))
  path = break_image(config.data_dir, 'train/a/002.png')
  break_image(config.data_dir, 'train/a/004.png')
  config.shuffle = False
  config.unreadable = 'skip'
  with caplog.at_level('WARNING'):
    (batch,) = take(train_batches(config, batch_size=5, seed=0), 1)
  assert numbers(batch) == [0, 1, 3, 3, 0]
  assert batch['skipped'].tolist() == [0, 0, 1, 0, 1]
  assert path in caplog.text


def test_training_set_without_a_readable_image_is_an_error(image_folder):
  config = folder_config(image_folder('train', {'a': 2}))
  for name in ('000', '001'):
    break_image(config.data_dir, f'train/a/{name}.png')
  config.unreadable = 'skip'
  with pytest.raises(ValueError, match='none of the 2 images'):
    take(train_batches(config, batch_size=2, seed=0), 1)


def test_unreadable_evaluation_image_is_masked_and_counted(image_folder):
  image_folder('train', {'a': 1})
  config = folder_config(image_folder('val', {'a': 3}))
  break_image(config.data_dir, 'val/a/001.png')
  with pytest.raises(ValueError, match=r"unreadable image .*001\.png.*split 'val'"):
    take(eval_batches(config, batch_size=4), 1)
  config.unreadable = 'skip'
  (batch,) = take(eval_batches(config, batch_size=4), 1)
  assert batch['mask'].tolist() == [True, False, True, False]
  assert batch['skipped'].tolist() == [0, 1, 0, 0]


def test_evaluation_labels_count_through_the_training_classes(image_folder):
  image_folder('train', {'a': 1, 'b': 1, 'c': 1})
  config = folder_config(image_folder('val', {'a': 1, 'c': 1}))
  (batch,) = take(eval_batches(config, batch_size=2), 1)
  assert batch['label'].tolist() == [0, 2]


def test_evaluation_class_that_training_lacks_is_refused(image_folder):
  image_folder('train', {'a': 1})
  config = folder_config(image_folder('val', {'a': 1, 'z': 1}))
  with pytest.raises(ValueError, match="has a class 'z' that is not among the 1 expected"):
    eval_batches(config, batch_size=2)


def test_read_image_equals_the_evaluation_batch(image_folder):
  image_folder('train', {'a': 1})
  config = folder_config(image_folder('val', {'a': 1}))
  config.image_size = (40, 48)
  (batch,) = take(eval_batches(config, batch_size=1), 1)
  image, picture = data.read_image(f'{config.data_dir}/val/a/000.png', config)
  np.testing.assert_array_equal(image, batch['image'][0])
  assert isinstance(picture, Image.Image)
  assert picture.size == (48, 40)


def test_read_image_of_another_file_names_it(tmp_path, digits_config):
  path = tmp_path / 'notes.txt'
  path.write_text('no image')
  with pytest.raises(ValueError, match=r'cannot read image .*notes\.txt'):
    data.read_image(path, digits_config)


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('image_size', (8,)),
    ('mean', (0.5, 0.5)),
    ('std', (0.5, 0.0, 0.5)),
    ('crop_fraction', 1.5),
    ('interpolation', 'cubic'),
    ('repeated_augmentation', 0),
    ('unreadable', 'ignore'),
    ('num_workers', -1),
    ('num_threads', 0),
    ('prefetch', 0),
    ('augmentation.crop', 'center'),
    ('augmentation.scale', (0.5, 2.0)),
    ('augmentation.ratio', (0.0, 1.0)),
    ('augmentation.padding', -1),
    ('augmentation.flip', 2.0),
    ('augmentation.color_jitter', -1.0),
    ('augmentation.rand_augment.num_ops', -1),
    ('augmentation.rand_augment.magnitude', 11.0),
    ('augmentation.rand_augment.magnitude_std', -1.0),
    ('augmentation.rand_augment.probability', 1.5),
    ('augmentation.random_erasing.probability', -0.5),
    ('augmentation.random_erasing.area', (0.5, 0.2)),
    ('augmentation.random_erasing.min_aspect', 0.0),
  ],
  ids=str,
)
def test_wrong_value_is_refused_by_the_name_of_its_key(key, value):
  config = data.default_config()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=f'^dataset.{key} must be '):
    train_batches(config, batch_size=8, seed=0)


def test_batch_that_the_processes_cannot_share_is_refused(digits_config):
  with pytest.raises(ValueError, match='positive multiple of the 4 processes, got 6'):
    train_batches(digits_config, batch_size=6, seed=0, process_count=4)
  with pytest.raises(ValueError, match=r'process_index must be in \[0, 2\), got 2'):
    eval_batches(digits_config, batch_size=6, process_index=2, process_count=2)
