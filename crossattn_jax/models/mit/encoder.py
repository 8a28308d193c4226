"""Tokens of a modality, and the encoder that lets them look at each other (arXiv 2310.12817)."""

from collections.abc import Callable

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.attention import interlaced, self_attention
from crossattn_jax.layers import activations, drop_path, linear, mlp, module
from crossattn_jax.models.backbones import preact_resnet


class EncoderBlock(module.Module):
  """Self-attention and an MLP, each of normalised tokens and added to them.

  Attributes:
    num_heads: must divide the channels.
    mlp_ratio: hidden width of the MLP per channel.
    drop_rate: of attention weights, of what attention returns, and within the MLP.
    drop_path_rate: of both branches.
  """

  num_heads: int
  mlp_ratio: float = 1.0
  drop_rate: float = 0.0
  drop_path_rate: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None, train: bool = False) -> jax.Array:
    """Maps `[batch, tokens, channels]`, of which those with `mask` False are padding, likewise."""
    channels = x.shape[-1]
    drop = drop_path.DropPath(self.drop_path_rate)
    attention = self_attention.SelfAttention(
      self.num_heads,
      qkv_bias=False,
      attention_drop_rate=self.drop_rate,
      drop_rate=self.drop_rate,
      name='attention',
      **linear.TORCH,
      **self.types,
    )
    x = x + drop(attention(self.layer_norm('norm1', interlaced.EPSILON)(x), train, mask), train)
    hidden = int(self.mlp_ratio * channels)
    feed_forward = mlp.FeedForward(
      hidden, self.drop_rate, activation=activations.gelu, name='mlp', **self.types
    )
    x = x + drop(feed_forward(self.layer_norm('norm2', interlaced.EPSILON)(x), train), train)
    return parallel.constrain(x, 'batch', 'tokens', 'channels')


class Encoder(module.Module):
  """Blocks one after the other, without a norm behind them.

  Attributes:
    depth: blocks.
    num_heads: of each.
    mlp_ratio: of each.
    drop_rate: of each.
    drop_path_rate: of the last one; it grows linearly from 0.
  """

  depth: int = 3
  num_heads: int = 4
  mlp_ratio: float = 1.0
  drop_rate: float = 0.1
  drop_path_rate: float = 0.1

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None, train: bool = False) -> jax.Array:
    """Maps `[batch, tokens, channels]`, of which those with `mask` False are padding, likewise."""
    (rates,) = drop_path.growing_rates(self.drop_path_rate, [self.depth])
    for i, rate in enumerate(rates):
      block = EncoderBlock(
        self.num_heads, self.mlp_ratio, self.drop_rate, rate, name=f'block_{i}', **self.types
      )
      x = block(x, mask, train)
    return x


class ImageTokens(module.Module):
  """A token of each photograph: a linear map of what a `PreactResNet` sees.

  Attributes:
    width: of the tokens.
    widths: of the network.
    depths: likewise.
    stem_width: likewise.
    num_channels: likewise.
    remat: likewise.
    scan_blocks: likewise.
  """

  width: int
  widths: tuple[int, ...]
  depths: tuple[int, ...]
  stem_width: int
  num_channels: int = 3
  remat: bool = False
  scan_blocks: bool = False

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, views, height, width, num_channels]` to `[batch, views, width]`."""
    network = preact_resnet.PreactResNet(
      num_classes=0,
      depths=self.depths,
      widths=self.widths,
      stem_width=self.stem_width,
      num_channels=self.num_channels,
      remat=self.remat,
      scan_blocks=self.scan_blocks,
      name='network',
      **self.types,
    )
    x, _ = network(images.reshape(-1, *images.shape[2:]), train)
    x = linear.Dense(self.width, name='out', **linear.TORCH, **self.types)(x)
    return x.reshape(*images.shape[:2], self.width)


class PositionMlp(module.Module):
  """Linear maps with an activation in between: of positions in cells, hundreds of them.

  It computes in at least float32 whatever the model does, which bfloat16 would round to whole
  cells.

  Attributes:
    widths: of what each linear map gives.
    activation: between them.
  """

  widths: tuple[int, ...]
  activation: Callable[[jax.Array], jax.Array] = nn.relu

  @nn.compact
  def __call__(self, position: jax.Array) -> jax.Array:
    """Maps `[..., 3]` to `[..., widths[-1]]`."""
    x = position
    for i, width in enumerate(self.widths):
      x = self.activation(x) if i else x
      options = {'param_dtype': self.param_dtype, **linear.TORCH}
      x = linear.Dense(width, name=f'linear_{i}', **options)(x)
    return x


def centre_positions(position: jax.Array, mask: jax.Array) -> jax.Array:
  """Positions in a box of -1 to 1 around the middle of each scene, its longest side of length 2.

  Args:
    position: `[batch, tokens, 3]`.
    mask: bool `[batch, tokens]`, False for tokens without a position, which stay at 0.
  """
  mask = mask[..., None]
  largest = jnp.finfo(position.dtype).max
  low = jnp.where(mask, position, largest).min(axis=1, keepdims=True)
  high = jnp.where(mask, position, -largest).max(axis=1, keepdims=True)
  half = jnp.maximum((high - low).max(axis=-1, keepdims=True) / 2, 1)
  return jnp.where(mask, (position - (low + high) / 2) / half, 0)


def with_classes(
  classes: jax.Array, tokens: jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
  """Puts class tokens before others.

  Args:
    classes: `[classes, channels]`.
    tokens: `[batch, tokens, channels]`.
    mask: bool `[batch, tokens]`; None for none.

  Returns:
    `[batch, classes + tokens, channels]` in at least float32: positions of hundreds are part of the
    sum, beside which bfloat16 would round the features away. And the mask of all.
  """
  dtype = jnp.promote_types(jnp.result_type(classes, tokens), jnp.float32)
  classes = jnp.broadcast_to(classes, (tokens.shape[0], *classes.shape))
  if mask is not None:
    mask = jnp.concatenate([jnp.ones(classes.shape[:2], bool), mask], axis=1)
  tokens = jnp.concatenate([classes.astype(dtype), tokens.astype(dtype)], axis=1)
  return parallel.constrain(tokens, 'batch', 'tokens', 'channels'), mask
