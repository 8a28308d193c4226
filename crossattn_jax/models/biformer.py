"""BiFormer: a pyramid of transformer blocks with bi-level routing attention.

Source: Zhu, Wang, Ke, Zhang, Lau, "BiFormer: Vision Transformer with Bi-Level Routing Attention",
CVPR 2023 (arXiv 2303.08810). Where paper and official code (rayleizhu/BiFormer) differ, this
follows the code; docs/biformer.md lists the differences.

Four stages at strides 4, 8, 16 and 32. In the first three each region of the map attends to the
regions most akin to it; in the last one attention is global.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, Literal, Self

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.attention import bi_level_routing, block_grid_attention, global_attention
from crossattn_jax.layers import (
  activations,
  batch_norm,
  convolution,
  depthwise_conv,
  drop_path,
  initializers,
  linear,
  module,
  stack,
)
from crossattn_jax.models import registry
from crossattn_jax.models.parts import checks, classifier
from crossattn_jax.models.parts import options as options_lib
from crossattn_jax.models.parts.types import Features

ATTENTIONS = ('routed', 'global', 'global_lepe', 'global_lepe_value', 'convolution', 'block_grid')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options_lib.Options):
  """What there is to choose of a model, and what its parts have in common.

  Attributes:
    num_classes: 0 returns the mean of the last map in place of logits.
    image_size: (height, width) of the natural input; other sizes need a `padding`.
    widths: channels of each stage.
    depths: blocks of each stage.
    attentions: of each stage: 'routed', 'global', 'global_lepe' (a depthwise convolution of its
      input is added), 'global_lepe_value' (of its values), 'convolution', or 'block_grid' (windows
      and grids in turn).
    top_k: regions that a region attends to, per stage, where attention is routed.
    regions_per_side: S of the paper, per stage: a map is cut into S x S regions.
    padding: of maps that S does not divide; see `BiLevelRoutingAttention`. Official dense
      predictors have 'input'.
    routing: 'hard' as published; see `BiLevelRoutingAttention` for the soft ones.
    qk_dims: width of queries and keys, per stage; the channels by default.
    qk_scale: of scores and routing logits; qk_dim^-0.5 by default.
    head_dim: width of a head of queries and keys where attention is routed or in windows.
    global_heads: heads of global attention.
    lepe_side: of the depthwise convolution beside the attention; 0 leaves it out. Global attention
      that enhances values ('global_lepe_value') has one of side 5, as the original.
    kv_pooling: downsampling of each region's keys and values; see `pool_regions`.
    kv_pool_sizes: of it, per stage.
    output_projection: whether a linear map follows routed attention.
    window: of block and grid attention.
    mlp_ratio: hidden width of the MLPs per channel.
    mlp_ratios: the same of each stage, in its place.
    mlp_depthwise: whether the MLPs have a 3 x 3 depthwise convolution.
    position_conv: whether blocks start with a 3 x 3 depthwise convolution.
    pre_norm: whether norms stand before attention and MLP, or behind the sums.
    layer_scale: initial value of the factors of the residual branches; None leaves them out.
    overlapping: whether stem and downsampling are 3 x 3 convolutions with stride 2, each followed
      by a norm, or those of Swin: 4 x 4 or 2 x 2 pixels become a token.
    stem_norm: of stem and downsampling and before the classifier.
    frozen_norm: whether batch norms use their running statistics in training too; official
      detectors are trained so.
    norm_epsilon: of the layer norms in the blocks.
    torch_linear: whether linear maps are initialised as torch does 1 x 1 convolutions.
    backbone: whether to leave out classifier and final norm and to give each stage's map a layer
      norm of its own, whose result only the dense predictor sees.
    drop_path_rate: stochastic depth, growing linearly from 0 to this rate with depth.
    num_channels: of the input image.
    remat: whether the backward pass recomputes each block instead of storing it.
    scan_blocks: whether the blocks of a stage are one loop: programs that compile several times
      faster and compute the same. Parameters keep their names. Not where routing is imposed.
    implementation: of `kernels.routed_attention`.
    dtype: of the computation, None for the input's and parameters' common type. Routing is
      computed in at least float32.
    param_dtype: of the parameters.
  """

  num_classes: int = 1000
  image_size: tuple[int, int] = (224, 224)
  widths: tuple[int, ...] = (64, 128, 256, 512)
  depths: tuple[int, ...] = (4, 4, 18, 4)
  attentions: tuple[str, ...] = ('routed', 'routed', 'routed', 'global_lepe')
  top_k: tuple[int, ...] = (1, 4, 16, 0)
  regions_per_side: tuple[int, ...] = (7, 7, 7, 7)
  padding: Literal['none', 'input', 'masked', 'qkv'] = 'none'
  routing: Literal['hard', 'soft', 'soft_differentiable', 'soft_parametric'] = 'hard'
  qk_dims: tuple[int, ...] | None = None
  qk_scale: float | None = None
  head_dim: int = 32
  global_heads: int = 8
  lepe_side: int = 5
  kv_pooling: Literal['none', 'average', 'max', 'adaptive_average', 'adaptive_max'] = 'none'
  kv_pool_sizes: tuple[int, ...] = (1, 1, 1, 1)
  output_projection: bool = True
  window: int = 7
  mlp_ratio: float = 3
  mlp_ratios: tuple[float, ...] | None = None
  mlp_depthwise: bool = False
  position_conv: bool = True
  pre_norm: bool = True
  layer_scale: float | None = None
  overlapping: bool = True
  stem_norm: Literal['batch', 'layer'] = 'batch'
  frozen_norm: bool = False
  torch_linear: bool = False
  backbone: bool = False
  drop_path_rate: float = 0.0
  num_channels: int = 3
  implementation: str = 'auto'

  def __post_init__(self):
    """Raises a ValueError that names the first field that does not fit the others."""
    checks.check_lengths(
      self,
      'widths',
      'stages',
      'depths',
      'attentions',
      'top_k',
      'regions_per_side',
      'kv_pool_sizes',
      'qk_dims',
      'mlp_ratios',
    )
    checks.check_choices(
      self,
      padding=bi_level_routing.PADDINGS,
      routing=bi_level_routing.ROUTINGS,
      kv_pooling=bi_level_routing.POOLINGS,
      stem_norm=('batch', 'layer'),
    )
    for kind, channels, top_k, qk_dim in zip(
      self.attentions, self.widths, self.top_k, self.qk_dims or self.widths, strict=True
    ):
      if kind not in ATTENTIONS:
        raise ValueError(f'attentions={self.attentions}: {kind!r} is not one of {ATTENTIONS}')
      if kind == 'routed' and top_k < 1:
        raise ValueError(f'top_k={self.top_k} must be positive where attention is routed')
      if kind in ('routed', 'block_grid') and qk_dim % self.head_dim:
        raise ValueError(f'head_dim={self.head_dim} does not divide the width {qk_dim} of a stage')
      if kind.startswith('global') and channels % self.global_heads:
        raise ValueError(f'global_heads={self.global_heads} does not divide the width {channels}')

  def of_stage(self, stage: int) -> Self:
    """Returns the options of the parts of a stage."""
    if self.mlp_ratios is None:
      return self
    return dataclasses.replace(self, mlp_ratio=self.mlp_ratios[stage], mlp_ratios=None)

  def linear(self, channels_in: int) -> dict[str, Any]:
    """Keyword arguments of a linear map of `channels_in` channels."""
    if not self.torch_linear:
      return {'kernel_init': initializers.linear, **self.types}
    init = initializers.torch_convolution(channels_in)
    return {'kernel_init': init, 'bias_init': init, **self.types}

  def normalize(self, x: jax.Array, train: bool, name: str) -> jax.Array:
    """Applies the norm of stem, downsampling and classifier."""
    if self.stem_norm == 'layer':
      return self.layer_norm(name, 1e-6)(x)
    return batch_norm.BatchNorm(name=name, **self.types)(x, train and not self.frozen_norm)

  def conv(self, x: jax.Array, channels: int, side: int, name: str) -> jax.Array:
    """Applies a convolution with stride 2 (3 x 3, padded) or as large as its kernel."""
    geometry = {'stride': 2, 'padding': 1} if side == 3 else {'stride': side}
    conv = convolution.convolution(x.shape[-1], channels, side, name=name, **geometry, **self.types)
    return parallel.constrain(conv(x), 'batch', 'height', 'width', 'channels')

  def stage_attentions(self, stage: int) -> tuple[Callable[..., nn.Module], ...]:
    """Returns builders of the attention of each block of a stage."""
    kind, channels, depth = self.attentions[stage], self.widths[stage], self.depths[stage]
    projection = self.linear(channels)
    match kind:
      case 'routed':
        qk_dim = self.qk_dims[stage] if self.qk_dims else channels
        build = functools.partial(
          bi_level_routing.BiLevelRoutingAttention,
          num_heads=qk_dim // self.head_dim,
          regions_per_side=self.regions_per_side[stage],
          top_k=self.top_k[stage],
          qk_dim=qk_dim,
          scale=self.qk_scale,
          lepe_side=self.lepe_side,
          routing=self.routing,
          padding=self.padding,
          kv_pooling=self.kv_pooling,
          kv_pool_size=self.kv_pool_sizes[stage],
          output_projection=self.output_projection,
          implementation=self.implementation,
          **projection,
        )
      case 'convolution':
        build = functools.partial(ConvolutionMixer, **self.types)
      case 'block_grid':
        heads = channels // self.head_dim
        builders = [
          functools.partial(
            block_grid_attention.BlockGridAttention,
            heads,
            kind=kind,
            window=self.window,
            **projection,
          )
          for kind in ('block', 'grid')
        ]
        return tuple(builders[i % 2] for i in range(depth))
      case _:
        lepe = {'global': 'none', 'global_lepe': 'input', 'global_lepe_value': 'value'}[kind]
        # The original says no side to attention that enhances values: it is the default.
        side = 5 if lepe == 'value' else self.lepe_side
        build = functools.partial(
          global_attention.GlobalAttention,
          self.global_heads,
          lepe=lepe if side else 'none',
          lepe_side=side,
          **projection,
        )
    return (build,) * depth


class Stem(nn.Module):
  """From the image to the first stage: overlapping patch embedding (section 3.3), or Swin's.

  Attributes:
    channels: of the result.
    options: common to all parts.
  """

  channels: int
  options: Options

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, bands]` to a quarter of height and width."""
    options = self.options
    if not options.overlapping:
      return options.normalize(options.conv(image, self.channels, 4, 'conv'), train, 'norm')
    x = options.normalize(options.conv(image, self.channels // 2, 3, 'conv_0'), train, 'norm_0')
    x = activations.gelu(x)
    return options.normalize(options.conv(x, self.channels, 3, 'conv_1'), train, 'norm_1')


class Downsampling(nn.Module):
  """From one stage to the next, at half the height and width.

  Attributes:
    channels: of the result.
    options: common to all parts.
  """

  channels: int
  options: Options

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, width_in]` to half of height and width."""
    options = self.options
    if options.overlapping:
      return options.normalize(options.conv(x, self.channels, 3, 'conv'), train, 'norm')
    return options.conv(options.normalize(x, train, 'norm'), self.channels, 2, 'conv')


class ConvolutionMixer(module.Module):
  """A linear map, a 5 x 5 depthwise convolution and another linear map in place of attention."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape."""
    init = initializers.torch_convolution(x.shape[-1])
    dense = functools.partial(
      linear.Dense, x.shape[-1], kernel_init=init, bias_init=init, **self.types
    )
    x = depthwise_conv.DepthwiseConv(5, name='depthwise', **self.types)(dense(name='linear_0')(x))
    return dense(name='linear_1')(x)


class FeedForward(nn.Module):
  """Linear, GELU, linear back to the input's width, with a depthwise convolution on request.

  Attributes:
    options: common to all parts.
  """

  options: Options

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape."""
    options, channels = self.options, x.shape[-1]
    hidden = int(options.mlp_ratio * channels)
    x = linear.Dense(hidden, name='fc1', **options.linear(channels))(x)
    if options.mlp_depthwise:
      x = depthwise_conv.DepthwiseConv(3, name='depthwise', **options.types)(x)
    return linear.Dense(channels, name='fc2', **options.linear(hidden))(activations.gelu(x))


class Block(nn.Module):
  """Position convolution, attention and MLP, each added to its input (figure 3).

  Attributes:
    attention: builds the attention module, given its name.
    drop_path_rate: of the residual branches.
    options: common to all parts.
  """

  attention: Callable[..., nn.Module]
  drop_path_rate: float
  options: Options

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool = False, routing: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array | None]:
    """Maps `[batch, height, width, channels]` to the same shape.

    Args:
      x: the map.
      train: whether drop path is on.
      routing: imposes the routing of a routed attention.

    Returns:
      The map, and the regions that each region attends to, int32 `[batch, regions, top_k]`; None
      where attention is not routed.
    """
    options = self.options
    if options.position_conv:
      x += depthwise_conv.DepthwiseConv(3, name='position', **options.types)(x)
    attention = self.attention(name='attention')
    regions = None

    def attend(x: jax.Array) -> jax.Array:
      nonlocal regions
      if not isinstance(attention, bi_level_routing.BiLevelRoutingAttention):
        return attention(x)
      out, chosen = attention(x, routing)
      regions = chosen.regions
      return out

    branches = (attend, FeedForward(options, name='mlp'))
    for number, branch in enumerate(branches, start=1):
      norm = options.layer_norm(f'norm{number}')
      out = branch(norm(x) if options.pre_norm else x)
      if options.layer_scale is not None:
        init = nn.initializers.constant(options.layer_scale)
        factor = self.param(f'scale{number}', init, out.shape[-1:], options.param_dtype)
        out *= factor.astype(out.dtype)
      x += drop_path.DropPath(self.drop_path_rate)(out, train)
      if not options.pre_norm:
        x = norm(x)
    return parallel.constrain(x, 'batch', 'height', 'width', 'channels'), regions


class Stage(nn.Module):
  """A stack of blocks at one resolution.

  Attributes:
    attentions: builds the attention of each block.
    drop_path_rates: one per block.
    options: common to all parts.
  """

  attentions: tuple[Callable[..., nn.Module], ...]
  drop_path_rates: tuple[float, ...]
  options: Options

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool = False, routing: tuple[jax.Array | None, ...] = ()
  ) -> tuple[jax.Array, tuple[jax.Array | None, ...]]:
    """Maps `[batch, height, width, channels]` to the same shape.

    Args:
      x: the map.
      train: whether drop path is on.
      routing: imposed on each block, or nothing.

    Returns:
      The map, and the regions that each block chose.
    """
    imposed = routing or (None,) * len(self.attentions)
    x, chosen = stack.apply_blocks(
      self,
      lambda i, rate, **where: Block(self.attentions[i], rate, self.options, **where),
      self.drop_path_rates,
      x,
      train,
      own_arguments=[(regions,) for regions in imposed],
      kinds=self.attentions,
      has_aux=True,
      scan=self.options.scan_blocks and all(regions is None for regions in imposed),
      remat=self.options.remat,
      # Else the backward pass might choose other regions.
      policy=jax.checkpoint_policies.save_only_these_names(bi_level_routing.CHECKPOINT_NAME),
    )
    return x, tuple(chosen)


class BiFormer(nn.Module):
  """The classifier, or the backbone of a dense predictor.

  Attributes:
    options: all there is to choose. Names of models and configs have their fields.
  """

  strides = (4, 8, 16, 32)  # Of the maps 'stage_0' to 'stage_3'.

  options: Options = Options()

  @nn.nowrap
  def __getattr__(self, name: str) -> Any:
    """The options' fields are the model's own, as in `create_model` and configs."""
    if name in Options.__dataclass_fields__:
      return getattr(self.options, name)
    return super().__getattr__(name)

  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool = False, routing: Mapping[str, jax.Array] | None = None
  ) -> tuple[Any, Features]:
    """Classifies images, or computes the maps for a dense predictor.

    Args:
      image: normalised, `[batch, height, width, num_channels]`.
      train: whether drop path is on (rng 'drop_path') and batch norms use the batch, whose
        statistics go into the collection 'batch_stats' where that is mutable.
      routing: imposes the routing of blocks by the keys that it has in the features.

    Returns:
      Logits `[batch, num_classes]` in at least float32 (without classes the mean of the last map;
      with `backbone` the four maps), and features:
        'stage_{s}': what stage s returns, `[batch, height, width, channels]` at stride 4 * 2^s;
          with `backbone` after its own norm.
        'routing/{s}/{i}': regions that each region attends to in block i of stage s, int32
          `[batch, regions, top_k]`, the most akin first. Only where attention is routed.
        'evidence': how much each position of the last map contributes to the largest logit,
          `[batch, height, width]`; its mean, with the bias, is that logit. Only with classes.
    """
    options = self.options
    checks.check_image(self, image, options.num_channels)
    routing = dict(routing or {})
    features: Features = {}
    rates = drop_path.growing_rates(options.drop_path_rate, options.depths)
    x = image
    for s, (channels, depth) in enumerate(zip(options.widths, options.depths, strict=True)):
      if s == 0:
        x = Stem(channels, options, name='stem')(x, train)
      else:
        x = Downsampling(channels, options, name=f'downsampling_{s}')(x, train)
      imposed = tuple(routing.pop(f'routing/{s}/{i}', None) for i in range(depth))
      x, chosen = Stage(
        options.stage_attentions(s), rates[s], options.of_stage(s), name=f'stage_{s}'
      )(x, train, imposed)
      for i, regions in enumerate(chosen):
        if regions is not None:
          features[f'routing/{s}/{i}'] = regions
      features[f'stage_{s}'] = x
      if options.backbone:
        features[f'stage_{s}'] = options.layer_norm(f'output_norm_{s}', 1e-6)(x)
    if routing:
      raise ValueError(f'routing has the keys {sorted(routing)}, which no block has')
    if options.backbone:
      return tuple(features[f'stage_{s}'] for s in range(len(options.widths))), features

    x = options.normalize(x, train, 'norm')
    vector = classifier.global_mean(x)
    if options.num_classes == 0:
      return vector, features
    logits = classifier.classify(vector, options.num_classes, **options.types)
    kernel = self.get_variable('params', 'head')['kernel']
    features['evidence'] = classifier.evidence(x, logits, kernel)
    return logits, features

  @nn.nowrap
  def attention_maps(self, features: Features) -> dict[str, jax.Array]:
    """Returns which regions a region attends to in the last routed block of each stage.

    The region that asks is the one that says most about the answer: where the evidence for the
    largest logit is greatest.

    Args:
      features: as `__call__` returns them, of a classifier.

    Returns:
      Maps `[batch, height, width]` of each such stage, 1 in the regions attended to, else 0.
    """
    return {name: attended for name, (attended, _) in self._last_routings(features).items()}

  @nn.nowrap
  def attention_queries(self, features: Features) -> dict[str, jax.Array]:
    """Returns the regions that ask in `attention_maps`, as maps of the same names and shapes."""
    return {name: query for name, (_, query) in self._last_routings(features).items()}

  @nn.nowrap
  def _last_routings(self, features: Features) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Maps of the attended regions and of the region that asks, by the stage's name."""
    if 'evidence' not in features:
      return {}
    place = classifier.looking_place(features)
    batch = len(features['evidence'])
    options, maps = self.options, {}
    for s, depth in enumerate(options.depths):
      regions = features.get(f'routing/{s}/{depth - 1}')
      if regions is None:
        continue
      size = features[f'stage_{s}'].shape[1:3]
      grid, region_size = bi_level_routing.region_grid(
        size, options.regions_per_side[s], options.padding
      )
      row, column = (
        (part * length).astype(jnp.int32) // region_length
        for part, length, region_length in zip(place, size, region_size, strict=True)
      )
      query = (row * grid[1] + column)[:, None]
      attended = jnp.take_along_axis(regions, query[..., None], axis=1)[:, 0]

      def as_map(indices, grid=grid, region_size=region_size, size=size):
        chosen = jax.nn.one_hot(indices, grid[0] * grid[1]).max(axis=1).reshape(batch, *grid)
        for axis, length in enumerate(region_size, start=1):
          chosen = jnp.repeat(chosen, length, axis=axis)
        return chosen[:, : size[0], : size[1]]

      name = f'stage {s + 1}: the regions that the framed region looks at'
      maps[name] = as_map(attended), as_map(query)
    return maps


_SWIN_LAYOUT = {
  'widths': (96, 192, 384, 768),
  'depths': (2, 2, 6, 2),
  'mlp_ratio': 4,
  'overlapping': False,
  'position_conv': False,
}

registry.register('biformer_tiny', BiFormer, depths=(2, 2, 8, 2))
registry.register('biformer_small', BiFormer)
registry.register('biformer_base', BiFormer, widths=(96, 192, 384, 768))
# Ablations, in the layout of Swin-T; `maxvit_stl` is the baseline without routing.
registry.register('biformer_stl', BiFormer, **_SWIN_LAYOUT)
registry.register(
  'biformer_stl_nchw',
  BiFormer,
  attentions=('routed', 'routed', 'routed', 'global_lepe_value'),
  padding='qkv',
  torch_linear=True,
  **_SWIN_LAYOUT,
)
registry.register(
  'maxvit_stl',
  BiFormer,
  attentions=('block_grid',) * 4,
  stem_norm='layer',
  norm_epsilon=1e-5,
  **_SWIN_LAYOUT,
)
