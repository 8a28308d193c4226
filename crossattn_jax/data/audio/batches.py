"""The input pipeline of audio classification: waveforms, log-mel spectrograms, batches."""

import dataclasses
import os
from typing import Any

import grain
import ml_collections
import numpy as np

from crossattn_jax.data import pipeline
from crossattn_jax.data.audio import sources, spectrogram


def default_config() -> ml_collections.ConfigDict:
  """Returns `config.dataset`: AudioSet with the front end and augmentation of AST."""
  config = ml_collections.ConfigDict()
  # 'wav_folder' or 'tones'.
  config.name = 'wav_folder'
  # The folder of .wav files and tables.
  config.data_dir = ml_collections.config_dict.placeholder(str)
  # Clips that are trained on. None: as the tables are called.
  config.train_split = ml_collections.config_dict.FieldReference('train')
  # Clips that are evaluated. None: as the tables are called; a tenth of the training clips is held
  # out where there is no such table.
  config.eval_split = ml_collections.config_dict.FieldReference('eval')
  # Names of the classes in the order of the labels: those of the data set, filled in at the start,
  # so that a run keeps them. A table is mapped to them by name.
  config.class_names = ()
  # Frequency bands of a spectrogram.
  config.num_mel_bins = 128
  # Frames of a spectrogram, of 10 ms. Longer clips are cut, shorter ones padded.
  config.num_frames = 1024
  # Of the log-mel values x; the model gets (x - mean) / (2 std).
  config.mean = spectrogram.MEAN
  # Their standard deviation, likewise.
  config.std = spectrogram.STD
  # Draws training clips with probabilities proportional to the sum of 1 / count over their classes,
  # with replacement, instead of going through all of them.
  config.balanced = False
  pipeline.add_options(config)

  config.augmentation = ml_collections.ConfigDict()
  # Mixes a waveform and its labels with those of another clip, weight from Beta(alpha, alpha).
  config.augmentation.mixup = ml_collections.ConfigDict({'probability': 0.5, 'alpha': 10.0})
  # SpecAugment: masks one stripe of at most so many mel bins; 0 is off.
  config.augmentation.mask_mel_bins = 48
  # The same of frames.
  config.augmentation.mask_frames = 192
  return config


def read_audio(path: str | os.PathLike[str], config: ml_collections.ConfigDict) -> np.ndarray:
  """Reads a .wav file as evaluation would: normalised `[num_mel_bins, num_frames, 1]`.

  Raises:
    ValueError: the file is no readable .wav file.
  """
  with open(path, 'rb') as file:
    data = file.read()
  try:
    return _image(_log_mel(sources.decode(data), config), config)
  except pipeline.UnreadableError as error:
    raise ValueError(f'cannot read audio {os.fspath(path)!r}: {error}') from error


def describe_preprocessing(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What `read_audio` does, as JSON can hold it, for programs without this library."""
  return {
    'sample_rate': spectrogram.SAMPLE_RATE,
    'num_mel_bins': config.num_mel_bins,
    'num_frames': config.num_frames,
    'mean': config.mean,
    'std': config.std,
    'layout': 'mel, time, channel',
    'dtype': 'float32',
  }


class Examples(pipeline.Examples):
  """The clips of a split.

  Rows of batches are `image`, float32 `[num_mel_bins, num_frames, 1]`, normalised, and `label`,
  float32 `[classes]`: 0 or 1, or between them where clips are mixed.
  """

  kind = 'clip'

  def __init__(self, config: ml_collections.ConfigDict, split: str):
    super().__init__(config, split)
    # Reading a ConfigDict costs time: plain values are read once.
    options = config.augmentation
    self._probability, self._alpha = options.mixup.probability, options.mixup.alpha
    self._masks = options.mask_frames, options.mask_mel_bins

  @staticmethod
  def check(config: ml_collections.ConfigDict) -> None:
    """Refuses wrong values, naming the key."""
    require = pipeline.requirement(config)
    require(config.num_mel_bins >= 1, 'num_mel_bins', 'at least 1')
    require(config.num_frames >= 1, 'num_frames', 'at least 1')
    require(config.std > 0, 'std', 'positive')
    mixup = config.augmentation.mixup
    require(0 <= mixup.probability <= 1, 'augmentation.mixup.probability', 'a probability')
    require(mixup.alpha > 0, 'augmentation.mixup.alpha', 'positive')
    require(config.augmentation.mask_mel_bins >= 0, 'augmentation.mask_mel_bins', 'at least 0')
    require(config.augmentation.mask_frames >= 0, 'augmentation.mask_frames', 'at least 0')

  @staticmethod
  def open_source(config: ml_collections.ConfigDict, split: str) -> sources.Source:
    """Opens a split, whose labels count through the config's classes, or the training split's."""
    names = config.class_names or None
    if names is None and config.name == sources.WAV_FOLDER and split != config.train_split:
      # Classes are numbered by name: without those of the training split a missing one would shift.
      names = Examples.open_source(config, config.train_split).class_names
    return sources.create_source(config.name, split, config.data_dir, class_names=names)

  def indices(self, seed: int, batch_size: int) -> grain.MapDataset:
    """The endless stream of indices: of all clips in turn, or balanced over the classes."""
    if not self.config.balanced:
      return super().indices(seed, batch_size)
    clips = grain.MapDataset.range(len(self.source)).repeat()
    return clips.random_map(_BalancedIndex(self.source), seed=seed)

  def decode(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """The waveform and its classes, `[classes]` of 0 and 1."""
    example = self.source[index]
    label = np.zeros(len(self.source.class_names), np.float32)
    label[list(example['labels'])] = 1
    return sources.decode(example['audio']), label

  def train_example(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Mixes, transforms and masks a clip."""
    (waveform, label), _, skipped = self.next_readable(index)
    if rng.random() < self._probability:
      other_index = int(rng.integers(len(self.source)))
      (other, other_label), _, other_skipped = self.next_readable(other_index)
      weight = np.float32(rng.beta(self._alpha, self._alpha))
      waveform = mix_waveforms(waveform, other, weight)
      label = weight * label + (1 - weight) * other_label
      skipped += other_skipped
    frames = spectrogram.fit(_log_mel(waveform, self.config), self.config.num_frames)
    for axis, most in enumerate(self._masks):
      frames = mask_stripe(frames, axis, most, rng)
    return {'image': _image(frames, self.config), 'label': label, 'skipped': np.int32(skipped)}

  def eval_example(
    self, decoded: tuple[np.ndarray, np.ndarray] | None, index: int, bucket: None
  ) -> dict[str, np.ndarray]:
    """Transforms a clip."""
    config = self.config
    if decoded is None:
      image = np.zeros((config.num_mel_bins, config.num_frames, 1), np.float32)
      return {'image': image, 'label': np.zeros(len(self.source.class_names), np.float32)}
    waveform, label = decoded
    return {'image': _image(_log_mel(waveform, config), config), 'label': label}


@dataclasses.dataclass
class _BalancedIndex:
  """Draws a clip, rare classes as often as common ones, whatever the element."""

  source: sources.Source

  def __post_init__(self):
    labels = [self.source.labels(index) for index in range(len(self.source))]
    counts = np.bincount(
      [label for each in labels for label in each], minlength=len(self.source.class_names)
    )
    weights = [sum(1 / counts[label] for label in each) for each in labels]
    self._ends = np.cumsum(weights) / np.sum(weights)

  def __call__(self, index: int, rng: np.random.Generator) -> int:
    del index
    return min(int(np.searchsorted(self._ends, rng.random(), 'right')), len(self._ends) - 1)


def mix_waveforms(waveform: np.ndarray, other: np.ndarray, weight: float) -> np.ndarray:
  """`weight` of a waveform and the rest of another, which is cut or padded to its length.

  Both lose their mean first.
  """
  length = len(waveform)
  other = other[:length] - other.mean()
  other = np.pad(other, (0, length - len(other)))
  return weight * (waveform - waveform.mean()) + (1 - weight) * other


def mask_stripe(frames: np.ndarray, axis: int, most: int, rng: np.random.Generator) -> np.ndarray:
  """Sets a stripe of log-mel values to 0, as padding has it (SpecAugment, arXiv 1904.08779).

  Args:
    frames: `[frames, bins]`.
    axis: along which the stripe extends over a few.
    most: the stripe's width is drawn from 0 ... `most`, and its place uniformly.
    rng: draws both.
  """
  width = min(int(rng.integers(most + 1)), frames.shape[axis])
  start = int(rng.integers(frames.shape[axis] - width + 1))
  masked = frames.copy()
  masked[(slice(None),) * axis + (slice(start, start + width),)] = 0
  return masked


def _log_mel(waveform: np.ndarray, config: ml_collections.ConfigDict) -> np.ndarray:
  shortest = spectrogram.num_samples(1)
  waveform = np.pad(waveform, (0, max(0, shortest - len(waveform))))
  # Frames that would be cut need not be computed.
  waveform = waveform[: spectrogram.num_samples(config.num_frames)]
  return spectrogram.log_mel(waveform, config.num_mel_bins)


def _image(frames: np.ndarray, config: ml_collections.ConfigDict) -> np.ndarray:
  frames = spectrogram.fit(frames, config.num_frames)
  image = spectrogram.normalize(frames, config.mean, config.std)
  return np.ascontiguousarray(image[..., None])
