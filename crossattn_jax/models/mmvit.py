"""MMViT: a fine and a coarse view of an image or spectrogram, fused in each of four scale stages.

Source: Liu, Ong, Peng et al., "MMViT: Multiscale Multiview Vision Transformers", 2023 (arXiv
2305.00104). There is no official code: sizes and details that the paper leaves open are decisions
of this project, after MViT (facebookresearch/mvit) for the blocks and MTV (google-research/scenic)
for the views; docs/mmvit.md lists them.

Each stage has self-attention blocks in every view, a block of attention across the views, and,
but for the last stage, a block per view that halves the map and doubles the channels.
"""

from collections.abc import Sequence
import dataclasses
import itertools
import math
from typing import Literal

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.attention import cross_view, pooled
from crossattn_jax.layers import (
  convolution,
  drop_path,
  initializers,
  linear,
  mlp,
  module,
  pooling,
  resize,
  stack,
)
from crossattn_jax.models import registry
from crossattn_jax.models.parts import checks, classifier
from crossattn_jax.models.parts import options as options_lib
from crossattn_jax.models.parts.types import Features, Grid

Views = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options_lib.Options):
  """What all blocks have in common.

  Attributes:
    mlp_ratio: hidden width of the MLPs per channel.
  """

  mlp_ratio: float = 4

  def mlp(self, channels: int, out_init: nn.initializers.Initializer) -> mlp.Mlp:
    """The MLP of a block."""
    hidden = int(self.mlp_ratio * channels)
    return mlp.Mlp(hidden, out_init=out_init, name='mlp', **self.types)


class PositionEmbedding(nn.Module):
  """Adds learnt absolute positions to a map and puts a class token in front of it.

  Attributes:
    grid: (height, width) that the positions are learnt on; other maps get them interpolated.
    kind: 'joint', a vector for each place, or 'separable', the sum of one for the row and one for
      the column.
    class_token: whether there is one.
    param_dtype: of the parameters.
  """

  grid: Grid
  kind: Literal['joint', 'separable']
  class_token: bool
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to tokens, the class token first."""
    channels, size = x.shape[-1], x.shape[1:3]

    def parameter(name: str, length: int) -> jax.Array:
      return self.param(name, initializers.linear, (length, channels), self.param_dtype)

    if self.kind == 'joint':
      extra = int(self.class_token)
      table = parameter('positions', extra + math.prod(self.grid))
      of_class = table[:extra]
      places = rearrange(table[extra:], '(y x) c -> y x c', y=self.grid[0])
      places = resize.resize(places, size, 'bicubic')
    else:
      of_class = parameter('class_position', 1) if self.class_token else None
      rows = parameter('rows', self.grid[0])[:, None]
      columns = parameter('columns', self.grid[1])[None]
      places = resize.resize(rows, (size[0], 1), 'bilinear') + resize.resize(
        columns, (1, size[1]), 'bilinear'
      )
    tokens = rearrange(x + places.astype(x.dtype), 'b y x c -> b (y x) c')
    if not self.class_token:
      return tokens
    token = (parameter('class_token', 1) + of_class).astype(x.dtype)
    token = jnp.broadcast_to(token, (x.shape[0], 1, channels))
    return jnp.concatenate([token, tokens], axis=1)


class PoolingBlock(nn.Module):
  """Pooling self-attention and MLP in one view (MViT, section 3.1).

  Attributes:
    num_heads: of the attention.
    stride: of the pooling of keys and values.
    drop_path_rate: of the residual branches.
    options: common to all blocks.
    scale: whether the block doubles the channels and halves the map, both in its attention.
  """

  num_heads: int
  stride: int | Grid
  drop_path_rate: float
  options: Options
  scale: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, grid: Grid, train: bool = False) -> jax.Array:
    """Maps tokens `[batch, extra + height * width, channels]` to tokens."""
    options = self.options
    channels = x.shape[-1] * (2 if self.scale else 1)
    drop = drop_path.DropPath(self.drop_path_rate)
    normed = options.layer_norm('norm1')(x)
    attended = pooled.PooledAttention(
      self.num_heads,
      self.stride,
      query_stride=2 if self.scale else None,
      channels=channels,
      name='attention',
      **options.types,
    )(normed, train, grid)
    if self.scale:
      skip = linear.Dense(channels, kernel_init=initializers.linear, name='skip', **options.types)
      extra, image = pooled.split_tokens(skip(normed), grid)
      x = pooled.join_tokens(extra, pooling.max_pool(image, 3, 2, padding=1))
    x += drop(attended, train)
    forward = options.mlp(channels, initializers.linear)
    x += drop(forward(options.layer_norm('norm2')(x)), train)
    return parallel.constrain(x, 'batch', 'tokens', 'channels')


class ParallelBlocks(nn.Module):
  """A block in every view; the views share no weights.

  Attributes:
    num_heads: of the attention.
    strides: of the pooling of keys and values, per view.
    drop_path_rate: of the residual branches.
    options: common to all blocks.
    scale: see `PoolingBlock`.
  """

  num_heads: int
  strides: tuple[int, ...]
  drop_path_rate: float
  options: Options
  scale: bool = False

  @nn.compact
  def __call__(self, views: Views, grids: tuple[Grid, ...], train: bool = False) -> Views:
    """Maps the tokens of each view."""
    return tuple(
      PoolingBlock(
        self.num_heads, stride, self.drop_path_rate, self.options, self.scale, name=f'view_{v}'
      )(x, grid, train)
      for v, (x, grid, stride) in enumerate(zip(views, grids, self.strides, strict=True))
    )


class CrossViewBlock(nn.Module):
  """Attention across the views and MLP, with one set of weights but for the pooling.

  Attributes:
    num_heads: of the attention.
    strides: of the pooling of keys and values, per view; None leaves them as they are.
    drop_path_rate: of the residual branches.
    zero_init: whether both branches are zero at the start.
    options: common to all blocks.
  """

  num_heads: int
  strides: tuple[int | Grid, ...] | None
  drop_path_rate: float
  zero_init: bool
  options: Options

  @nn.compact
  def __call__(
    self, views: Views, grids: tuple[Grid, ...], train: bool = False
  ) -> tuple[Views, jax.Array]:
    """Maps the tokens of each view; the weights are those of `cross_view.CrossViewAttention`."""
    options = self.options
    out_init = nn.initializers.zeros if self.zero_init else initializers.linear
    drop = drop_path.DropPath(self.drop_path_rate)
    x = jnp.concatenate(views, axis=1)
    attended, weights = cross_view.CrossViewAttention(
      self.num_heads, self.strides, out_init=out_init, name='attention', **options.types
    )(options.layer_norm('norm1')(x), grids)
    x += drop(attended, train)
    forward = options.mlp(x.shape[-1], out_init)
    x += drop(forward(options.layer_norm('norm2')(x)), train)
    ends = list(itertools.accumulate(view.shape[1] for view in views))
    split = tuple(
      parallel.constrain(part, 'batch', 'tokens', 'channels')
      for part in jnp.split(x, ends[:-1], axis=1)
    )
    return split, weights


class Stage(nn.Module):
  """The self-attention blocks of a stage.

  Attributes:
    num_heads: of the attention.
    strides: of the pooling of keys and values, per view.
    drop_path_rates: one per block.
    options: common to all blocks.
  """

  num_heads: int
  strides: tuple[int, ...]
  drop_path_rates: tuple[float, ...]
  options: Options

  @nn.compact
  def __call__(self, views: Views, grids: tuple[Grid, ...], train: bool = False) -> Views:
    """Maps the tokens of each view."""
    return stack.apply_blocks(
      self,
      lambda i, rate, **where: ParallelBlocks(
        self.num_heads, self.strides, rate, self.options, **where
      ),
      self.drop_path_rates,
      views,
      grids,
      train,
      **self.options.loops,
    )


class MMViT(module.Module):
  """The classifier of images and of spectrograms.

  A spectrogram is an image with one channel whose rows are mel bins and whose columns are time.

  Attributes:
    num_classes: 0 returns the feature vector in place of logits.
    image_size: (height, width) that the positions are learnt on. Other sizes get them interpolated.
    embed_dim: channels of the first stage; every further stage has twice as many.
    depths: self-attention blocks of each stage, in every view.
    num_heads: of the first stage; every further stage has twice as many.
    patch_sizes: side of the patches of each view.
    patch_strides: distance of the patches of each view.
    kv_strides: of the pooling of keys and values in the first stage, per view. Halved, down to 1,
      wherever the map is.
    cross_stages: stages that have attention across the views.
    cross_pool: whether its keys and values are pooled.
    cross_zero_init: whether its blocks change nothing at the start; for a warm start.
    positions: 'joint' or 'separable'; see `PositionEmbedding`.
    global_pool: what is classified: a class 'token' of the first view, or the average of the
      tokens in each view and then over the views ('avg'), without a class token.
    mlp_ratio: hidden width of the MLPs per channel.
    drop_path_rate: stochastic depth, growing linearly from 0 to this rate over the blocks within
      the views; a block across views has the rate of the block before it.
    num_channels: of the input image.
    remat: whether the backward pass recomputes each block instead of storing it.
    scan_blocks: whether the self-attention blocks of a stage are one loop: programs that compile
      several times faster and compute the same. Parameters keep their names.
  """

  num_classes: int = 1000
  image_size: tuple[int, int] = (224, 224)
  embed_dim: int = 96
  depths: tuple[int, ...] = (1, 1, 10, 1)
  num_heads: int = 1
  patch_sizes: tuple[int, ...] = (7, 15)
  patch_strides: tuple[int, ...] = (4, 8)
  kv_strides: tuple[int, ...] = (4, 2)
  cross_stages: tuple[int, ...] = (0, 1, 2, 3)
  cross_pool: bool = True
  cross_zero_init: bool = False
  positions: Literal['joint', 'separable'] = 'joint'
  global_pool: Literal['token', 'avg'] = 'token'
  mlp_ratio: float = 4
  drop_path_rate: float = 0.0
  num_channels: int = 3
  remat: bool = False
  scan_blocks: bool = False

  def __post_init__(self):
    self._check()
    super().__post_init__()

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> tuple[jax.Array, Features]:
    """Classifies images or spectrograms.

    Args:
      image: normalised, `[batch, height, width, num_channels]`.
      train: whether drop path is on (rng 'drop_path').

    Returns:
      Logits `[batch, num_classes]` in at least float32, and features. v is 0 for the fine view
      and 1 for the coarse one; tokens are `[batch, (1 +) height * width, channels]`, the class
      token before those of view 0.
        'embedded/{v}': tokens after the patch embedding.
        'self/{s}/{v}', 'cross/{s}/{v}', 'scaled/{s}/{v}': tokens after each step of stage s.
        'stage_{s}': what stage s makes of the fine view, `[batch, height, width, channels]` at
          stride 4 * 2^s, before it is scaled.
        'class_attention/{s}/{v}': weights of the class token in the attention across the views of
          stage s, on view v's pooled map, `[batch, heads, height, width]`. Only with a class token.
        'feature': `[batch, channels]`, what the classifier sees.
    """
    checks.check_image(self, image, self.num_channels)
    options = Options.of(self)
    token = self.global_pool == 'token'
    features: Features = {}
    views = []
    for v, (side, stride) in enumerate(zip(self.patch_sizes, self.patch_strides, strict=True)):
      patches = convolution.convolution(
        self.num_channels,
        self.embed_dim,
        side,
        stride=stride,
        padding=side // 2,
        name=f'patches_{v}',
        **options.types,
      )(image)
      embedding = PositionEmbedding(
        self.grids()[v],
        self.positions,
        class_token=token and v == 0,
        param_dtype=self.param_dtype,
        name=f'embedding_{v}',
      )
      views.append(parallel.constrain(embedding(patches), 'batch', 'tokens', 'channels'))
    views, grids = tuple(views), self.grids(image.shape[1:3])
    features |= {f'embedded/{v}': x for v, x in enumerate(views)}

    # Of the blocks of each stage, then of the one that scales.
    counts = [count for depth in self.depths for count in (depth, 1)][:-1]
    rates = drop_path.growing_rates(self.drop_path_rate, counts)
    rate, num_heads, strides = 0.0, self.num_heads, self.kv_strides
    for s, depth in enumerate(self.depths):
      stage_rates = rates[2 * s]
      rate = stage_rates[-1] if depth else rate
      stage = Stage(num_heads, strides, stage_rates, options, name=f'stage_{s}')
      views = stage(views, grids, train)
      features |= {f'self/{s}/{v}': x for v, x in enumerate(views)}
      if s in self.cross_stages:
        key_strides = strides if self.cross_pool else None
        cross = CrossViewBlock(
          num_heads, key_strides, rate, self.cross_zero_init, options, name=f'cross_{s}'
        )
        views, weights = stack.apply_block(cross, views, grids, train, remat=self.remat)
        features |= {f'cross/{s}/{v}': x for v, x in enumerate(views)}
        if token:
          key_grids = [
            pooled.pooled_grid(grid, stride)
            for grid, stride in zip(grids, key_strides or (1,) * len(grids), strict=True)
          ]
          for v, part in enumerate(cross_view.split_views(jnp.swapaxes(weights, 1, 2), key_grids)):
            _, part = pooled.split_tokens(part, key_grids[v])
            features[f'class_attention/{s}/{v}'] = rearrange(part, 'b y x h -> b h y x')
      features[f'stage_{s}'] = pooled.split_tokens(views[0], grids[0])[1]
      if s < len(self.depths) - 1:
        (rate,), num_heads = rates[2 * s + 1], 2 * num_heads
        strides = tuple(max(stride // 2, 1) for stride in strides)
        scale = ParallelBlocks(num_heads, strides, rate, options, scale=True, name=f'scale_{s}')
        views = stack.apply_block(scale, views, grids, train, remat=self.remat)
        grids = tuple(pooled.pooled_grid(grid, 2) for grid in grids)
        features |= {f'scaled/{s}/{v}': x for v, x in enumerate(views)}

    norm = options.layer_norm('norm')
    if token:
      feature = norm(views[0][:, 0])
    else:
      feature = sum(norm(x).mean(axis=1) for x in views) / len(views)
    features['feature'] = feature
    return classifier.classify(feature, self.num_classes, **options.types), features

  @nn.nowrap
  def grids(self, image_size: Sequence[int] | None = None) -> tuple[Grid, ...]:
    """The patch grid of each view, of images of the natural size or another."""
    size = self.image_size if image_size is None else image_size
    return tuple(
      tuple((length + 2 * (side // 2) - side) // stride + 1 for length in size)
      for side, stride in zip(self.patch_sizes, self.patch_strides, strict=True)
    )

  @nn.nowrap
  def attention_maps(self, features: Features) -> dict[str, jax.Array]:
    """Returns where the class token looks in both views, in the last two attentions across views.

    Args:
      features: as `__call__` returns them.

    Returns:
      Maps `[batch, rows, columns]`, the mean over the heads, by the stage and view's name; none
      without a class token.
    """
    maps = {}
    for s in sorted(self.cross_stages)[-2:]:
      for v in range(len(self.patch_sizes)):
        if f'class_attention/{s}/{v}' in features:
          view = f'{("fine", "coarse")[v]} view' if len(self.patch_sizes) == 2 else f'view {v + 1}'
          name = f'stage {s + 1}: where the summary looks in the {view}'
          maps[name] = features[f'class_attention/{s}/{v}'].mean(axis=1)
    return maps

  @nn.nowrap
  def _check(self) -> None:
    """Raises a ValueError that names the first field that does not fit the others."""
    checks.check_lengths(self, 'patch_sizes', 'views', 'patch_strides', 'kv_strides')
    for side in self.patch_sizes:
      if side % 2 == 0:
        raise ValueError(f'patch_sizes={self.patch_sizes} must be odd')
    checks.check_choices(self, positions=('joint', 'separable'), global_pool=('token', 'avg'))
    if not set(self.cross_stages) <= set(range(len(self.depths))):
      raise ValueError(
        f'cross_stages={self.cross_stages} names a stage that is not among the '
        f'{len(self.depths)} of depths, which count from 0'
      )
    if self.embed_dim % self.num_heads:
      raise ValueError(f'num_heads={self.num_heads} does not divide embed_dim={self.embed_dim}')


registry.register('mmvit_base', MMViT)
registry.register('mmvit_small', MMViT, embed_dim=64, depths=(1, 1, 5, 1))
registry.register('mmvit_tiny', MMViT, embed_dim=48, depths=(1, 1, 4, 1))
# AudioSet: ten seconds of 128 mel bins.
registry.register(
  'mmvit_base_audio',
  MMViT,
  image_size=(128, 1024),
  num_channels=1,
  num_classes=527,
  positions='separable',
)
