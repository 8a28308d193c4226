"""The Swin transformer with detection tokens, which looks at sketches before each of its stages.

Source: Locformer, Tripathi et al. 2024 (arXiv 2303.08784), in the form of its code; ViDT, Song et
al. 2022 (arXiv 2110.03921), section 3.1; Swin, Liu et al. 2021 (arXiv 2103.14030), section 3.
"""

from collections.abc import Sequence
from typing import NamedTuple

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import reconfigured, sketch_guided
from crossattn_jax.layers import (
  activations,
  convolution,
  drop_path,
  initializers,
  linear,
  mlp,
  module,
  resize,
  sine_position,
  stack,
)

EPSILON = 1e-5  # Of the norms.
PATCH = 4  # Pixels on a side.
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
    position: jax.Array | None = None,
    padding: jax.Array | None = None,
    train: bool = False,
  ) -> jax.Array:
    """Maps tokens to the same shape.

    Args:
      tokens: `[batch, patches + det_tokens, channels]`, the patches of a map row by row, then the
        detection tokens.
      size: rows and columns of the map.
      det_position: `[1, det_tokens, position_channels]`.
      position: `[batch, rows, columns, channels]`, added to patches for the detection tokens that
        attend to them; None where they attend to none.
      padding: bool `[batch, rows, columns]`, True for patches that they do not see.
      train: whether to drop paths.
    """
    channels, (height, width) = tokens.shape[-1], size
    drop = drop_path.DropPath(self.drop_path_rate)
    patches, det = split(self.layer_norm('norm1', EPSILON)(tokens), size)
    project = linear.Dense(channels, name='det_position', **linear.TORCH, **self.types)
    det += project(det_position)
    patches = jnp.pad(
      patches, ((0, 0), (0, -height % self.window), (0, -width % self.window), (0, 0))
    )
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
      kernel_init=None,
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
    remat: whether the backward pass recomputes each block.
    scan_blocks: whether blocks that repeat are one loop.
  """

  num_heads: int
  drop_path_rates: Sequence[float]
  merged_channels: int | None = None
  window: int = 7
  mlp_ratio: float = 4
  qkv_bias: bool = True
  remat: bool = False
  scan_blocks: bool = False

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    size: Size,
    det_position: jax.Array,
    padding: jax.Array | None = None,
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array, Size]:
    """Applies the stage.

    Args:
      tokens: as for `Block`.
      size: rows and columns of their map.
      det_position: as for `Block`.
      padding: bool `[batch, rows, columns]` of any size, True for what detection tokens do not see;
        None where they see no patches.
      train: whether to drop paths.

    Returns:
      The tokens before they are merged; those after, and the size of their map.
    """
    position = None
    if padding is not None:
      # The originals' masks have been resized once before, and so may not have the map's size.
      padding = resize.upsample_nearest(padding[..., None], size)[..., 0]
      position = sine_position.masked_sine_position(padding, tokens.shape[-1])
    shifts = [self.window // 2 if i % 2 else 0 for i in range(len(self.drop_path_rates))]
    tokens = stack.apply_blocks(
      self,
      lambda i, rate, **where: Block(
        self.num_heads,
        self.window,
        shifts[i],
        self.mlp_ratio,
        self.qkv_bias,
        rate,
        **where,
        **self.types,
      ),
      self.drop_path_rates,
      tokens,
      size,
      det_position,
      position,
      padding,
      train,
      kinds=shifts,
      scan=self.scan_blocks,
      remat=self.remat,
    )
    if self.merged_channels is None:
      return tokens, tokens, size
    merged = PatchMerging(self.merged_channels, name='merging', **self.types)
    return tokens, *merged(tokens, size)


class Stem(module.Module):
  """A linear map of every patch of 4 x 4 pixels, and a norm; images are padded to whole patches.

  Attributes:
    channels: of the result.
  """

  channels: int

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, bands]` to a quarter of height and width, rounded up."""
    _, height, width, bands = image.shape
    image = jnp.pad(image, ((0, 0), (0, -height % PATCH), (0, -width % PATCH), (0, 0)))
    x = convolution.convolution(
      bands, self.channels, PATCH, stride=PATCH, name='conv', **self.types
    )(image)
    return self.layer_norm('norm', EPSILON)(x)


class Seen(NamedTuple):
  """What the backbone returns.

  Attributes:
    maps: of the stages from the second on at strides 8, 16, ..., and the last one merged.
    det: `[batch, det_tokens, channels]`, of the last stage before merging.
    det_position: `[1, det_tokens, position_channels]`.
    features: 'stage_{i}', the map of stage i before merging, and 'attention_{i}', how much each of
      its cells looked at each cell of the sketch before it, `[batch, cells, cells of the sketch]`.
  """

  maps: list[jax.Array]
  det: jax.Array
  det_position: jax.Array
  features: dict[str, jax.Array]


class SketchGuidedSwin(module.Module):
  """Stages that patches and detection tokens go through together, patches guided by sketches.

  Attributes:
    width: channels of the first stage; each has twice as many as the one before.
    depths: blocks of the stages.
    num_heads: of the stages.
    window: see `Block`.
    mlp_ratio: see there.
    drop_path_rate: of the last block; it rises from 0 at the first.
    det_stages: where detection tokens look at patches.
    num_queries: how many detection tokens.
    channels: of their positions, and of the merged map of the last stage.
    sketch_fusion: see `SketchCrossAttention`.
    fusion_heads: see there.
    fusion_hidden: see there.
    fusion_drop_rate: see there.
    remat: whether the backward pass recomputes each block.
    scan_blocks: whether blocks that repeat are one loop.
  """

  width: int = 96
  depths: Sequence[int] = (2, 2, 6, 2)
  num_heads: Sequence[int] = (3, 6, 12, 24)
  window: int = 7
  mlp_ratio: float = 4
  drop_path_rate: float = 0.2
  det_stages: Sequence[int] = (3,)
  num_queries: int = 100
  channels: int = 256
  sketch_fusion: sketch_guided.Fusion = 'mean'
  fusion_heads: int = 8
  fusion_hidden: int = 1024
  fusion_drop_rate: float = 0.4
  remat: bool = False
  scan_blocks: bool = False

  @nn.compact
  def __call__(
    self, image: jax.Array, sketches: jax.Array, padding: jax.Array, train: bool = False
  ) -> Seen:
    """Looks at images.

    Args:
      image: `[batch, height, width, bands]`.
      sketches: `[batch, sketches, rows, columns, channels]`, their features.
      padding: bool `[batch, height, width]`, True for what is none of the image.
      train: whether to drop.
    """
    x = Stem(self.width, name='stem', **self.types)(image)
    # The originals resize masks twice: to this size, and to that of a stage.
    coarse = [max(side // 8, 1) for side in x.shape[1:3]]
    padding = resize.upsample_nearest(padding[..., None], coarse)[..., 0]
    det, position = (
      self.param(name, initializers.linear, (1, self.num_queries, channels), self.param_dtype)
      for name, channels in (('det_token', self.width), ('det_position', self.channels))
    )
    det = jnp.broadcast_to(det.astype(x.dtype), (x.shape[0], *det.shape[1:]))
    features, maps, last = {}, [], len(self.depths) - 1
    for i, rates in enumerate(drop_path.growing_rates(self.drop_path_rate, self.depths)):
      look = sketch_guided.SketchCrossAttention(
        self.sketch_fusion,
        self.fusion_heads,
        self.fusion_hidden,
        self.fusion_drop_rate,
        name=f'cross_attention_{i}',
        **self.types,
      )
      x, attention = stack.apply_block(look, x, sketches, train, remat=self.remat)
      size = x.shape[1:3]
      tokens, merged, merged_size = Stage(
        self.num_heads[i],
        rates,
        2 * x.shape[-1] if i < last else self.channels,
        self.window,
        self.mlp_ratio,
        remat=self.remat,
        scan_blocks=self.scan_blocks,
        name=f'stage_{i}',
        **self.types,
      )(join(x, det), size, position, padding if i in self.det_stages else None, train)
      seen, last_det = split(tokens, size)
      x, det = split(merged, merged_size)
      features |= {f'stage_{i}': seen, f'attention_{i}': attention['weights']}
      maps.append(seen)
    return Seen([*maps[1:], x], last_det, position, features)
