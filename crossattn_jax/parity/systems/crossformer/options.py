"""Options of the official constructors that no published model has: whole models that have them."""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import kernels
from crossattn_jax.attention import long_short_distance
from crossattn_jax.layers import depthwise_conv
from crossattn_jax.models import crossformer

BuildAttention = Callable[..., long_short_distance.LongShortDistanceAttention]


class RowConvolution(nn.Module):
  """Adds to what attention gets a depthwise convolution of itself that takes rows for channels.

  `use_cpe` of the official code, whose attention then has no position bias.
  """

  attention: BuildAttention

  @nn.nowrap
  def grouping(self, size: tuple[int, int]) -> kernels.Grouping:
    """How the attention cuts a map of this size."""
    return self.attention(parent=None).grouping(size)

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool, with_weights: bool
  ) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Maps `[batch, height, width, channels]` to the same shape."""
    rows = depthwise_conv.DepthwiseConv(3, name='row_convolution')(jnp.moveaxis(x, 1, -1))
    norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name='row_norm')
    x += norm(jnp.moveaxis(rows, -1, 1))
    return self.attention(name='attention')(x, train, with_weights)


def by_rows(attention: BuildAttention) -> BuildAttention:
  """Builds an attention behind a `RowConvolution`, without position bias."""
  return functools.partial(RowConvolution, functools.partial(attention, position_bias=False))


class PlainEmbedding(crossformer.CrossScaleEmbedding):
  """A cross-scale embedding without its norm."""

  @nn.nowrap
  def layer_norm(self, name: str | None = None, epsilon: float = 1e-6) -> Callable[..., Any]:
    """The identity."""
    del name, epsilon
    return lambda x: x


class OfficialCrossFormer(crossformer.CrossFormer):
  """A CrossFormer with what the official constructors take besides.

  Attributes:
    qkv_bias: whether the projections to query, key and value have biases.
    qk_scale: of the scores; head_dim^-0.5 by default.
    use_cpe: whether a `RowConvolution` stands before each attention.
    ape: whether positions of the image have an embedding of their own.
    patch_norm: whether the first embedding has a norm.
    first_stride: of the first embedding.
  """

  qkv_bias: bool = True
  qk_scale: float | None = None
  use_cpe: bool = False
  ape: bool = False
  patch_norm: bool = True
  first_stride: int = 4

  @nn.nowrap
  def attentions(self, stage: int) -> tuple[BuildAttention, ...]:
    """As of the model."""
    attentions = (
      functools.partial(build, qkv_bias=self.qkv_bias, scale=self.qk_scale or None)
      for build in super().attentions(stage)
    )
    return tuple(by_rows(build) if self.use_cpe else build for build in attentions)

  @nn.nowrap
  def start(self, stage: int) -> Callable[..., Callable[[jax.Array], jax.Array]]:
    """As of the model."""
    build = super().start(stage)
    if stage:
      return build
    kind = build.func if self.patch_norm else PlainEmbedding

    def build_first(**names: Any) -> Callable[[jax.Array], jax.Array]:
      embed = kind(**build.keywords | {'stride': self.first_stride}, **names)
      return lambda image: self._positioned(embed(image)) if self.ape else embed(image)

    return build_first

  @nn.nowrap
  def _positioned(self, x: jax.Array) -> jax.Array:
    shape = (1, x.shape[1] * x.shape[2], x.shape[3])
    positions = self.param('absolute_position', nn.initializers.zeros, shape)
    return x + positions.astype(x.dtype).reshape(1, *x.shape[1:])
