"""BERT: a transformer that reads a sentence in both directions.

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding" (arXiv 1810.04805). The weights are those of `bert-base-uncased`; docs/mmca.md says
how they are converted.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.attention import joint_attention
from crossattn_jax.layers import linear, module
from crossattn_jax.models import registry
from crossattn_jax.models.parts.types import Features

_INIT_STD = 0.02


class Bert(module.Module):
  """The encoder, without the heads that it is pretrained with.

  Attributes:
    vocab_size: how many pieces of words it knows.
    width: of the tokens.
    num_layers: transformer units.
    num_heads: of their attention.
    mlp_dim: hidden width of their MLPs.
    max_positions: the longest sentence.
    num_segments: that a sentence may be in; 0 is the first.
    pooler: whether there is the layer that sums a sentence up.
    drop_rate: of all dropouts.
    dtype: of the computation, None for the parameters' type.
  """

  vocab_size: int = 30_522
  width: int = 768
  num_layers: int = 12
  num_heads: int = 12
  mlp_dim: int = 3072
  max_positions: int = 512
  num_segments: int = 2
  pooler: bool = True
  drop_rate: float = 0.1

  @nn.compact
  def __call__(
    self, ids: jax.Array, mask: jax.Array, segments: jax.Array | None = None, train: bool = False
  ) -> tuple[jax.Array, Features]:
    """Reads sentences.

    Args:
      ids: of the pieces of words, int `[batch, length]`; [CLS] first, [SEP] last.
      mask: bool `[batch, length]`, True for the pieces, False for padding.
      segments: int `[batch, length]`; None for all 0.
      train: whether it drops.

    Returns:
      The last layer's tokens, `[batch, length, width]`, those at padding without meaning; and
      features:
        'layer_0', 'layer_1', ...: the tokens after each layer.
        'pooled': the sentence's summary for classifiers, `[batch, width]`; with `pooler`.

    Raises:
      ValueError: shapes or dtypes are not as above, or sentences are too long.
    """
    self._check(ids, mask)
    init = nn.initializers.normal(_INIT_STD)
    if segments is None:
      segments = jnp.zeros_like(ids)
    positions = jnp.arange(ids.shape[1])
    embeddings = [
      nn.Embed(count, self.width, embedding_init=init, name=name, **self.types)(indices)
      for name, count, indices in (
        ('word_embedding', self.vocab_size, ids),
        ('position_embedding', self.max_positions, positions),
        ('segment_embedding', self.num_segments, segments),
      )
    ]
    norm = self.layer_norm('embedding_norm', 1e-12)
    x = norm(sum(embeddings))
    x = nn.Dropout(self.drop_rate, deterministic=not train)(x)
    x = parallel.constrain(x, 'batch', 'tokens', 'channels')

    features: Features = {}
    for i in range(self.num_layers):
      unit = joint_attention.PostNormUnit(
        self.width,
        self.num_heads,
        self.mlp_dim,
        self.drop_rate,
        init_std=_INIT_STD,
        name=f'layer_{i}',
        **self.types,
      )
      x = features[f'layer_{i}'] = unit(x, mask, train)
    if self.pooler:
      pooler = linear.Dense(self.width, kernel_init=init, name='pooler', **self.types)
      features['pooled'] = jnp.tanh(pooler(x[:, 0]))
    return x, features

  @nn.nowrap
  def _check(self, ids: jax.Array, mask: jax.Array) -> None:
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
      raise ValueError(
        f'Bert expects the ids of word pieces, int [batch, length], not {ids.dtype} of shape '
        f'{ids.shape}'
      )
    if mask.shape != ids.shape or mask.dtype != bool:
      raise ValueError(
        f'Bert expects a bool mask of the shape of the ids {ids.shape}, True for pieces of words, '
        f'not {mask.dtype} of shape {mask.shape}'
      )
    if ids.shape[1] > self.max_positions:
      raise ValueError(
        f'sentences of {ids.shape[1]} pieces, but max_positions={self.max_positions}: cut them'
      )


registry.register('bert_base_uncased', Bert)
