"""The input pipeline of image-sentence retrieval: regions and words in batches."""

from collections.abc import Sequence
import dataclasses

import grain
import ml_collections
import numpy as np

from crossattn_jax.data import pipeline
from crossattn_jax.data.retrieval import folder, sources, word_features, word_pieces


def default_config() -> ml_collections.ConfigDict:
  """Returns `config.dataset`: precomputed region features in the layout of SCAN's files."""
  config = ml_collections.ConfigDict()
  # 'caption_folder', images and sentences of one's own; 'region_files', features of regions as SCAN
  # distributes them; or 'shape_scenes', which is made.
  config.name = sources.REGION_FILES
  # Folder of the files, or of TFDS datasets (TFDS's own default if None).
  config.data_dir = ml_collections.config_dict.placeholder(str)
  # Images that are trained on: the name of the table, how the names of the files begin, or a split
  # of TFDS.
  config.train_split = 'train'
  # Images that are evaluated, likewise.
  config.eval_split = 'dev'
  # Evaluation takes the first so many images of its split; all if None.
  config.eval_images = ml_collections.config_dict.placeholder(int)
  # Captions of each image; None: as many as the data set has.
  config.captions_per_image = ml_collections.config_dict.placeholder(int)
  # Slots for the regions of an image.
  config.num_regions = 36
  # Channels of each region.
  config.region_dim = 2048
  # The vocab.txt of the text encoder. None: the data set's own vocabulary, where it has one, as
  # folders of images with a vocab.txt do.
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


def tokenizer(config: ml_collections.ConfigDict) -> word_pieces.WordPieces:
  """Makes word pieces of sentences, as `config.vocabulary` and `config.max_words` say.

  Raises:
    ValueError: there is no vocabulary.
  """
  if config.vocabulary is not None:
    vocabulary = word_pieces.read_vocabulary(config.vocabulary)
  else:
    vocabulary = sources.own_vocabulary(config.name, config.data_dir)
  if vocabulary is None:
    raise ValueError(
      f'dataset {config.name!r} has no vocabulary of its own: set dataset.vocabulary, the '
      f'vocab.txt of the text encoder{_own_words(config)}'
    )
  return word_pieces.WordPieces(vocabulary, config.max_words)


def _own_words(config: ml_collections.ConfigDict) -> str:
  if config.name != sources.FOLDER:
    return ''
  return (
    f', or write {config.data_dir}/{folder.VOCABULARY} with the words of your sentences: '
    f'python -m crossattn_jax.data.retrieval.folder {config.data_dir}'
  )


@dataclasses.dataclass(frozen=True)
class _Decoded:
  """An image as batches have it, with all of its captions."""

  regions: np.ndarray
  region_mask: np.ndarray
  words: np.ndarray
  word_mask: np.ndarray


class Examples(pipeline.Examples):
  """The images of a split and their captions.

  Rows of training batches are an image with one of its captions:
    `regions`: float32 `[num_regions, region_dim]`, zeros in slots without a region.
    `region_mask`: bool `[num_regions]`, False there.
    `words`: numbers of word pieces, int32 `[max_words]`; or, with `config.word_files`, their
      features, float32 `[max_words, word_dim]`, zeros in slots without a word.
    `word_mask`: bool `[max_words]`, False after [SEP].
    `image`: number of the image in the split, int32.
    `epoch`: which pass over the captions this is, from 0, int32.
  Those of evaluation are an image with all of its captions: `words` and `word_mask` are
  `[captions, max_words, ...]`, and there is no `epoch`.
  """

  kind = 'image'

  def __init__(self, config: ml_collections.ConfigDict, split: str):
    super().__init__(config, split)
    self._pieces = self._features = None
    if config.word_files is None:
      self._pieces = tokenizer(config)
    else:
      self._features = word_features.WordFeatures(
        config.word_files,
        split,
        captions=self.epoch_length,
        channels=config.word_dim,
        max_words=config.max_words,
      )

  @staticmethod
  def check(config: ml_collections.ConfigDict) -> None:
    """Refuses wrong values, naming the key."""
    require = pipeline.requirement(config)
    require(config.num_regions >= 1, 'num_regions', 'at least 1')
    require(config.region_dim >= 1, 'region_dim', 'at least 1')
    require(config.max_words >= 3, 'max_words', 'at least 3: [CLS], a piece, [SEP]')
    require(config.word_dim >= 1, 'word_dim', 'at least 1')
    if config.captions_per_image is not None:
      require(config.captions_per_image >= 1, 'captions_per_image', 'at least 1, or None')
    if config.eval_images is not None:
      require(config.eval_images >= 1, 'eval_images', 'at least 1, or None for all')

  @staticmethod
  def open_source(config: ml_collections.ConfigDict, split: str) -> sources.Source:
    """Opens a split."""
    return sources.create_source(
      config.name,
      split,
      config.data_dir,
      region_dim=config.region_dim,
      image_files=config.image_files,
      captions_per_image=config.captions_per_image,
    )

  def describe(self, index: int) -> str:
    """The reason names the image."""
    return self.kind

  @property
  def epoch_length(self) -> int:
    """Captions of the split."""
    return len(self.source) * self.source.captions_per_image

  def buckets(self) -> list[None]:
    """Of the images that evaluation takes."""
    return super().buckets()[: self.config.eval_images]

  def decode(self, index: int) -> _Decoded:
    """An image and all of its captions."""
    config, example = self.config, self.source[index]
    words, mask = self._words(index, example.captions)
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
    words = np.zeros(self._words_shape, np.float32)
    mask = np.zeros(self._words_shape[:-1], bool)
    for caption in range(len(captions)):
      features = self._features[index * len(captions) + caption]
      words[caption, : len(features)] = features
      mask[caption, : len(features)] = True
    return words, mask

  @property
  def _words_shape(self) -> tuple[int, ...]:
    """Of the words of an image's captions."""
    shape = (self.source.captions_per_image, self.config.max_words)
    return shape if self._features is None else (*shape, self.config.word_dim)

  def train_stream(self, seed: int, batch_size: int = 1) -> grain.MapDataset:
    """See `pipeline.Examples`; of examples nothing is random, and they say which epoch it is."""
    return self.indices(seed, batch_size).map_with_index(self._pair)

  def _pair(self, position: int, pair: int) -> dict[str, np.ndarray]:
    return self.train_example(pair) | {'epoch': np.int32(position // self.epoch_length)}

  def train_example(
    self, index: int, rng: np.random.Generator | None = None
  ) -> dict[str, np.ndarray]:
    """An image with one of its captions, of which `index` is the number in the split."""
    index, caption = divmod(index, self.source.captions_per_image)
    decoded, image, skipped = self.next_readable(index)
    return {
      'regions': decoded.regions,
      'region_mask': decoded.region_mask,
      'words': decoded.words[caption],
      'word_mask': decoded.word_mask[caption],
      'image': np.int32(image),
      'skipped': np.int32(skipped),
    }

  def eval_example(
    self, decoded: _Decoded | None, index: int, bucket: None
  ) -> dict[str, np.ndarray]:
    """An image with all of its captions."""
    config = self.config
    if decoded is None:
      shape = self._words_shape
      decoded = _Decoded(
        regions=np.zeros((config.num_regions, config.region_dim), np.float32),
        region_mask=np.ones(config.num_regions, bool),
        words=np.zeros(shape, np.int32 if config.word_files is None else np.float32),
        word_mask=np.ones(shape[:2], bool),
      )
    return {**vars(decoded), 'image': np.int32(index)}
