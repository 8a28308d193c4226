"""Audio: waveforms become the same batches whoever reads them, and the labels go with them."""

import numpy as np
import pytest

from crossattn_jax.data.audio import batches as data


def train_batches(config, **arguments):
  return data.Examples(config, config.train_split).train_batches(**arguments)


def eval_batches(config, **arguments):
  return data.Examples(config, config.eval_split).eval_batches(**arguments)


def train_stream(config, seed):
  return data.Examples(config, config.train_split).train_stream(seed)


@pytest.fixture
def config():
  """The synthesised sounds, every augmentation on."""
  config = data.default_config()
  config.name = 'tones'
  config.eval_split = 'test'
  config.num_mel_bins = 16
  config.num_frames = 40
  config.augmentation.mask_mel_bins = 4
  config.augmentation.mask_frames = 10
  return config


def test_a_folder_s_labels_count_through_the_training_classes(folder, config):
  config.name, config.data_dir, config.eval_split = 'wav_folder', str(folder), 'eval'
  assert data.Examples(config, 'train').source.class_names == ('beep', 'hum', 'whistle')
  batch = next(iter(eval_batches(config, batch_size=2)))
  np.testing.assert_array_equal(batch['label'], [[0, 0, 1], [0, 0, 0]])
  np.testing.assert_array_equal(batch['mask'], [True, False])
  image = data.read_audio(folder / 'high.wav', config)
  np.testing.assert_array_equal(batch['image'][0], image)
  assert image.shape == (16, 40, 1)


def test_unreadable_clips_stop_or_are_replaced_and_counted(folder, config):
  config.name, config.data_dir, config.eval_split = 'wav_folder', str(folder), 'train'
  config.augmentation.mixup.probability = 0.0
  (folder / 'low.wav').write_bytes(b'damaged')
  with pytest.raises(ValueError, match=r"low\.wav' of dataset 'wav_folder'.*unreadable = 'skip'"):
    next(iter(eval_batches(config, batch_size=2)))
  config.unreadable = 'skip'
  batch = next(iter(eval_batches(config, batch_size=2)))
  np.testing.assert_array_equal(batch['mask'], [False, True])
  np.testing.assert_array_equal(batch['skipped'], [1, 0])
  examples = train_stream(config, 0)
  assert sorted(int(examples[index]['skipped']) for index in range(2)) == [0, 1]
  for index in range(2):
    np.testing.assert_array_equal(examples[index]['label'], [1, 0, 1])


@pytest.mark.parametrize('balanced', [False, True])
def test_batches_do_not_depend_on_the_number_of_processes(config, balanced):
  config.balanced = balanced
  whole = iter(train_batches(config, batch_size=4, seed=3))
  halves = [
    iter(train_batches(config, batch_size=4, seed=3, process_index=p, process_count=2))
    for p in range(2)
  ]
  for _ in range(2):
    expected = next(whole)
    parts = [next(half) for half in halves]
    for key, value in expected.items():
      np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), value)


def test_an_iterator_resumes_exactly(config):
  iterator = iter(train_batches(config, batch_size=2, seed=0))
  next(iterator)
  state = iterator.get_state()
  expected = next(iterator)
  again = iter(train_batches(config, batch_size=2, seed=0))
  again.set_state(state)
  for key, value in next(again).items():
    np.testing.assert_array_equal(value, expected[key])


def test_mixed_waveforms_carry_mixed_labels(config):
  config.augmentation.mixup.probability = 1.0
  examples = train_stream(config, 0)
  labels = np.stack([examples[index]['label'] for index in range(6)])
  assert ((labels > 0) & (labels < 1)).any(axis=1).all()
  mixed = data.mix_waveforms(np.array([1.0, 3.0, 2.0]), np.array([4.0, 0.0]), 0.75)
  np.testing.assert_allclose(mixed, [0.75 * -1 + 0.25 * 2, 0.75 * 1 - 0.25 * 2, 0])


def test_masks_are_stripes_of_bounded_width():
  rng = np.random.default_rng(0)
  frames = np.ones((20, 12), np.float32)
  widths = set()
  for _ in range(200):
    masked = data.mask_stripe(frames, 0, 5, rng)
    rows = np.flatnonzero(~masked.any(axis=1))
    assert masked.sum() == 12 * (20 - len(rows))
    assert (np.diff(rows) == 1).all()
    widths.add(len(rows))
  assert widths == set(range(6))
  assert frames.all()


def test_balanced_sampling_makes_rare_classes_as_frequent():
  class Source:
    class_names = ('common', 'rare')

    def __len__(self):
      return 100

    def labels(self, index):
      return (int(index >= 90),)

  draw = data._BalancedIndex(Source())
  rng = np.random.default_rng(0)
  rare = np.mean([draw(0, rng) >= 90 for _ in range(2000)])
  assert 0.45 < rare < 0.55


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('std', 0.0, 'dataset.std must be positive, got 0.0'),
    ('augmentation.mixup.probability', 2.0, 'dataset.augmentation.mixup.probability must be a'),
    ('unreadable', 'ignore', "dataset.unreadable must be 'error' or 'skip', got 'ignore'"),
  ],
)
def test_wrong_values_are_refused_by_key(config, key, value, message):
  config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=message):
    train_stream(config, 0)
