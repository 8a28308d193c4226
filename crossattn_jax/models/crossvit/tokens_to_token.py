"""Tokens-to-token patch embedding: overlapping windows become tokens, three times over.

Source: T2T-ViT, Yuan et al. 2021 (arXiv 2101.11986), section 3.1, with the geometry of CrossViT's
hybrid backbone.
"""

import math

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import kernels
from crossattn_jax.attention import random_features
from crossattn_jax.layers import initializers, linear, mlp, module

_NORM_EPSILON = 1e-5
_PERFORMER_DROP_RATE = 0.1

# patch size -> (window, stride, padding) of the three soft splits
_SPLITS = {
  12: ((7, 4, 2), (3, 3, 1), (3, 1, 1)),
  16: ((7, 4, 2), (3, 2, 1), (3, 2, 1)),
}


def soft_split(image: jax.Array, window: int, stride: int, padding: int) -> jax.Array:
  """Cuts an image into overlapping windows, in the order of `torch.nn.Unfold`.

  Args:
    image: `[batch, height, width, channels]`.
    window: side of the square windows.
    stride: between windows.
    padding: zeros added on every side.

  Returns:
    `[batch, rows, columns, channels * window * window]`: within a window the channel varies
    slowest, then the window's row, then its column.
  """
  margins = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  padded = jnp.pad(image, margins)
  rows, columns = ((size - window) // stride + 1 for size in padded.shape[1:3])
  shifted = [
    padded[:, top : top + rows * stride : stride, left : left + columns * stride : stride]
    for top in range(window)
    for left in range(window)
  ]
  return rearrange(jnp.stack(shifted, axis=-1), 'b h w c k -> b h w (c k)')


class SoftSplit(nn.Module):
  """`soft_split` as a module without parameters, so that its result can be looked at.

  Attributes:
    window: side of the square windows.
    stride: between windows.
    padding: zeros added on every side.
  """

  window: int
  stride: int
  padding: int

  def __call__(self, image: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to `[batch, rows, columns, window contents]`."""
    return soft_split(image, self.window, self.stride, self.padding)


class TokenTransformer(module.Module):
  """Single-head transformer block that changes the width; its skip connection is the value.

  Attributes:
    channels: width of the result.
  """

  channels: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, tokens, width]` to `[batch, tokens, channels]`."""
    options = {'kernel_init': initializers.linear, **self.types}
    u = self.layer_norm('norm1', _NORM_EPSILON)(x)
    qkv = linear.Dense((3, 1, self.channels), use_bias=False, name='qkv', **options)(u)
    query, key, value = jnp.moveaxis(qkv, 2, 0)
    # The original scales by the width of the input, not of the head.
    context = kernels.dot_product_attention(query, key, value, scale=x.shape[-1] ** -0.5)
    x = value[:, :, 0] + linear.Dense(self.channels, axis=(-2, -1), name='out', **options)(context)
    u = self.layer_norm('norm2', _NORM_EPSILON)(x)
    return x + mlp.Mlp(self.channels, name='mlp', **self.types)(u, train)


class TokenPerformer(module.Module):
  """Token block with linear attention through random features; its skip connection is the value.

  The random directions are drawn once, never trained, and live in the collection 'constants'.

  Attributes:
    channels: width of the result; there are half as many random features.
  """

  channels: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, tokens, width]` to `[batch, tokens, channels]`."""
    options = {'kernel_init': initializers.linear, **self.types}
    drop = nn.Dropout(_PERFORMER_DROP_RATE, deterministic=not train)
    features = self.channels // 2
    directions = self.variable(
      'constants',
      'directions',
      lambda: nn.initializers.orthogonal(math.sqrt(features))(
        self.make_rng('params'), (features, self.channels), self.param_dtype
      ),
    ).value
    u = self.layer_norm('norm1', _NORM_EPSILON)(x)
    kqv = linear.Dense((3, self.channels), name='kqv', **options)(u)
    key, query, value = jnp.moveaxis(kqv, 2, 0)
    context = random_features.random_feature_attention(query, key, value, directions)
    x = value + drop(linear.Dense(self.channels, name='out', **options)(context))
    u = self.layer_norm('norm2', _NORM_EPSILON)(x)
    return x + drop(mlp.Mlp(self.channels, name='mlp', **self.types)(u, train))


class TokensToToken(module.Module):
  """Soft split, token block, soft split, token block, soft split, linear.

  Attributes:
    patch_size: 12 or 16, the pixels between two tokens of the result.
    channels: width of a token of the result.
    performer: whether the token blocks are `TokenPerformer` instead of `TokenTransformer`.
    token_channels: width of the tokens inside.
  """

  patch_size: int
  channels: int
  performer: bool = False
  token_channels: int = 64

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
    """Maps a square image `[batch, side, side, bands]` to `[batch, patches, channels]`."""
    if self.patch_size not in _SPLITS:
      raise ValueError(
        f'tokens-to-token is defined for patch sizes {sorted(_SPLITS)}, not {self.patch_size}; '
        "choose one of them or patch_embedding='linear'"
      )
    token_block = TokenPerformer if self.performer else TokenTransformer
    splits = [
      SoftSplit(*geometry, name=f'soft_split_{i}')
      for i, geometry in enumerate(_SPLITS[self.patch_size])
    ]
    x = image
    for i, split in enumerate(splits[:2], start=1):
      windows = split(x)
      tokens = rearrange(windows, 'b h w c -> b (h w) c')
      tokens = token_block(self.token_channels, name=f'token_block_{i}', **self.types)(
        tokens, train
      )
      x = rearrange(tokens, 'b (h w) c -> b h w c', h=windows.shape[1])
    tokens = rearrange(splits[2](x), 'b h w c -> b (h w) c')
    return linear.Dense(
      self.channels, kernel_init=initializers.linear, name='project', **self.types
    )(tokens)
