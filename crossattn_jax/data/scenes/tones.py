"""Synthesised sounds with several labels: audio to learn from without a network.

A clip is a second of one to three events over faint noise, made from its split and number alone.
"""

import io
import zlib

from etils import epy
import numpy as np
from scipy.io import wavfile

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from scipy import signal

CLASS_NAMES = (
  'steady tone',
  'rising chirp',
  'falling chirp',
  'noise band',
  'clicks',
  'tremolo',
  'vibrato',
  'harmonics',
)
# Clips of each split.
SIZES = {'train': 2048, 'test': 512}

_RATE = 16_000
_SECONDS = 1.0
_MOST_EVENTS = 3
_FADE_SECONDS = 0.02
_NOISE = 0.003


def clip(split: str, index: int) -> tuple[np.ndarray, tuple[int, ...]]:
  """Synthesises a clip.

  Args:
    split: a name in `SIZES`.
    index: of the clip.

  Returns:
    int16 samples at 16 kHz, and its labels in ascending order.
  """
  labels, rng = _draw(split, index)
  total = int(_SECONDS * _RATE)
  samples = _NOISE * rng.standard_normal(total)
  for label in labels:
    length = int(rng.uniform(0.4, 0.7) * total)
    start = int(rng.integers(0, total - length))
    event = _event(CLASS_NAMES[label], length, rng)
    samples[start : start + length] += rng.uniform(0.08, 0.3) * event * _fade(length)
  return np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16), labels


def labels_of(split: str, index: int) -> tuple[int, ...]:
  """The labels of a clip, which is not synthesised."""
  return _draw(split, index)[0]


def _draw(split: str, index: int) -> tuple[tuple[int, ...], np.random.Generator]:
  """The labels of a clip, and what draws the rest."""
  rng = np.random.default_rng([zlib.crc32(split.encode()), index])
  count = int(rng.integers(1, _MOST_EVENTS + 1))
  labels = rng.choice(len(CLASS_NAMES), count, replace=False)
  return tuple(sorted(labels.tolist())), rng


def encode(samples: np.ndarray) -> bytes:
  """Returns int16 samples as a .wav file."""
  file = io.BytesIO()
  wavfile.write(file, _RATE, samples)
  return file.getvalue()


def _fade(length: int) -> np.ndarray:
  """Rises from 0 to 1 at the start and falls at the end."""
  return signal.windows.tukey(length, 2 * _FADE_SECONDS * _RATE / length)


def _event(name: str, length: int, rng: np.random.Generator) -> np.ndarray:
  """`length` samples of one kind of sound, of amplitude one or so."""
  time = np.arange(length) / _RATE
  frequency = float(np.exp(rng.uniform(np.log(250), np.log(3000))))
  phase = rng.uniform(0, 2 * np.pi)
  tone = np.sin(2 * np.pi * frequency * time + phase)
  match name:
    case 'steady tone':
      return tone
    case 'rising chirp' | 'falling chirp':
      end = frequency * rng.uniform(1.5, 2.5)
      low_high = (frequency, end) if name == 'rising chirp' else (end, frequency)
      return signal.chirp(time, low_high[0], time[-1], low_high[1], method='logarithmic')
    case 'noise band':
      band = np.array([frequency, frequency * rng.uniform(1.3, 1.8)])
      filtered = signal.sosfilt(
        signal.butter(4, band, 'bandpass', fs=_RATE, output='sos'), rng.standard_normal(length)
      )
      return filtered / np.abs(filtered).max()
    case 'clicks':
      period = int(_RATE * rng.uniform(0.03, 0.1))
      train = np.zeros(length)
      train[::period] = 1.0
      decay = np.exp(-np.arange(64) / 8) * rng.choice([-1, 1], 64)
      return signal.lfilter(decay, 1.0, train)
    case 'tremolo':
      return tone * (0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(8, 16) * time))
    case 'vibrato':
      rate, depth = rng.uniform(6, 12), rng.uniform(0.06, 0.12)
      swing = depth * frequency / rate * np.sin(2 * np.pi * rate * time)
      return np.sin(2 * np.pi * frequency * time + swing + phase)
    case _:
      base = rng.uniform(150, 400)
      partials = [np.sin(2 * np.pi * base * k * time) / k for k in range(1, 9)]
      return sum(partials) / 2
