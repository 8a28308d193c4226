"""Classifies .wav files with the exported model in this folder: python load_and_run.py FILE...

Needs nothing but `pip install jax flatbuffers safetensors scipy`,
or `onnxruntime scipy` for an ONNX program.
"""

import math
import pathlib
import sys

from loading import load
import numpy as np
from scipy import signal
from scipy.io import wavfile


def read(path, sample_rate):
  """Returns a .wav file as mono float32 samples in [-1, 1]."""
  rate, samples = wavfile.read(path)
  if samples.dtype == np.uint8:
    samples = (samples.astype(np.float32) - 128) / 128
  elif samples.dtype.kind == 'i':
    samples = samples.astype(np.float32) / -np.float32(np.iinfo(samples.dtype).min)
  samples = samples.astype(np.float32)
  if samples.ndim == 2:
    samples = samples.mean(axis=1)
  if rate != sample_rate:
    common = math.gcd(rate, sample_rate)
    samples = signal.resample_poly(samples, sample_rate // common, rate // common)
  return samples.astype(np.float32)


def preprocess(path, steps):
  """Returns the normalised log-mel spectrogram, float32 [mel bins, frames, 1]."""
  rate, bins, length = steps['sample_rate'], steps['num_mel_bins'], steps['num_frames']
  samples = read(path, rate)
  samples = np.pad(samples, (0, max(0, 400 - len(samples))))
  frames = np.lib.stride_tricks.sliding_window_view(samples, 400)[::160][:length]
  frames = frames - frames.mean(axis=1, keepdims=True)
  before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
  frames = (frames - np.float32(0.97) * before) * np.hanning(400).astype(np.float32)
  power = np.abs(np.fft.rfft(frames, 512)[:, :256]) ** 2
  edges = np.linspace(*(1127 * np.log(1 + f / 700) for f in (20, rate / 2)), bins + 2)
  mel = 1127 * np.log(1 + np.arange(256) * (rate / 512) / 700)[:, None]
  low, center, high = edges[:-2], edges[1:-1], edges[2:]
  bank = np.maximum(np.minimum((mel - low) / (center - low), (high - mel) / (high - center)), 0)
  values = np.log(np.maximum(power @ bank.astype(np.float32), np.float32(2.0**-23)))
  values = np.pad(values, ((0, length - len(values)), (0, 0)))
  values = (values - np.float32(steps['mean'])) / np.float32(2 * steps['std'])
  return values.T[..., None]


def main(paths):
  """Prints the five best classes of each clip."""
  spec, model = load(pathlib.Path(__file__).parent)
  images = np.stack([preprocess(path, spec['preprocessing']) for path in paths])
  scores = np.exp(-np.logaddexp(0, -np.asarray(model({'image': images})['logits'])))
  for path, row in zip(paths, scores, strict=True):
    best = np.argsort(-row)[:5]
    print(path, *(f'{spec["classes"][index]} {row[index]:.1%}' for index in best), sep='  ')


if __name__ == '__main__':
  if len(sys.argv) < 2:
    sys.exit(__doc__)
  main(sys.argv[1:])
