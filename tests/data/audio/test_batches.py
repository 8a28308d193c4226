"""Audio: waveforms become the same batches whoever reads them, and the labels go with them."""

import io

import numpy as np
import pytest
from scipy.io import wavfile

from crossattn_jax.data import pipeline
from crossattn_jax.data.audio import batches as data
from crossattn_jax.data.audio import sources, spectrogram
from crossattn_jax.data.scenes import tones


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


@pytest.fixture
def folder(tmp_path):
  """Two training clips and one to evaluate, at other rates and widths than the pipeline's."""
  time = np.arange(8000) / 8000
  low = np.round(20000 * np.sin(2 * np.pi * 300 * time)).astype(np.int16)
  high = np.sin(2 * np.pi * 2000 * time).astype(np.float32)
  wavfile.write(tmp_path / 'low.wav', 8000, low)
  wavfile.write(tmp_path / 'high.wav', 8000, np.stack([high, high], axis=1))
  (tmp_path / 'train.csv').write_text('file,labels\nlow.wav,hum\nhigh.wav,"whistle,beep"\n')
  (tmp_path / 'eval.csv').write_text('file,labels\nhigh.wav,whistle\n')
  return tmp_path


def _tone(frequency, samples):
  time = np.arange(samples) / spectrogram.SAMPLE_RATE
  return np.sin(2 * np.pi * frequency * time)


def test_frames_are_whole_and_a_tone_is_in_its_band():
  for length, frames in ((399, 0), (400, 1), (559, 1), (560, 2), (160_000, 998)):
    assert spectrogram.num_frames(length) == frames
  assert spectrogram.num_frames(spectrogram.num_samples(7)) == 7
  values = spectrogram.log_mel(_tone(1000.0, 4000), 64)
  assert values.shape == (23, 64)
  assert values.dtype == np.float64
  mel = lambda f: 1127 * np.log(1 + f / 700)
  expected = (mel(1000) - mel(20)) / (mel(8000) - mel(20)) * 65 - 1
  assert np.abs(np.argmax(values, axis=1) - expected).max() <= 1
  with pytest.raises(ValueError, match='399 samples has no whole frame of 400'):
    spectrogram.log_mel(np.zeros(399))


def test_silence_is_the_floor_and_what_is_short_is_padded_with_zeros():
  values = spectrogram.log_mel(np.zeros(720, np.float32), 8)
  np.testing.assert_allclose(values, np.log(2.0**-23), rtol=1e-6)
  image = spectrogram.normalize(spectrogram.fit(values, 5), mean=-1.0, std=2.0)
  assert image.shape == (8, 5)
  assert image.dtype == np.float32
  np.testing.assert_allclose(image[:, 3:], 0.25)
  assert spectrogram.fit(values, 2).shape == (2, 8)


def test_every_format_decodes_to_the_same_sound():
  wave = 0.5 * _tone(440.0, 1600)
  for samples in (
    np.round(wave * 2**15).astype(np.int16),
    np.round(wave * 2**31).astype(np.int32),
    np.round(wave * 128 + 128).astype(np.uint8),
    wave.astype(np.float32),
    np.stack([wave, wave], axis=1).astype(np.float64),
  ):
    file = io.BytesIO()
    wavfile.write(file, 16_000, samples)
    decoded = sources.decode(file.getvalue())
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, wave, atol=1 / 128)
  with pytest.raises(pipeline.UnreadableError, match=r'no readable \.wav file'):
    sources.decode(b'no sound')


def test_other_rates_are_resampled(folder):
  decoded = sources.decode((folder / 'low.wav').read_bytes())
  assert len(decoded) == 16_000
  expected = 20000 / 2**15 * _tone(300.0, 16_000)
  np.testing.assert_allclose(decoded[500:-500], expected[500:-500], atol=0.01)


def test_a_folder_s_labels_count_through_the_training_classes(folder, config):
  config.name, config.data_dir, config.eval_split = 'wav_folder', str(folder), 'eval'
  assert data.Examples(config, 'train').source.class_names == ('beep', 'hum', 'whistle')
  batch = next(iter(eval_batches(config, batch_size=2)))
  np.testing.assert_array_equal(batch['label'], [[0, 0, 1], [0, 0, 0]])
  np.testing.assert_array_equal(batch['mask'], [True, False])
  image = data.read_audio(folder / 'high.wav', config)
  np.testing.assert_array_equal(batch['image'][0], image)
  assert image.shape == (16, 40, 1)


def test_audioset_s_table_gives_the_classes_their_order_and_names(folder, config):
  table = 'index,mid,display_name\n0,/m/2,whistle\n1,/m/1,hum\n2,/m/0,beep\n'
  (folder / sources.CLASS_TABLE).write_text(table)
  (folder / 'train.csv').write_text('file,labels\nlow.wav,/m/1\nhigh.wav,"/m/0,/m/2"\n')
  source = sources.create_source('wav_folder', 'train', folder)
  assert source.class_names == ('whistle', 'hum', 'beep')
  assert [source.labels(index) for index in range(2)] == [(1,), (0, 2)]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('wav_folder', 'validation'), 'no table .*validation.csv.*; there are eval.csv, train.csv'),
    (('tones', 'validation'), "'tones' has no split 'validation'; it has train, test"),
    (('wav_folder', 'other'), "gives 'low.wav' the label 'buzz'"),
    (('tone', 'train'), "unknown audio dataset 'tone'; did you mean 'tones'"),
  ],
  ids=['table', 'split', 'label', 'name'],
)
def test_what_is_not_there_is_named(folder, arguments, message):
  (folder / 'other.csv').write_text('file,labels\nlow.wav,buzz\n')
  if arguments[1] == 'validation':
    (folder / 'other.csv').unlink()
  with pytest.raises(ValueError, match=message):
    sources.create_source(*arguments, folder, class_names=('hum',))


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


def test_sounds_are_a_function_of_split_and_number():
  first, labels = tones.clip('train', 3)
  again, _ = tones.clip('train', 3)
  np.testing.assert_array_equal(first, again)
  assert first.dtype == np.int16
  assert len(first) == spectrogram.SAMPLE_RATE
  assert 1 <= len(labels) <= 3
  assert not np.array_equal(first, tones.clip('test', 3)[0])
  counts = np.bincount([k for i in range(60) for k in tones.clip('train', i)[1]], minlength=8)
  assert (counts > 5).all()


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
