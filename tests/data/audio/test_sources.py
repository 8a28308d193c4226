import io

import numpy as np
import pytest
from scipy.io import wavfile

from crossattn_jax.data import pipeline
from crossattn_jax.data.audio import sources, spectrogram


def _tone(frequency, samples):
  time = np.arange(samples) / spectrogram.SAMPLE_RATE
  return np.sin(2 * np.pi * frequency * time)


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
  wave[3] = np.nan
  file = io.BytesIO()
  wavfile.write(file, 16_000, wave.astype(np.float32))
  with pytest.raises(pipeline.UnreadableError, match='samples that are not finite'):
    sources.decode(file.getvalue())


def test_sounds_that_are_not_there_are_named_and_counted(folder):
  (folder / 'train.csv').write_text('file,labels\nlow.wav,hum\nlost.wav,hum\nalso.wav,hum\n')
  with pytest.raises(ValueError, match=r"names 2 of 3 files .* not there, such as '.*lost\.wav'"):
    sources.create_source('wav_folder', 'train', folder)


def test_other_rates_are_resampled(folder):
  decoded = sources.decode((folder / 'low.wav').read_bytes())
  assert len(decoded) == 16_000
  expected = 20000 / 2**15 * _tone(300.0, 16_000)
  np.testing.assert_allclose(decoded[500:-500], expected[500:-500], atol=0.01)


def test_audioset_s_table_gives_the_classes_their_order_and_names(folder):
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
    (('tone', 'train'), "unknown dataset 'tone'; did you mean 'tones'"),
  ],
  ids=['table', 'split', 'label', 'name'],
)
def test_what_is_not_there_is_named(folder, arguments, message):
  (folder / 'other.csv').write_text('file,labels\nlow.wav,buzz\n')
  if arguments[1] == 'validation':
    (folder / 'other.csv').unlink()
  with pytest.raises(ValueError, match=message):
    sources.create_source(*arguments, folder, class_names=('hum',))
