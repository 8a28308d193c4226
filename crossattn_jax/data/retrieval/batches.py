"""The input pipeline of image-sentence retrieval: regions and words in batches, by Grain.

The stream of training examples is a function of the seed alone, as in `classification`. A training
example is an image with one of its captions, an evaluation example is an image with all of them.
"""

from collections.abc import Sequence
import dataclasses

import grain
import ml_collections
import numpy as np

from crossattn_jax.data import image_ops, pipeline
from crossattn_jax.data.retrieval import sources, word_features, word_pieces


def default_config() -> ml_collections.ConfigDict:
  """Returns `config.dataset`: precomputed region features in the layout of SCAN's files."""
  config = ml_collections.ConfigDict()
  # See `retrieval_sources.create_source`.
  config.name = sources.REGION_FILES
  # Folder of the files, or of TFDS datasets (TFDS's own default if None).
  config.data_dir = ml_collections.config_dict.placeholder(str)
  config.train_split = 'train'
  config.eval_split = 'dev'
  # Evaluation takes the first so many images of its split; all if None.
  config.eval_images = ml_collections.config_dict.placeholder(int)
  # Slots for the regions of an image, and channels of each.
  config.num_regions = 36
  config.region_dim = 2048
  # The vocab.txt of the text encoder. None: the data set's own vocabulary, where it has one.
  config.vocabulary = ml_collections.config_dict.placeholder(str)
  # Slots for the word pieces of a caption, [CLS] and [SEP] included.
  config.max_words = 32
  # Folder with features of the captions' words, for models without a text encoder; see
  # `word_features`. None: words are numbers of word pieces.
  config.word_files = ml_collections.config_dict.placeholder(str)
  # Channels of those features.
  config.word_dim = 768
  # Paths of the images that region files are of, with {} for the id, such as
  # '/coco/val2014/COCO_val2014_{:0>12}.jpg'. Only for pictures.
  config.image_files = ml_collections.config_dict.placeholder(str)
  pipeline.add_options(config)
  return config


def open_split(config: ml_collections.ConfigDict, split: str) -> sources.Source:
  """Opens a split of the data set that the config names.

  Raises:
    ValueError: a wrong value in the config, or a data set that cannot be opened.
  """
  _check(config)
  return sources.create_source(
    config.name,
    split,
    config.data_dir,
    region_dim=config.region_dim,
    image_files=config.image_files,
  )


def tokenizer(config: ml_collections.ConfigDict) -> word_pieces.WordPieces:
  """Makes word pieces of sentences, as `config.vocabulary` and `config.max_words` say.

  Raises:
    ValueError: there is no vocabulary.
  """
  if config.vocabulary is not None:
    vocabulary = word_pieces.read_vocabulary(config.vocabulary)
  else:
    vocabulary = sources.own_vocabulary(config.name)
  if vocabulary is None:
    raise ValueError(
      f'dataset {config.name!r} has no vocabulary of its own: set dataset.vocabulary, the '
      'vocab.txt of the text encoder'
    )
  return word_pieces.WordPieces(vocabulary, config.max_words)


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
    batch_size: global, over all processes, in pairs.
    seed: of the order.
    process_index: whose rows.
    process_count: number of processes, which divides `batch_size`.

  Returns:
    Batches of numpy arrays, b = batch_size / process_count:
      `regions`: float32 `[b, num_regions, region_dim]`, zeros in slots without a region.
      `region_mask`: bool `[b, num_regions]`, False there.
      `words`: numbers of word pieces, int32 `[b, max_words]`; or, with `config.word_files`, their
        features, float32 `[b, max_words, word_dim]`, zeros in slots without a word.
      `word_mask`: bool `[b, max_words]`, False after [SEP].
      `image`: number of the image in the split, int32 `[b]`.
      `epoch`: which pass over the captions this is, from 0, int32 `[b]`.
      `skipped`: int32 `[b]`, the number of unreadable images that this row stands in for.

  Raises:
    ValueError: a wrong value in the config, or a data set that cannot be opened.
  """
  rows = pipeline.rows_per_process(batch_size, process_index, process_count)
  return pipeline.iterate(train_examples(config, seed), config, rows, process_index, process_count)


def train_examples(config: ml_collections.ConfigDict, seed: int) -> grain.MapDataset:
  """Returns the endless stream of pairs that `train_dataset` batches; an epoch has all captions.

  Element i is computed when it is asked for, alone: `train_examples(config, seed)[i]`.

  Raises:
    ValueError: a wrong value in the config, or a data set that cannot be opened.
  """
  source = open_split(config, config.train_split)
  pairs = grain.MapDataset.range(len(source) * source.captions_per_image)
  if config.shuffle:
    pairs = pairs.shuffle(seed)
  return pairs.repeat().map_with_index(_TrainExample(source, config))


def eval_dataset(
  config: ml_collections.ConfigDict,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.IterDataset:
  """Returns one pass over the images of the evaluation split, in order, for one process.

  Args:
    config: see `default_config`.
    batch_size: global, over all processes, in images.
    process_index: whose rows.
    process_count: number of processes, which divides `batch_size`.

  Returns:
    Batches of numpy arrays as those of `train_dataset`, without `epoch`, and
      `words`, `word_mask`: of all captions, `[b, captions, max_words, ...]`.
      `mask`: bool `[b]`, False for padding and for unreadable images.
      `skipped`: int32 `[b]`, 1 for the latter.

  Raises:
    ValueError: a wrong value in the config, or a data set that cannot be opened.
  """
  rows = pipeline.rows_per_process(batch_size, process_index, process_count)
  source = open_split(config, config.eval_split)
  count = eval_images(config, source)
  padded = -(-count // batch_size) * batch_size
  examples = grain.MapDataset.range(padded).map(_EvalExample(source, config, count))
  return pipeline.iterate(examples, config, rows, process_index, process_count)


def eval_images(config: ml_collections.ConfigDict, source: sources.Source) -> int:
  """Number of images that evaluation takes of its split."""
  return len(source) if config.eval_images is None else min(config.eval_images, len(source))


def steps_per_epoch(config: ml_collections.ConfigDict, batch_size: int) -> int:
  """Number of whole global batches in an epoch of the training split, at least 1."""
  source = open_split(config, config.train_split)
  return max(1, len(source) * source.captions_per_image // batch_size)


@dataclasses.dataclass(frozen=True)
class _Decoded:
  """An image as batches have it, with all of its captions."""

  regions: np.ndarray
  region_mask: np.ndarray
  words: np.ndarray
  word_mask: np.ndarray


@dataclasses.dataclass
class _Decoder:
  """Makes arrays of examples of a split."""

  source: sources.Source
  config: ml_collections.ConfigDict
  split: str

  def __post_init__(self):
    config = self.config
    self._pieces = self._features = None
    if config.word_files is None:
      self._pieces = tokenizer(config)
    else:
      self._features = word_features.WordFeatures(
        config.word_files,
        self.split,
        captions=len(self.source) * self.source.captions_per_image,
        channels=config.word_dim,
        max_words=config.max_words,
      )

  def __call__(self, index: int) -> _Decoded | None:
    """Reads an example; None if that fails and `config.unreadable` is 'skip'."""
    config = self.config
    try:
      example = self.source[index]
      words, mask = self._words(index, example.captions)
    except image_ops.UnreadableImageError as error:
      message = f'unreadable image of dataset {config.name!r}, split {self.split!r}: {error}'
      pipeline.refuse_or_skip(message, error, config)
      return None
    count, channels = example.regions.shape
    if count > config.num_regions or channels != config.region_dim:
      raise ValueError(
        f'{example.key!r} of dataset {config.name!r}, split {self.split!r}, has {count} regions of '
        f'{channels} channels; set dataset.num_regions, now {config.num_regions}, and '
        f'dataset.region_dim, now {config.region_dim}'
      )
    return _Decoded(
      regions=np.pad(example.regions, ((0, config.num_regions - count), (0, 0))),
      region_mask=np.arange(config.num_regions) < count,
      words=words,
      word_mask=mask,
    )

  def _words(self, index: int, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Words of the captions of an image `[captions, max_words, ...]`, and their mask."""
    if self._pieces is not None:
      words, mask = zip(*map(self._pieces, captions), strict=True)
      return np.stack(words), np.stack(mask)
    words = np.zeros(self.words_shape, np.float32)
    mask = np.zeros(self.words_shape[:-1], bool)
    for caption in range(len(captions)):
      features = self._features[index * len(captions) + caption]
      words[caption, : len(features)] = features
      mask[caption, : len(features)] = True
    return words, mask

  @property
  def words_shape(self) -> tuple[int, ...]:
    """Of the words of an image's captions."""
    shape = (self.source.captions_per_image, self.config.max_words)
    return shape if self._features is None else (*shape, self.config.word_dim)


@dataclasses.dataclass
class _TrainExample:
  """Reads an image with one of its captions."""

  source: sources.Source
  config: ml_collections.ConfigDict

  def __post_init__(self):
    self._decode = _Decoder(self.source, self.config, self.config.train_split)
    self._cache: dict[int, tuple[_Decoded, int, int]] | None = {} if self.config.cache else None

  def __call__(self, position: int, pair: int) -> dict[str, np.ndarray]:
    captions = self.source.captions_per_image
    index, caption = divmod(pair, captions)
    if self._cache is None:
      decoded, image, skipped = self._read(index)
    else:
      if index not in self._cache:
        self._cache[index] = self._read(index)
      decoded, image, skipped = self._cache[index]
    return {
      'regions': decoded.regions,
      'region_mask': decoded.region_mask,
      'words': decoded.words[caption],
      'word_mask': decoded.word_mask[caption],
      'image': np.int32(image),
      'epoch': np.int32(position // (len(self.source) * captions)),
      'skipped': np.int32(skipped),
    }

  def _read(self, index: int) -> tuple[_Decoded, int, int]:
    """Returns the image at an index, or else the next readable one, and how many were not."""
    return pipeline.next_readable(
      range(len(self.source)),
      index,
      self._decode,
      f'images of {self.config.name!r}, split {self.config.train_split!r},',
    )


@dataclasses.dataclass
class _EvalExample:
  """Reads an image with all of its captions; from `count` on padding."""

  source: sources.Source
  config: ml_collections.ConfigDict
  count: int

  def __post_init__(self):
    self._decode = _Decoder(self.source, self.config, self.config.eval_split)

  def __call__(self, index: int) -> dict[str, np.ndarray]:
    decoded = self._decode(index) if index < self.count else None
    kept, config = decoded is not None, self.config
    if decoded is None:
      shape = self._decode.words_shape
      decoded = _Decoded(
        regions=np.zeros((config.num_regions, config.region_dim), np.float32),
        region_mask=np.ones(config.num_regions, bool),
        words=np.zeros(shape, np.int32 if config.word_files is None else np.float32),
        word_mask=np.ones(shape[:2], bool),
      )
    return {
      **vars(decoded),
      'image': np.int32(index),
      'mask': np.bool_(kept),
      'skipped': np.int32(not kept and index < self.count),
    }


def _check(config: ml_collections.ConfigDict) -> None:
  """Refuses wrong values, naming the key."""
  pipeline.check_options(config)
  require = pipeline.requirement(config)
  require(config.num_regions >= 1, 'num_regions', 'at least 1')
  require(config.region_dim >= 1, 'region_dim', 'at least 1')
  require(config.max_words >= 3, 'max_words', 'at least 3: [CLS], a piece, [SEP]')
  require(config.word_dim >= 1, 'word_dim', 'at least 1')
  if config.eval_images is not None:
    require(config.eval_images >= 1, 'eval_images', 'at least 1, or None for all')
