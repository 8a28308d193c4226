"""MMCA, the scores of image-sentence pairs: the self- and the cross-attention module."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.attention import joint_attention
from crossattn_jax.layers import linear, module, similarity
from crossattn_jax.models import bert, registry
from crossattn_jax.models.mmca.embeddings import GRU, PhraseCNN, masked_mean
from crossattn_jax.models.parts import checks
from crossattn_jax.models.parts.types import Features

CROSS_INPUTS = ('projected', 'self')
IMAGE_BRANCHES = ('attention', 'cnn', 'gru', 'linear')
TEXT_BRANCHES = ('cnn', 'gru', 'attention', 'mean')


class MMCA(module.Module):
  """Scores how well sentences describe images.

  Attributes:
    region_dim: channels of the region features.
    num_regions: of an image as the recipe has it; any other number does.
    word_dim: channels of the word features, and of the text encoder.
    max_words: of a sentence as the recipe has it, [CLS] and [SEP] included; any other number does.
    width: of embeddings, and of regions and words in the attentions.
    num_heads: of the attentions.
    mlp_dim: hidden width of the MLPs.
    image_branch: how the self-attention module embeds the regions of an image. 'attention': by
      the mean after transformer units. For comparison SAEM also has 'cnn', a `PhraseCNN` of the
      features; 'gru', the mean of the states of a bidirectional GRU that reads the features; and
      'linear', the mean of their linear map.
    image_units: transformer units in which the regions of an image attend to each other; for words
      the text encoder did so.
    region_conv_channels: of the windows of the image branch 'cnn', per size.
    text_branch: how the self-attention module embeds the words of a sentence. 'cnn': by a
      `PhraseCNN`. For comparison SAEM also has 'gru', a linear map of the mean of the states of a
      GRU; 'attention', the mean after a linear map and a transformer unit; and 'mean', a linear map
      of their mean.
    gru_dim: width of the states of the text branch 'gru'.
    cross_attention: whether there is the cross-attention module. Without, this is SAEM.
    cross_units: its transformer units.
    cross_input: which regions it takes: 'projected', or 'self', those that have attended to each
      other.
    kernel_sizes: words per phrase, and regions per window.
    conv_channels: of the phrases of the self-attention module, per size.
    cross_conv_channels: of those of the cross-attention module.
    mask_padding: whether padding after a sentence takes no part. SAEM lets it.
    alpha: weight of the cross-attention module's similarity.
    drop_rate: of all dropouts.
    text_layers: of a BERT inside, which then makes word features of ids; 0 for none.
    vocab_size: of BERT.
    text_heads: of BERT.
    text_mlp_dim: of BERT.
    max_positions: of BERT.
    freeze_text_encoder: whether BERT gets no gradient and never drops. It then has its pooler,
      which nothing uses, so that checkpoints are kept whole.
    dtype: of the computation, None for the inputs' and parameters' common type. Embeddings and
      scores are in at least float32.
  """

  region_dim: int = 2048
  num_regions: int = 36
  word_dim: int = 768
  max_words: int = 32
  width: int = 256
  num_heads: int = 16
  mlp_dim: int = 2048
  image_branch: Literal['attention', 'cnn', 'gru', 'linear'] = 'attention'
  image_units: int = 1
  region_conv_channels: int = 256
  text_branch: Literal['cnn', 'gru', 'attention', 'mean'] = 'cnn'
  gru_dim: int = 1024
  cross_attention: bool = True
  cross_units: int = 1
  cross_input: Literal['projected', 'self'] = 'projected'
  kernel_sizes: tuple[int, ...] = (1, 2, 3)
  conv_channels: int = 512
  cross_conv_channels: int = 512
  mask_padding: bool = True
  alpha: float = 1.0
  drop_rate: float = 0.1
  text_layers: int = 0
  vocab_size: int = 30_522
  text_heads: int = 12
  text_mlp_dim: int = 3072
  max_positions: int = 512
  freeze_text_encoder: bool = True

  def __post_init__(self):
    checks.check_choices(
      self, cross_input=CROSS_INPUTS, image_branch=IMAGE_BRANCHES, text_branch=TEXT_BRANCHES
    )
    if self.image_branch == 'attention' and self.image_units < 1:
      raise ValueError(
        f"image_units={self.image_units}: the image branch 'attention' has at least one; "
        "image_branch='linear' has none"
      )
    if self.cross_attention and self.image_branch == 'cnn' and self.cross_input == 'self':
      raise ValueError(
        "image_branch='cnn' embeds an image as a whole and leaves nothing of its regions: set "
        "cross_input='projected'"
      )
    if self.cross_attention and self.cross_units < 1:
      raise ValueError(
        f'cross_units={self.cross_units}: the cross-attention module has at least one; without it, '
        'set cross_attention=False'
      )
    super().__post_init__()

  def setup(self):
    """Creates the parts."""

    def projection() -> linear.Dense:
      return linear.Dense(self.width, **linear.TORCH, **self.types)

    def units(count: int) -> list[joint_attention.PostNormUnit]:
      arguments = (self.width, self.num_heads, self.mlp_dim, self.drop_rate)
      return [joint_attention.PostNormUnit(*arguments, **self.types) for _ in range(count)]

    def phrase_cnn(channels: int, drop_rate: float) -> PhraseCNN:
      return PhraseCNN(self.width, self.kernel_sizes, channels, drop_rate, **self.types)

    if self.text_layers:
      self.bert = bert.Bert(
        vocab_size=self.vocab_size,
        width=self.word_dim,
        num_layers=self.text_layers,
        num_heads=self.text_heads,
        mlp_dim=self.text_mlp_dim,
        max_positions=self.max_positions,
        pooler=self.freeze_text_encoder,
        drop_rate=self.drop_rate,
        **self.types,
      )
    if self._projects_regions:
      self.region_projection = projection()
    if self.image_branch == 'attention':
      self.image_unit = units(self.image_units)
    elif self.image_branch == 'cnn':
      # SAEM's drops words only.
      self.image_cnn = phrase_cnn(self.region_conv_channels, 0.0)
    elif self.image_branch == 'gru':
      self.image_gru = GRU(self.width, bidirectional=True, **self.types)
    if self.text_branch == 'cnn':
      self.text_cnn = phrase_cnn(self.conv_channels, self.drop_rate)
    else:
      self.text_projection = projection()
      self.text_drop = nn.Dropout(self.drop_rate)
      if self.text_branch == 'gru':
        self.text_gru = GRU(self.gru_dim, **self.types)
      elif self.text_branch == 'attention':
        self.text_unit = units(1)
    if self.cross_attention:
      self.word_projection = projection()
      self.cross_unit = units(self.cross_units)
      self.cross_cnn = phrase_cnn(self.cross_conv_channels, self.drop_rate)

  @property
  def _projects_regions(self) -> bool:
    return self.cross_attention or self.image_branch in ('attention', 'linear')

  def encode_images(
    self, regions: jax.Array, region_mask: jax.Array | None = None, train: bool = False
  ) -> Features:
    """Embeds images alone.

    Args:
      regions: features `[images, regions, region_dim]`, not normalised.
      region_mask: bool `[images, regions]`, False for padding, which comes last; None where there
        is none.
      train: whether it drops.

    Returns:
      'embedding': of length one, `[images, width]`.
      'candidates': the regions that the cross-attention module takes, `[images, regions, width]`;
        where there is one.
      'mask': `region_mask` or True, `[images, regions]`.

    Raises:
      ValueError: shapes are not as above.
    """
    if regions.ndim != 3 or regions.shape[-1] != self.region_dim:
      raise ValueError(
        f'expected region features [images, regions, {self.region_dim}], not {regions.shape}; '
        'region_dim says how many channels they have'
      )
    mask = _checked_mask('region_mask', region_mask, regions.shape[:2])
    projected = None
    if self._projects_regions:
      projected = self.region_projection(regions)
      projected = parallel.constrain(projected, 'batch', 'tokens', 'channels')
    if self.image_branch == 'cnn':
      # Windows that are larger than an image reach beyond its regions.
      embedding = self.image_cnn(jnp.where(mask[..., None], regions, 0), mask, train)
      # As of a mean: an image without regions has none.
      embedding = jnp.where(mask.any(axis=-1, keepdims=True), embedding, 0)
      candidates = projected
    else:
      x = projected
      if self.image_branch == 'gru':
        x = self.image_gru(regions, mask)
      elif self.image_branch == 'attention':
        for unit in self.image_unit:
          x = unit(x, mask, train)
      embedding = similarity.l2_normalize(masked_mean(x, mask))
      candidates = projected if self.cross_input == 'projected' else x
    result = {'embedding': embedding, 'mask': mask}
    return result | ({'candidates': candidates} if self.cross_attention else {})

  def encode_texts(
    self, words: jax.Array, mask: jax.Array | None = None, train: bool = False
  ) -> Features:
    """Embeds sentences alone.

    Args:
      words: features `[texts, length, word_dim]`; or, where BERT is inside, the ids of word pieces,
        int `[texts, length]`.
      mask: bool `[texts, length]`, True for the words, which come first, [CLS] and [SEP] included;
        None where all are.
      train: whether it drops.

    Returns:
      'embedding': of length one, `[texts, width]`.
      'candidates': the words that the cross-attention module takes, `[texts, length, width]`;
        where there is one.
      'mask': which words take part, `[texts, length]`.

    Raises:
      ValueError: shapes or dtypes are not as above.
    """
    mask = _checked_mask('mask', mask, words.shape[:2])
    words = self.encode_words(words, mask, train)
    if not self.mask_padding:
      mask = jnp.ones_like(mask)
    result = {'embedding': self._embed_words(words, mask, train), 'mask': mask}
    return result | ({'candidates': self.word_projection(words)} if self.cross_attention else {})

  def _embed_words(self, words: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
    """Embeds sentences by the self-attention module: `[texts, width]` of length one."""
    if self.text_branch == 'cnn':
      return self.text_cnn(words, mask, train)
    if self.text_branch == 'attention':
      (unit,) = self.text_unit
      x = masked_mean(unit(self.text_projection(words), mask, train), mask)
    else:
      states = self.text_gru(words, mask) if self.text_branch == 'gru' else words
      mean = masked_mean(states, mask)
      x = self.text_projection(self.text_drop(mean, deterministic=not train))
    return similarity.l2_normalize(x)

  def encode_words(self, words: jax.Array, mask: jax.Array, train: bool = False) -> jax.Array:
    """Makes features of the ids of word pieces by BERT; features are returned as they are.

    Args:
      words: as `encode_texts` takes them.
      mask: bool `[texts, length]`, True for the words.
      train: whether it drops; a frozen BERT never does.

    Returns:
      `[texts, length, word_dim]`.

    Raises:
      ValueError: shapes or dtypes are not as above.
    """
    if jnp.issubdtype(words.dtype, jnp.integer) and self.text_layers:
      features, _ = self.bert(words, mask, train=train and not self.freeze_text_encoder)
      return jax.lax.stop_gradient(features) if self.freeze_text_encoder else features
    if words.ndim != 3 or words.shape[-1] != self.word_dim:
      raise ValueError(
        f'expected word features [texts, length, {self.word_dim}]'
        + (' or the ids of word pieces, int [texts, length]' if self.text_layers else '')
        + f', not {words.dtype} of shape {words.shape}; word_dim says how many channels they have, '
        "and 'mmca_bert_base' takes ids"
      )
    return words

  def score(
    self, images: Features, texts: Features, chunk: int | None = None, train: bool = False
  ) -> jax.Array:
    """Scores every sentence for every image.

    Args:
      images: as `encode_images` returns them.
      texts: as `encode_texts` returns them.
      chunk: how many sentences the cross-attention module pairs with the images at a time, to bound
        memory; the backward pass computes their pairs again. None pairs all at once.
      train: whether it drops.

    Returns:
      `[images, texts]`, in [-1 - alpha, 1 + alpha].

    Raises:
      ValueError: `chunk` is not positive.
    """
    scores, _ = self._score(images, texts, chunk, train)
    return scores

  def _score(
    self, images: Features, texts: Features, chunk: int | None, train: bool
  ) -> tuple[jax.Array, Features]:
    """The scores, and the similarities that they are made of."""
    # Each device pairs its images with all sentences.
    texts = jax.tree.map(lambda x: parallel.constrain(x, *(None,) * x.ndim), texts)
    self_scores = similarity.dot_products(images['embedding'], texts['embedding'])
    if not self.cross_attention:
      return self_scores, {'self_scores': self_scores}
    cross_scores = self._cross_scores(images, texts, chunk, train)
    scores = self_scores + self.alpha * cross_scores
    return scores, {'self_scores': self_scores, 'cross_scores': cross_scores}

  def _cross_scores(
    self, images: Features, texts: Features, chunk: int | None, train: bool
  ) -> jax.Array:
    if chunk is not None and chunk < 1:
      raise ValueError(f'chunk={chunk}: at least one sentence at a time, or None for all')
    regions, words = self._project(images, texts)
    regions = jax.tree.map(lambda x: x[:, None], regions)

    def pair_scores(model: 'MMCA', carry: None, words: Any) -> tuple[None, jax.Array]:
      words = jax.tree.map(lambda x: x[None], words)
      image_embedding, text_embedding, _ = model._attend_across(regions, words, train)
      return carry, jnp.sum(image_embedding * text_embedding, axis=-1)

    count = texts['mask'].shape[0]
    if chunk is None or self.is_initializing() or chunk >= count:
      return pair_scores(self, None, words)[1]
    chunks = -(-count // chunk)

    def split(x: jax.Array) -> jax.Array:
      padding = ((0, chunks * chunk - count), *((0, 0),) * (x.ndim - 1))
      return jnp.pad(x, padding).reshape(chunks, chunk, *x.shape[1:])

    loop = nn.scan(
      # The loop's iterations are computed one by one in any case: no barrier is needed.
      nn.remat(pair_scores, prevent_cse=False),
      variable_broadcast='params',
      split_rngs={'params': False, 'dropout': True},
    )
    _, scores = loop(self, None, jax.tree.map(split, words))
    return jnp.moveaxis(scores, 0, 1).reshape(-1, chunks * chunk)[:, :count]

  def embed_pairs(
    self, images: Features, texts: Features, train: bool = False
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Embeds pairs by the cross-attention module: text i with image i.

    Args:
      images: as `encode_images` returns them.
      texts: as many, as `encode_texts` returns them. Leading axes broadcast: images with another
        axis after the first, and texts with one before, are all pairs.
      train: whether it drops.

    Returns:
      Embeddings of the images and of the texts, of length one, both `[..., width]`; and the
      attention weights of the last unit, `[..., heads, tokens, tokens]`: from the token of a row
      to those of the columns, which sum to one; regions first, then words.
    """
    image_embedding, text_embedding, weights = self._attend_across(
      *self._project(images, texts), train
    )
    return image_embedding, text_embedding, jnp.concatenate(weights, axis=-2)

  def cross_attention_maps(self, images: Features, texts: Features) -> jax.Array:
    """What regions and words of pairs take from each other: the weights of `embed_pairs`."""
    return self.embed_pairs(images, texts)[2]

  def _project(self, images: Features, texts: Features) -> Sequence[joint_attention.Projected]:
    """The first cross-attention unit's projections, which all pairs of an item share."""
    unit = self.cross_unit[0]
    return [unit.project(side['candidates'], side['mask']) for side in (images, texts)]

  def _attend_across(
    self, regions: joint_attention.Projected, words: joint_attention.Projected, train: bool
  ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
    """Embeds pairs, whose leading axes broadcast; also returns the last unit's weights."""
    sets = [regions, words]
    tokens, weights = self.cross_unit[0].attend(sets, train)
    for unit in self.cross_unit[1:]:
      sets = [unit.project(x, old.mask) for x, old in zip(tokens, sets, strict=True)]
      tokens, weights = unit.attend(sets, train)
    image_embedding = similarity.l2_normalize(masked_mean(tokens[0], regions.mask))
    return image_embedding, self.cross_cnn(tokens[1], words.mask, train), weights

  def __call__(
    self, inputs: Mapping[str, jax.Array], train: bool = False, chunk: int | None = None
  ) -> tuple[jax.Array, Features]:
    """Scores every sentence for every image.

    Args:
      inputs: 'regions' and, where images have fewer, 'region_mask', as `encode_images` takes them;
        'words' and 'word_mask' as `encode_texts` does.
      train: whether it drops.
      chunk: see `score`.

    Returns:
      Scores `[images, texts]`, and features:
        'image_embedding', 'text_embedding': by the self-attention module, `[images, width]` and
          `[texts, width]`.
        'self_scores': their similarities, `[images, texts]`.
        'cross_scores': those by the cross-attention module, likewise, where there is one.
    """
    images = self.encode_images(inputs['regions'], inputs.get('region_mask'), train)
    texts = self.encode_texts(inputs['words'], inputs.get('word_mask'), train)
    scores, similarities = self._score(images, texts, chunk, train)
    return scores, {
      'image_embedding': images['embedding'],
      'text_embedding': texts['embedding'],
      **similarities,
    }


def _checked_mask(name: str, mask: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
  if mask is None:
    return jnp.ones(shape, bool)
  if mask.shape != shape or mask.dtype != bool:
    raise ValueError(
      f'{name} must be bool of shape {shape}, True for what takes part, not {mask.dtype} of shape '
      f'{mask.shape}'
    )
  return mask


# Widths for a few objects and short captions, and a text encoder to be trained with the rest.
_SMALL = {
  'region_dim': 64,
  'num_regions': 8,
  'word_dim': 64,
  'max_words': 16,
  'width': 64,
  'num_heads': 4,
  'mlp_dim': 128,
  'conv_channels': 64,
  'cross_conv_channels': 64,
  'text_layers': 2,
  'vocab_size': 64,
  'text_heads': 4,
  'text_mlp_dim': 128,
  'max_positions': 32,
  'freeze_text_encoder': False,
}
_SAEM = {'cross_attention': False, 'mask_padding': False}

registry.register('mmca', MMCA)
registry.register('mmca_bert_base', MMCA, text_layers=12)
registry.register('mmca_small', MMCA, **_SMALL)
registry.register('saem', MMCA, **_SAEM)
registry.register('saem_bert_base', MMCA, text_layers=12, **_SAEM)
