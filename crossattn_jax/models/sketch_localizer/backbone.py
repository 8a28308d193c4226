"""The Swin transformer with detection tokens.

Source: ViDT, Song et al. 2022 (arXiv 2110.03921), section 3.1; Swin, Liu et al. 2021 (arXiv
2103.14030), section 3.
"""

from collections.abc import Sequence

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import reconfigured
from crossattn_jax.layers import (
  activations,
  drop_path,
  initializers,
  linear,
  mlp,
  module,
  resize,
  sine_position,
)

EPSILON = 1e-5  # Of the norms.
Size = tuple[int, int]


class Block(module.Module):
  """Reconfigured attention and an MLP, each of normed tokens and added.

  Attributes:
    num_heads: must divide the channels.
    window: of the attention of patches, in patches.
    shift: of the windows.
    mlp_ratio: hidden width of the MLP per channel.
    qkv_bias: of the attention.
    drop_path_rate: of both parts.
  """

  num_heads: int
  window: int = 7
  shift: int = 0
  mlp_ratio: float = 4
  qkv_bias: bool = True
  drop_path_rate: float = 0.0

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    size: Size,
    det_position: jax.Array,
    padding: jax.Array | None = None,
    train: bool = False,
  ) -> jax.Array:
    """Maps tokens to the same shape.

    Args:
      tokens: `[batch, patches + det_tokens, channels]`, the patches of a map row by row, then the
        detection tokens.
      size: rows and columns of the map.
      det_position: `[1, det_tokens, position_channels]`.
      padding: bool `[batch, rows, columns]`: detection tokens attend to patches where it is False;
        None where they attend to none.
      train: whether to drop paths.
    """
    channels, (height, width) = tokens.shape[-1], size
    drop = drop_path.DropPath(self.drop_path_rate)
    init = initializers.torch_convolution(det_position.shape[-1])
    patches, det = split(self.layer_norm('norm1', EPSILON)(tokens), size)
    det += linear.Dense(
      channels, kernel_init=init, bias_init=init, name='det_position', **self.types
    )(det_position)
    patches = jnp.pad(
      patches, ((0, 0), (0, -height % self.window), (0, -width % self.window), (0, 0))
    )
    position = None if padding is None else sine_position.masked_sine_position(padding, channels)
    patches, det = reconfigured.ReconfiguredAttention(
      self.num_heads, self.window, self.shift, self.qkv_bias, name='attention', **self.types
    )(patches, det, position, padding)
    tokens += drop(join(patches[:, :height, :width], det), train)
    network = mlp.FeedForward(
      int(self.mlp_ratio * channels), activation=activations.gelu, name='mlp', **self.types
    )
    return tokens + drop(network(self.layer_norm('norm2', EPSILON)(tokens)), train)


def split(tokens: jax.Array, size: Size) -> tuple[jax.Array, jax.Array]:
  """The map and the detection tokens of `[batch, patches + det_tokens, channels]`."""
  patches, det = jnp.split(tokens, [size[0] * size[1]], axis=1)
  return patches.reshape(patches.shape[0], *size, -1), det


def join(patches: jax.Array, det: jax.Array) -> jax.Array:
  """The inverse of `split`."""
  return jnp.concatenate([patches.reshape(patches.shape[0], -1, patches.shape[-1]), det], axis=1)


class PatchMerging(module.Module):
  """Four neighbours become one patch; detection tokens count as four equal ones.

  Attributes:
    channels: of the result.
  """

  channels: int

  @nn.compact
  def __call__(self, tokens: jax.Array, size: Size) -> tuple[jax.Array, Size]:
    """Returns the tokens of a map of half the size, rounded up, and that size."""
    patches, det = split(tokens, size)
    patches = jnp.pad(patches, ((0, 0), (0, size[0] % 2), (0, size[1] % 2), (0, 0)))
    patches = rearrange(patches, 'b (y i) (x j) c -> b y x (j i c)', i=2, j=2)
    x = self.layer_norm('norm', EPSILON)(join(patches, jnp.tile(det, (1, 1, 4))))
    reduction = linear.Dense(
      self.channels,
      use_bias=False,
      kernel_init=initializers.torch_convolution(x.shape[-1]),
      name='reduction',
      **self.types,
    )
    return reduction(x), patches.shape[1:3]


class Stage(module.Module):
  """Blocks, every second one with shifted windows, and patch merging.

  Attributes:
    num_heads: must divide the channels.
    drop_path_rates: of the blocks.
    merged_channels: of the merged tokens; None merges none.
    window: see `Block`.
    mlp_ratio: see there.
    qkv_bias: see there.
  """

  num_heads: int
  drop_path_rates: Sequence[float]
  merged_channels: int | None = None
  window: int = 7
  mlp_ratio: float = 4
  qkv_bias: bool = True

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    size: Size,
    det_position: jax.Array,
    padding: jax.Array | None = None,
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array, Size]:
    """Applies the stage; arguments are those of `Block`, the padding of any size.

    Returns:
      The tokens before they are merged; those after, and the size of their map.
    """
    if padding is not None:
      # The originals' masks have been resized once before, and so may not have the map's size.
      padding = resize.upsample_nearest(padding[..., None], size)[..., 0]
    for i, rate in enumerate(self.drop_path_rates):
      tokens = Block(
        self.num_heads,
        self.window,
        self.window // 2 if i % 2 else 0,
        self.mlp_ratio,
        self.qkv_bias,
        rate,
        name=f'block_{i}',
        **self.types,
      )(tokens, size, det_position, padding, train)
    if self.merged_channels is None:
      return tokens, tokens, size
    merged = PatchMerging(self.merged_channels, name='merging', **self.types)
    return tokens, *merged(tokens, size)
