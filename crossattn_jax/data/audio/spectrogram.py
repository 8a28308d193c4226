"""Log-mel spectrograms: Kaldi's filter bank as AST uses it (Gong et al. 2021, arXiv 2104.01778).

Kaldi itself and its bindings refuse 128 mel bins at 16 kHz, since the narrowest filter then lies
between two frequencies, and librosa's filters have slopes that are linear in hertz, not in mel.
What is left is a few lines of numpy.
"""

import functools

import numpy as np
from scipy import fft, sparse

SAMPLE_RATE = 16_000
# Of AudioSet's log-mel values.
MEAN = -4.2677393
STD = 4.5689974

_FRAME = 400  # samples, 25 ms
_HOP = 160  # samples, 10 ms
_FFT = 512
_PRE_EMPHASIS = 0.97
_FREQUENCIES = (20.0, SAMPLE_RATE / 2)
_FLOOR = 2.0**-23  # of the energies


def num_frames(num_samples: int) -> int:
  """How many whole frames there are in a waveform."""
  return max(0, 1 + (num_samples - _FRAME) // _HOP)


def num_samples(frames: int) -> int:
  """The shortest waveform that has so many frames."""
  return (frames - 1) * _HOP + _FRAME


def log_mel(waveform: np.ndarray, num_mel_bins: int = 128) -> np.ndarray:
  """Log of the energies in triangular mel bands, of frames of 25 ms every 10 ms.

  Args:
    waveform: mono, 16 kHz, `[samples]`, float32 or float64, full scale 1.
    num_mel_bins: bands between 20 Hz and 8 kHz, evenly spaced in mel.

  Returns:
    `[frames, num_mel_bins]` in the waveform's dtype.

  Raises:
    ValueError: the waveform is shorter than one frame.
  """
  if not num_frames(len(waveform)):
    raise ValueError(f'a waveform of {len(waveform)} samples has no whole frame of {_FRAME}')
  dtype = waveform.dtype
  frames = np.lib.stride_tricks.sliding_window_view(waveform, _FRAME)[::_HOP]
  # What the mean of the clip does is undone here.
  frames = frames - frames.mean(axis=1, keepdims=True)
  before = dtype.type(_PRE_EMPHASIS) * frames
  frames[:, 1:] -= before[:, :-1]
  frames[:, :1] -= before[:, :1]
  frames *= np.hanning(_FRAME).astype(dtype)
  spectrum = fft.rfft(frames, _FFT)[:, : _FFT // 2]
  power = spectrum.real**2 + spectrum.imag**2  # The absolute value takes a square root.
  energies = _mel_bank(num_mel_bins, dtype) @ power.T
  return np.log(np.maximum(energies, dtype.type(_FLOOR))).T


def _mel(frequency: np.ndarray | float) -> np.ndarray | float:
  return 1127 * np.log(1 + np.asarray(frequency) / 700)


@functools.cache
def _mel_bank(num_mel_bins: int, dtype: np.dtype) -> sparse.csr_array:
  """Triangles `[num_mel_bins, frequencies]`, their slopes linear in mel.

  A frequency is in two of them. A product of dense matrices takes longer, and threads of its own.
  """
  edges = np.linspace(*map(_mel, _FREQUENCIES), num_mel_bins + 2)
  mel = _mel(np.arange(_FFT // 2) * (SAMPLE_RATE / _FFT))[:, None]
  low, center, high = edges[:-2], edges[1:-1], edges[2:]
  rising, falling = (mel - low) / (center - low), (high - mel) / (high - center)
  return sparse.csr_array(np.maximum(np.minimum(rising, falling), 0).T.astype(dtype))


def decibels(image: np.ndarray, mean: float = MEAN, std: float = STD) -> np.ndarray:
  """The energies that `normalize` made values of, in decibels."""
  return (image * (2 * std) + mean) * (10 / np.log(10))


def position(frequency: float, num_mel_bins: int) -> float:
  """Where a frequency in hertz lies on an axis on which bin k reaches from k to k + 1."""
  low, high = map(_mel, _FREQUENCIES)
  return float((_mel(frequency) - low) / (high - low) * (num_mel_bins + 1) - 0.5)


def fit(frames: np.ndarray, length: int) -> np.ndarray:
  """Cuts `[frames, bins]` to so many frames, or appends zeros."""
  return np.pad(frames[:length], ((0, max(0, length - len(frames))), (0, 0)))


def normalize(frames: np.ndarray, mean: float = MEAN, std: float = STD) -> np.ndarray:
  """Turns log-mel `[frames, bins]` into the model's `[bins, frames]`, (x - mean) / (2 std)."""
  dtype = frames.dtype.type
  return ((frames - dtype(mean)) / dtype(2 * std)).T
