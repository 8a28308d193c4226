import ml_collections
import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data.image_fusion import batches as data
from crossattn_jax.data.image_fusion import sources


def train_batches(config, **arguments):
  return data.Examples(config, config.train_split).train_batches(**arguments)


def eval_batches(config, **arguments):
  return data.Examples(config, config.eval_split).eval_batches(**arguments)


def train_stream(config, seed):
  return data.Examples(config, config.train_split).train_stream(seed)


@pytest.fixture
def config(tmp_path, write_images) -> ml_collections.ConfigDict:
  """Three pairs of 20 x 24 pixels in the layout of MSRS; both images of a pair are the same."""
  for split in ('train', 'test'):
    for kind in ('vi', 'ir'):
      write_images(tmp_path / split / kind, ('a', 'b', 'c'))
  config = data.default_config()
  config.data_dir = str(tmp_path)
  config.image_size = (8, 8)
  return config


@pytest.mark.parametrize(('lonely', 'where'), [('vi', 'ir'), ('ir', 'vi')])
def test_an_image_without_partner_is_named_and_where_it_would_be(
  config, tmp_path, write_images, lonely, where
):
  write_images(tmp_path / 'train' / lonely, ('d',))
  expected = rf"train/{lonely}/d\.png' has no partner: expected '.*train/{where}' to have"
  with pytest.raises(ValueError, match=expected):
    train_stream(config, 0)
  write_images(tmp_path / 'train' / where, ('e', 'f'))
  with pytest.raises(ValueError, match=r'has no partner.*; 2 other images have none'):
    train_stream(config, 0)


def test_a_pair_of_two_sizes_is_refused_by_both_names(config, tmp_path, write_images):
  write_images(tmp_path / 'train' / 'ir', ('b',), size=(20, 26))
  message = r"train/vi/b\.png' has 20 x 24 pixels, '.*train/ir/b\.png' 20 x 26; pairs must be"
  with pytest.raises(ValueError, match=message):
    [train_stream(config, 0)[i] for i in range(60)]
  with pytest.raises(ValueError, match=message):
    data.read_pair(tmp_path / 'train/vi/b.png', tmp_path / 'train/ir/b.png', data.default_config())


def test_an_unreadable_pair_is_skipped_on_request(config, tmp_path):
  (tmp_path / 'train' / 'ir' / 'b.png').write_bytes(b'no image')
  (tmp_path / 'test' / 'ir' / 'b.png').write_bytes(b'no image')
  config.unreadable = 'skip'
  examples = train_stream(config, 0)
  assert sum(int(examples[i]['skipped']) for i in range(60)) == 20
  (batch,) = list(eval_batches(config, batch_size=3))
  assert batch['mask'].tolist() == [True, False, True]
  assert batch['skipped'].tolist() == [0, 1, 0]


def test_both_images_are_cropped_at_the_same_place_and_each_pair_as_often_as_said(config):
  config.crops_per_pair = 4
  examples = [train_stream(config, 3)[i] for i in range(12)]
  for example in examples:
    assert example['visible'].shape == (8, 8, 1)
    np.testing.assert_array_equal(example['visible'], example['infrared'])
  whole = [
    np.asarray(Image.open(path))
    for path, _ in sources.create_source('msrs', 'train', config.data_dir).pairs
  ]

  def origin(crop):
    for number, image in enumerate(whole):
      windows = np.lib.stride_tricks.sliding_window_view(image, (8, 8))
      if np.any(np.all(windows == crop, axis=(2, 3))):
        return number
    raise AssertionError('a crop of no image')

  origins = [origin(example['visible'][..., 0]) for example in examples]
  assert np.bincount(origins).tolist() == [4, 4, 4]
  assert data.Examples(config, config.train_split).steps_per_epoch(5) == 2


def test_global_batches_are_the_same_for_any_number_of_processes(config):
  def batches(index, count):
    iterator = iter(
      train_batches(config, batch_size=4, seed=1, process_index=index, process_count=count)
    )
    return [next(iterator)['visible'] for _ in range(3)]

  alone, first, second = batches(0, 1), batches(0, 2), batches(1, 2)
  for whole, *parts in zip(alone, first, second, strict=True):
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_evaluation_sees_every_pair_once_in_buckets(config, tmp_path, write_images):
  for kind in ('vi', 'ir'):
    write_images(tmp_path / 'test' / kind, ('d',), size=(33, 30))
  config.evaluation.bucket_step = 32
  batches = list(eval_batches(config, batch_size=2))
  assert [batch['visible'].shape for batch in batches] == [(2, 32, 32, 1)] * 2 + [(2, 64, 32, 1)]
  assert sum(batch['mask'].sum() for batch in batches) == 4
  last = batches[-1]
  assert last['size'][0].tolist() == [33, 30]
  assert not last['visible'][0, 33:].any()


def test_wrong_values_are_refused_by_key(config):
  config.evaluation.bucket_step = 6
  with pytest.raises(ValueError, match=r'dataset\.evaluation\.bucket_step must be a positive mult'):
    eval_batches(config, batch_size=1)
  config.evaluation.bucket_step = 8
  config.image_size = (32, 8)
  with pytest.raises(ValueError, match=r'20 x 24 pixels, less than the crops: set dataset\.image'):
    train_stream(config, 0)[0]
  with pytest.raises(ValueError, match="unknown dataset 'msr'; did you mean 'msrs'"):
    sources.create_source('msr', 'train', config.data_dir)


def test_grey_files_and_grey_colours_are_the_same(config, tmp_path):
  def views(mode):
    for path in tmp_path.glob('*/ir/*.png'):
      Image.open(path).convert('L').convert(mode).save(path)
    return [train_stream(config, 0)[0], next(iter(eval_batches(config, batch_size=3)))]

  for grey, color in zip(views('L'), views('RGB'), strict=True):
    for key in ('visible', 'infrared'):
      np.testing.assert_array_equal(grey[key], color[key])
