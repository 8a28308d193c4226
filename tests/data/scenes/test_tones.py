import numpy as np

from crossattn_jax.data.audio import spectrogram
from crossattn_jax.data.scenes import tones


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
