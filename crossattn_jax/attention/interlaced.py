"""Interlaced attention: tokens of images and tokens of points look at each other in turn.

Source: MIT, Yang et al. 2023 (arXiv 2310.12817), in the form of its code.
"""

from typing import Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.attention import self_attention
from crossattn_jax.layers import activations, drop_path, linear, mlp, module

FirstQuery = Literal['views', 'voxels']
FIRST_QUERIES = ('views', 'voxels')

EPSILON = 1e-5  # Of the layer norms.


def class_skipping_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  num_classes: int,
  mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Attends to all tokens but the first ones, the class tokens of the other modality.

  With L = query key^T head_dim^-1/2 of all keys it is softmax(L[:, c:]) value[c:], where c is the
  number of classes. The logits of the class tokens are for the loss that aligns both modalities.

  Args:
    query: `[batch, queries, heads, head_dim]`.
    key: `[batch, tokens, heads, head_dim]`.
    value: the same shape as `key`.
    num_classes: how many tokens are skipped; 0 is ordinary attention.
    mask: bool `[batch, tokens]`, False for tokens that take no part; what they hold is to be
      finite. None where all do.

  Returns:
    `[batch, queries, heads, head_dim]` in `value`'s dtype, and the logits of all tokens, L,
    `[batch, heads, queries, tokens]` in at least float32.
  """
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  logits = jnp.einsum('bqhd,bkhd->bhqk', query, key, preferred_element_type=dtype)
  logits *= query.shape[-1] ** -0.5
  others = logits[..., num_classes:]
  if mask is not None:
    others = jnp.where(mask[:, None, None, num_classes:], others, jnp.finfo(dtype).min)
  weights = nn.softmax(others).astype(value.dtype)
  return jnp.einsum('bhqk,bkhd->bqhd', weights, value[:, num_classes:]), logits


class ClassSkippingAttention(module.Module):
  """`class_skipping_attention` with its projections, of which the last has a bias.

  Attributes:
    num_heads: must divide the width of the tokens.
    num_classes: class tokens, which come first.
    width: channels of the result; None for those of the queries.
    qkv_bias: whether queries, keys and values have biases too.

  Examples:
    >>> attention = ClassSkippingAttention(num_heads=2, num_classes=20)
    >>> x, others = jnp.ones((1, 36, 64)), jnp.ones((1, 120, 64))
    >>> (y, logits), _ = jax.eval_shape(attention.init_with_output, jax.random.key(0), x, others)
    >>> y.shape, logits.shape
    ((1, 36, 64), (1, 2, 36, 120))
  """

  num_heads: int
  num_classes: int
  width: int | None = None
  qkv_bias: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, others: jax.Array, mask: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Attends from `[batch, queries, channels]` to `[batch, tokens, channels]`.

    Returns:
      `[batch, queries, width]`, and the logits `[batch, heads, queries, tokens]`.

    Raises:
      ValueError: the heads do not divide the width.
    """
    width = self.width or x.shape[-1]
    if width % self.num_heads:
      raise ValueError(f'num_heads={self.num_heads} does not divide the width {width}')

    def project(tokens: jax.Array, name: str) -> jax.Array:
      heads = (self.num_heads, width // self.num_heads)
      dense = linear.Dense(heads, use_bias=self.qkv_bias, name=name, **linear.TORCH, **self.types)
      return parallel.constrain(dense(tokens), 'batch', 'tokens', 'heads', None)

    query, key, value = project(x, 'query'), project(others, 'key'), project(others, 'value')
    mixed, logits = class_skipping_attention(query, key, value, self.num_classes, mask)
    out = linear.Dense(width, axis=(-2, -1), name='out', **linear.TORCH, **self.types)
    return out(mixed), logits


class InterlacedBlock(module.Module):
  """Tokens look at themselves, at the other modality, and go through an MLP, each added to them.

      x = x + SA(LN(x));  x = x + CA(LN(x), LN(others));  x = x + MLP(LN(x))

  Attributes:
    num_heads: of both attentions.
    num_classes: class tokens of either modality.
    mlp_ratio: hidden width of the MLP per channel, rounded down.
    drop_path_rate: of the three branches.
  """

  num_heads: int
  num_classes: int
  mlp_ratio: float = 0.2
  drop_path_rate: float = 0.0

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    others: jax.Array,
    mask: jax.Array | None = None,
    mask_of_others: jax.Array | None = None,
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array]:
    """Updates the tokens of a modality.

    Args:
      x: `[batch, queries, channels]`.
      others: `[batch, tokens, channels]`.
      mask: bool `[batch, queries]`, False for tokens that take no part; None where all do.
      mask_of_others: bool `[batch, tokens]`, likewise.
      train: whether branches are dropped.

    Returns:
      `[batch, queries, channels]`, and the logits of looking at the others, `[batch, heads,
      queries, tokens]`.
    """
    channels = x.shape[-1]
    drop = drop_path.DropPath(self.drop_path_rate)
    look = self_attention.SelfAttention(
      self.num_heads, qkv_bias=False, name='self_attention', **linear.TORCH, **self.types
    )
    x = x + drop(look(self.layer_norm('norm1', EPSILON)(x), train, mask), train)
    across = ClassSkippingAttention(
      self.num_heads, self.num_classes, name='cross_attention', **self.types
    )
    queries = self.layer_norm('norm_query', EPSILON)(x)
    change, logits = across(queries, self.layer_norm('norm_key', EPSILON)(others), mask_of_others)
    x = x + drop(change, train)
    hidden = int(self.mlp_ratio * channels)
    feed_forward = mlp.FeedForward(hidden, activation=activations.gelu, name='mlp', **self.types)
    x = x + drop(feed_forward(self.layer_norm('norm2', EPSILON)(x), train), train)
    return parallel.constrain(x, 'batch', 'tokens', 'channels'), logits


class InterlacedDecoder(module.Module):
  """Blocks that update the tokens of one modality and of the other in turn.

  Attributes:
    depth: blocks of both modalities together.
    num_heads: of their attentions.
    num_classes: class tokens of either modality, which come first.
    mlp_ratio: of the blocks.
    drop_path_rate: of all blocks.
    first_query: whose tokens the first block updates. The paper says 'voxels', its code 'views'.
  """

  depth: int = 4
  num_heads: int = 4
  num_classes: int = 20
  mlp_ratio: float = 0.2
  drop_path_rate: float = 0.0
  first_query: FirstQuery = 'views'

  @nn.compact
  def __call__(
    self,
    views: jax.Array,
    voxels: jax.Array,
    voxel_mask: jax.Array | None = None,
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
    """Lets both modalities look at each other.

    Args:
      views: tokens of images, `[batch, num_classes + views, channels]`.
      voxels: tokens of points, `[batch, num_classes + supervoxels, channels]`.
      voxel_mask: bool `[batch, num_classes + supervoxels]`, False for padding.
      train: whether branches are dropped.

    Returns:
      Views and voxels in their shapes, and the logits of every block, `[batch, heads, queries,
      tokens]`.
    """
    tokens = {'views': views, 'voxels': voxels}
    masks = {'views': None, 'voxels': voxel_mask}
    turns = FIRST_QUERIES if self.first_query == 'views' else FIRST_QUERIES[::-1]
    logits = []
    for i in range(self.depth):
      own, other = turns if i % 2 == 0 else turns[::-1]
      block = InterlacedBlock(
        self.num_heads,
        self.num_classes,
        self.mlp_ratio,
        self.drop_path_rate,
        name=f'block_{i}',
        **self.types,
      )
      tokens[own], of_block = block(tokens[own], tokens[other], masks[own], masks[other], train)
      logits.append(of_block)
    return tokens['views'], tokens['voxels'], logits
