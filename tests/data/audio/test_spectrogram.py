import numpy as np
import pytest

from crossattn_jax.data.audio import spectrogram


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


def _tone(frequency, samples):
  time = np.arange(samples) / spectrogram.SAMPLE_RATE
  return np.sin(2 * np.pi * frequency * time)
