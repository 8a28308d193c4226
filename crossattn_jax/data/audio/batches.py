"""The input pipeline of audio classification: waveforms, log-mel spectrograms, batches, by Grain.

As in `data.classification`, the stream of training examples is a function of the seed alone, global
batch k holds positions k * batch_size ... of it whatever the number of processes, workers and
threads, and everything random about an example depends on (seed, position) only.
"""

import dataclasses
import math
import os
from typing import Any

import grain
import ml_collections
import numpy as np

from crossattn_jax.data import pipeline
from crossattn_jax.data.audio import sources as audio_sources
from crossattn_jax.data.audio import spectrogram


def default_config() -> ml_collections.ConfigDict:
  """Returns `config.dataset`: AudioSet with the front end and augmentation of AST."""
  config = ml_collections.ConfigDict()
  # 'wav_folder' or 'tones'.
  config.name = 'wav_folder'
  # The folder of .wav files and tables.
  config.data_dir = ml_collections.config_dict.placeholder(str)
  config.train_split = 'train'
  config.eval_split = 'eval'
  config.num_mel_bins = 128
  # Of 10 ms. Longer clips are cut, shorter ones padded.
  config.num_frames = 1024
  # Of the log-mel values; the model gets (x - mean) / (2 std).
  config.mean = spectrogram.MEAN
  config.std = spectrogram.STD
  # Draws training clips with probabilities proportional to the sum of 1 / count over their classes,
  # with replacement, instead of going through all of them.
  config.balanced = False
  pipeline.add_options(config)

  config.augmentation = ml_collections.ConfigDict()
  # Mixes a waveform and its labels with those of another clip, weight from Beta(alpha, alpha).
  config.augmentation.mixup = ml_collections.ConfigDict({'probability': 0.5, 'alpha': 10.0})
  # SpecAugment: masks one stripe of at most so many mel bins and one of frames; 0 is off.
  config.augmentation.mask_mel_bins = 48
  config.augmentation.mask_frames = 192
  return config


def train_dataset(
  config: ml_collections.ConfigDict,
  *,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.IterDataset:
  """Returns the endless training batches of one process.

  Args:
    config: see `default_config`.
    batch_size: global, over all processes.
    seed: of order and augmentation.
    process_index: whose rows.
    process_count: number of processes, which divides `batch_size`.

  Returns:
    Batches of numpy arrays, b = batch_size / process_count: `image` float32
    `[b, num_mel_bins, num_frames, 1]`, normalised; `label` float32 `[b, classes]`, 0 or 1, or
    between them where clips are mixed; `skipped` int32 `[b]`, the number of unreadable clips that
    this row stands in for. The iterator's `get_state` and `set_state` resume bit-exactly, for the
    same batch size and numbers of processes and workers.

  Raises:
    ValueError: a wrong value in the config, or a dataset that cannot be opened.
  """
  rows = pipeline.rows_per_process(batch_size, process_index, process_count)
  return pipeline.iterate(train_examples(config, seed), config, rows, process_index, process_count)


def train_examples(config: ml_collections.ConfigDict, seed: int) -> grain.MapDataset:
  """Returns the endless stream of augmented examples that `train_dataset` batches.

  Element i is computed when it is asked for, alone: `train_examples(config, seed)[i]`.

  Raises:
    ValueError: a wrong value in the config, or a dataset that cannot be opened.
  """
  _check(config)
  source = audio_sources.create_source(config.name, config.train_split, config.data_dir)
  order_seed, augmentation_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
  examples = grain.MapDataset.range(len(source))
  if config.balanced:
    examples = examples.repeat().random_map(_BalancedIndex(source), seed=order_seed)
  else:
    examples = (examples.shuffle(order_seed) if config.shuffle else examples).repeat()
  return examples.random_map(_TrainExample(source, config), seed=augmentation_seed)


def eval_dataset(
  config: ml_collections.ConfigDict,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.IterDataset:
  """Returns one pass over the evaluation split for one process, in the order of the split.

  Args:
    config: see `default_config`.
    batch_size: global, over all processes.
    process_index: whose rows.
    process_count: number of processes, which divides `batch_size`.

  Returns:
    ceil(N / batch_size) batches as those of `train_dataset`, and `mask`: bool `[b]`, False for
    padding and for unreadable clips (`skipped` is 1 for the latter).

  Raises:
    ValueError: a wrong value in the config, or a dataset that cannot be opened.
  """
  _check(config)
  rows = pipeline.rows_per_process(batch_size, process_index, process_count)
  source = _eval_source(config)
  num_batches = math.ceil(len(source) / batch_size)
  examples = grain.MapDataset.range(num_batches * batch_size).map(_EvalExample(source, config))
  return pipeline.iterate(examples, config, rows, process_index, process_count)


def class_names(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Names of the classes of the training split.

  Raises:
    ValueError: the dataset cannot be opened.
  """
  source = audio_sources.create_source(config.name, config.train_split, config.data_dir)
  return tuple(source.class_names)


def steps_per_epoch(config: ml_collections.ConfigDict, batch_size: int) -> int:
  """Number of whole global batches in an epoch of the training split, at least 1."""
  _check(config)
  source = audio_sources.create_source(config.name, config.train_split, config.data_dir)
  return max(1, len(source) // batch_size)


def read_audio(path: str | os.PathLike[str], config: ml_collections.ConfigDict) -> np.ndarray:
  """Reads a .wav file as evaluation would: normalised `[num_mel_bins, num_frames, 1]`.

  Raises:
    ValueError: the file is no readable .wav file.
  """
  with open(path, 'rb') as file:
    data = file.read()
  try:
    return _image(_log_mel(audio_sources.decode(data), config), config)
  except audio_sources.UnreadableAudioError as error:
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


@dataclasses.dataclass
class _BalancedIndex:
  """Draws a clip, rare classes as often as common ones, whatever the element."""

  source: audio_sources.Source

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


@dataclasses.dataclass
class _TrainExample:
  """Reads, mixes, transforms and masks one training clip."""

  source: audio_sources.Source
  config: ml_collections.ConfigDict

  def __post_init__(self):
    self._cache: dict[int, tuple[np.ndarray, np.ndarray, int]] | None = (
      {} if self.config.cache else None
    )
    # Reading a ConfigDict costs time: plain values are read once.
    options = self.config.augmentation
    self._probability, self._alpha = options.mixup.probability, options.mixup.alpha
    self._masks = options.mask_frames, options.mask_mel_bins

  def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    waveform, label, skipped = self._cached(index)
    if rng.random() < self._probability:
      other, other_label, other_skipped = self._cached(int(rng.integers(len(self.source))))
      weight = np.float32(rng.beta(self._alpha, self._alpha))
      waveform = mix_waveforms(waveform, other, weight)
      label = weight * label + (1 - weight) * other_label
      skipped += other_skipped
    frames = spectrogram.fit(_log_mel(waveform, self.config), self.config.num_frames)
    for axis, most in enumerate(self._masks):
      frames = mask_stripe(frames, axis, most, rng)
    return {
      'image': _image(frames, self.config),
      'label': label,
      'skipped': np.int32(skipped),
    }

  def _cached(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
    if self._cache is None:
      return self._read(index)
    if index not in self._cache:
      self._cache[index] = self._read(index)
    return self._cache[index]

  def _read(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the clip at an index, or else the next readable one, and how many were not."""
    config = self.config
    described = f'clips of {config.name!r}, split {config.train_split!r},'
    waveform, example, skipped = pipeline.next_readable(
      self.source, index, lambda x: _decode(x, config, config.train_split), described
    )
    return waveform, _multi_hot(example['labels'], self.source), skipped


@dataclasses.dataclass
class _EvalExample:
  """Reads and transforms one evaluation clip; indices beyond the last are padding."""

  source: audio_sources.Source
  config: ml_collections.ConfigDict

  def __call__(self, index: int) -> dict[str, np.ndarray]:
    config = self.config
    labels, waveform = (), None
    if index < len(self.source):
      example = self.source[index]
      labels = example['labels']
      waveform = _decode(example, config, config.eval_split)
    if waveform is None:
      image = np.zeros((config.num_mel_bins, config.num_frames, 1), np.float32)
    else:
      image = _image(_log_mel(waveform, config), config)
    return {
      'image': image,
      'label': _multi_hot(labels, self.source),
      'mask': np.bool_(waveform is not None),
      'skipped': np.int32(waveform is None and index < len(self.source)),
    }


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


def _multi_hot(labels: tuple[int, ...], source: audio_sources.Source) -> np.ndarray:
  label = np.zeros(len(source.class_names), np.float32)
  label[list(labels)] = 1
  return label


def _decode(
  example: audio_sources.Example, config: ml_collections.ConfigDict, split: str
) -> np.ndarray | None:
  """Decodes a clip; None if it cannot be read and `config.unreadable` is 'skip'."""
  try:
    return audio_sources.decode(example['audio'])
  except audio_sources.UnreadableAudioError as error:
    message = (
      f'unreadable clip {example["key"]!r} of dataset {config.name!r}, split {split!r}: {error}'
    )
    pipeline.refuse_or_skip(message, error, config)
    return None


def _eval_source(config: ml_collections.ConfigDict) -> audio_sources.Source:
  names = None
  if config.name == audio_sources.WAV_FOLDER:
    # Classes are numbered by name: without those of the training split a missing one would shift.
    names = class_names(config)
  return audio_sources.create_source(
    config.name, config.eval_split, config.data_dir, class_names=names
  )


def _check(config: ml_collections.ConfigDict) -> None:
  """Refuses wrong values, naming the key."""
  options = config.augmentation

  pipeline.check_options(config)
  require = pipeline.requirement(config)
  require(config.num_mel_bins >= 1, 'num_mel_bins', 'at least 1')
  require(config.num_frames >= 1, 'num_frames', 'at least 1')
  require(config.std > 0, 'std', 'positive')
  require(0 <= options.mixup.probability <= 1, 'augmentation.mixup.probability', 'a probability')
  require(options.mixup.alpha > 0, 'augmentation.mixup.alpha', 'positive')
  require(options.mask_mel_bins >= 0, 'augmentation.mask_mel_bins', 'at least 0')
  require(options.mask_frames >= 0, 'augmentation.mask_frames', 'at least 0')
