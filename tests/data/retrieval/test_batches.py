import re

import ml_collections
import numpy as np
import pytest

from crossattn_jax.data.retrieval import batches as data
from crossattn_jax.data.retrieval import word_features
from crossattn_jax.data.scenes import captions, regions


def train_batches(config, **arguments):
  return data.Examples(config, config.train_split).train_batches(**arguments)


def eval_batches(config, **arguments):
  return data.Examples(config, config.eval_split).eval_batches(**arguments)


def train_stream(config, seed):
  return data.Examples(config, config.train_split).train_stream(seed)


_VOCABULARY = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', 'image', 'caption', *'012345', '##1')


@pytest.fixture
def config(tmp_path, write_split) -> ml_collections.ConfigDict:
  """Six images to train on and four to test."""
  write_split(tmp_path, 'train', 6)
  write_split(tmp_path, 'dev', 4)
  (tmp_path / 'vocab.txt').write_text('\n'.join(_VOCABULARY) + '\n')
  config = data.default_config()
  config.data_dir = str(tmp_path)
  config.num_regions, config.region_dim, config.max_words = 4, 4, 8
  config.vocabulary = str(tmp_path / 'vocab.txt')
  return config


@pytest.fixture
def scenes_config(datasets_dir) -> ml_collections.ConfigDict:
  config = data.default_config()
  config.name, config.data_dir, config.eval_split = 'shape_scenes/tiny', datasets_dir, 'validation'
  config.num_regions, config.region_dim, config.max_words = 8, 32, 56
  return config


def test_a_vocabulary_is_asked_for_and_checked(config, tmp_path):
  (tmp_path / 'vocab.txt').write_text('[PAD]\n[UNK]\n[CLS]\n')
  with pytest.raises(ValueError, match=r"vocab\.txt' has no '\[SEP\]' among its 3 lines"):
    data.tokenizer(config)
  config.vocabulary = str(tmp_path / 'other.txt')
  with pytest.raises(ValueError, match=r'expected the vocab\.txt of the text encoder'):
    data.tokenizer(config)
  config.vocabulary = None
  with pytest.raises(ValueError, match=r'no vocabulary of its own: set dataset\.vocabulary'):
    data.tokenizer(config)


def test_an_epoch_has_every_caption_once_with_its_image(config):
  examples = [train_stream(config, 3)[i] for i in range(60)]
  words = data.tokenizer(config)
  seen = []
  for example in examples:
    assert example['regions'].shape == (4, 4)
    assert example['region_mask'].tolist() == [True] * 3 + [False]
    assert not example['regions'][3].any()
    pieces = words.pieces(example['words'], example['word_mask'])
    assert int(pieces[2]) == example['regions'][0, 0] == example['image']
    seen.append((pieces[2], pieces[4]))
  assert len(set(seen[:30])) == len(set(seen[30:])) == 30
  assert seen[:30] != seen[30:]
  assert [int(example['epoch']) for example in examples] == [0] * 30 + [1] * 30
  assert data.Examples(config, config.train_split).steps_per_epoch(4) == 7


def test_global_batches_are_the_same_for_any_number_of_processes(config):
  def batches(index, count):
    iterator = iter(
      train_batches(config, batch_size=4, seed=1, process_index=index, process_count=count)
    )
    return [next(iterator)['words'] for _ in range(3)]

  alone, first, second = batches(0, 1), batches(0, 2), batches(1, 2)
  for whole, *parts in zip(alone, first, second, strict=True):
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_evaluation_sees_the_first_images_in_order_with_all_captions(config):
  config.eval_images = 3
  first, second = eval_batches(config, batch_size=2)
  assert first['words'].shape == first['word_mask'].shape == (2, 5, 8)
  assert first['mask'].tolist() == [True, True]
  assert second['mask'].tolist() == [True, False]
  assert first['regions'][:, 0, 0].tolist() == [0, 1]
  assert first['image'].tolist() == [0, 1]
  assert second['skipped'].tolist() == [0, 0]
  words = data.tokenizer(config)
  pieces = words.pieces(second['words'][0, 4], second['word_mask'][0, 4])
  assert pieces == ['[CLS]', 'image', '2', 'caption', '4', '[SEP]']


def test_words_may_be_features_that_were_computed_before(config, tmp_path):
  """Word w of caption c of image i is i + c / 10 + w / 100; captions have 1 to 5 words."""
  for split, images in (('train', 6), ('dev', 4)):
    lengths = [1 + caption for _ in range(images) for caption in range(5)]
    captions = [
      np.tile(i + c / 10 + np.arange(1 + c)[:, None] / 100, (1, 3))
      for i in range(images)
      for c in range(5)
    ]
    word_features.write_word_features(tmp_path, split, lengths, captions, 3)
  config.word_files, config.word_dim, config.vocabulary = str(tmp_path), 3, None
  example = train_stream(config, 3)[0]
  assert example['words'].shape == (8, 3)
  count = int(example['word_mask'].sum())
  assert example['word_mask'].tolist() == [True] * count + [False] * (8 - count)
  expected = example['image'] + (count - 1) / 10 + np.arange(count) / 100
  np.testing.assert_allclose(example['words'][:count, 0], expected, rtol=1e-6)
  assert not example['words'][count:].any()

  config.eval_images = 3
  first, second = eval_batches(config, batch_size=2)
  assert first['words'].shape == second['words'].shape == (2, 5, 8, 3)
  assert first['words'].dtype == second['words'].dtype == np.float32
  np.testing.assert_allclose(first['words'][1, :, 0, 1], 1 + np.arange(5) / 10, rtol=1e-6)
  assert first['word_mask'].sum(axis=-1).tolist() == [[1, 2, 3, 4, 5]] * 2
  config.word_dim = 4
  with pytest.raises(ValueError, match=r"dev_words\.npy' .* expected floats \[60, 4\]"):
    eval_batches(config, batch_size=2)


def test_word_features_that_are_not_finite_are_skipped_on_request(config, tmp_path):
  captions = [np.full((1, 3), np.nan if number == 7 else 0.0) for number in range(20)]
  word_features.write_word_features(tmp_path, 'dev', [1] * 20, captions, 3)
  config.word_files, config.word_dim = str(tmp_path), 3
  with pytest.raises(ValueError, match=r'caption 7: rows 7 to 7 of .*dev_words\.npy.* not finite'):
    list(eval_batches(config, batch_size=4))
  config.unreadable = 'skip'
  (batch,) = eval_batches(config, batch_size=4)
  assert batch['mask'].tolist() == [True, False, True, True]


def test_regions_that_are_not_finite_are_skipped_on_request(config, tmp_path):
  for split in ('train', 'dev'):
    rows = np.load(tmp_path / f'{split}_ims.npy')
    rows[1, 2, 0] = np.nan
    np.save(tmp_path / f'{split}_ims.npy', rows)
  message = r"'train_ims\[1\]': row 1 of .* values that are not finite; repair or remove it"
  with pytest.raises(ValueError, match=message):
    [train_stream(config, 0)[i] for i in range(30)]
  config.unreadable, config.cache = 'skip', True
  examples = train_stream(config, 0)
  skipped = [examples[i] for i in range(30) if examples[i]['skipped']]
  assert [example['regions'][0, 0] for example in skipped] == [2] * 5
  assert [example['image'] for example in skipped] == [2] * 5
  first, _ = eval_batches(config, batch_size=2)
  assert first['mask'].tolist() == [True, False]
  assert first['skipped'].tolist() == [0, 1]


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('num_regions', 2, 'has 3 regions of 4 channels; set dataset.num_regions, now 2'),
    ('region_dim', 5, r'has 3 regions of 4 channels; set .*dataset\.region_dim, now 5'),
    ('max_words', 2, r'dataset\.max_words must be at least 3'),
    ('eval_images', 0, r'dataset\.eval_images must be at least 1'),
  ],
)
def test_wrong_values_are_refused_by_key(config, key, value, message):
  config[key] = value
  with pytest.raises(ValueError, match=message):
    list(eval_batches(config, batch_size=2))


def test_scenes_have_five_captions_of_known_words(scenes_config):
  source = data.Examples.open_source(scenes_config, 'train')
  known = set(captions.vocabulary())
  for example in map(source.__getitem__, range(len(source))):
    assert len(set(example.captions)) == 5
    words = {word for caption in example.captions for word in re.findall(r'\w+|[^\w\s]', caption)}
    assert words <= known
  tokenizer = data.tokenizer(scenes_config)
  numbers, mask = tokenizer(source[0].captions[0])
  assert '[UNK]' not in tokenizer.pieces(numbers, mask)


def test_regions_of_a_scene_are_its_image_and_its_boxes(scenes_config):
  source = data.Examples.open_source(scenes_config, 'train')
  batch = next(iter(train_batches(scenes_config, batch_size=6, seed=0)))
  assert batch['regions'].shape == (6, 8, 32)
  for row, index in enumerate(batch['image']):
    picture = source.picture(int(index))
    count = len(picture.boxes)
    assert batch['region_mask'][row].sum() == count
    assert picture.boxes[0] == (0, 0, 64, 64)
    # What is beyond a box has no part in its feature.
    pixels = np.asarray(picture.image)
    top, left, bottom, right = (round(edge) for edge in picture.boxes[-1])
    shares = tuple(edge / 64 for edge in picture.boxes[-1])
    alone = regions.region_features(pixels, [shares], 32)
    np.testing.assert_allclose(batch['regions'][row, count - 1], alone[0], atol=1e-5)
    changed = pixels.copy()
    changed[:top] = changed[bottom:] = 0
    changed[:, :left] = changed[:, right:] = 0
    np.testing.assert_array_equal(regions.region_features(changed, [shares], 32), alone)
