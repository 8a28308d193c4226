"""CrossFormer and CrossFormer++: pyramids with long and short distance attention.

Sources: Wang, Yao, Chen, Lin, Cai, He, Liu, "CrossFormer: A Versatile Vision Transformer Hinging on
Cross-scale Attention", ICLR 2022 (arXiv 2108.00154); Wang, Chen, Qiu, Yao, Cai, He, Lin, Liu,
"CrossFormer++", TPAMI 2023 (arXiv 2303.06908). Where papers and official code (cheerss/CrossFormer)
differ, this follows the code; docs/crossformer.md lists the differences.

Four stages at strides 4, 8, 16 and 32, each of which starts from patches of several sizes. Blocks
attend alternately among neighbours and across the map.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax import parallel
from crossattn_jax.attention import long_short_distance
from crossattn_jax.layers import convolution, depthwise_conv, drop_path, mlp, module, stack
from crossattn_jax.models import registry
from crossattn_jax.models.parts import checks, classifier
from crossattn_jax.models.parts import options as options_lib
from crossattn_jax.models.parts.types import Features

GROUP_RULES = ('constant', 'linear', 'linear_div', 'alter', '7_14')


def group_sizes_of_blocks(
  rule: str, group_sizes: Sequence[int], depths: Sequence[int], resolution: int
) -> tuple[tuple[int, ...], ...]:
  """Group sizes that grow with depth (progressive group size, CrossFormer++ section 3.1).

  Args:
    rule: 'constant', which all published models have: `group_sizes`, per stage. 'linear': from 4
      tokens in the first block to the whole map after the last. 'linear_div': the same, but what
      exceeds half of the map becomes half of it or all. 'alter': of such blocks in the third stage
      every other one has half of the map. '7_14': `group_sizes`, halved in the first four blocks of
      the third stage.
    group_sizes: per stage.
    depths: per stage.
    resolution: tokens on a side of the first stage's map.

  Returns:
    For each stage a size per block.
  """
  total = sum(depths)
  # Shares of the map's side. The original's rounding: a product with it may exceed a whole number.
  shares = [1.0] * total
  if resolution > 4:
    shares = np.arange(4 / resolution, 1.0, (1 - 4 / resolution) / total)
  result, b = [], 0
  for stage, (constant, depth) in enumerate(zip(group_sizes, depths, strict=True)):
    side, sizes = resolution // 2**stage, []
    for i in range(depth):
      size = side * shares[b]
      if rule in ('linear_div', 'alter') and size > side // 2:
        whole = size > 0.75 * side if rule == 'linear_div' else b % 2 == 1
        size = side if whole or stage != 2 else side // 2
      if rule == 'constant':
        size = constant
      elif rule == '7_14':
        size = constant // 2 if stage == 2 and i < 4 else constant
      else:
        size = max(4, math.ceil(size))
      sizes.append(size)
      b += 1
    result.append(tuple(sizes))
  return tuple(result)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options_lib.Options):
  """What all blocks of a model have in common."""

  norm_epsilon: float = 1e-5


class CrossScaleEmbedding(module.Module):
  """Patches of several sizes around the same centres, each with its share of the channels.

  Section 3.1; CEL in the code. Large patches get few channels, for their cost.

  Attributes:
    channels: of each convolution; they are concatenated.
    kernels: side of each convolution.
    stride: of all.
    norm_first: whether the layer norm is of the input (between stages) or of the result (stem).
  """

  channels: tuple[int, ...]
  kernels: tuple[int, ...]
  stride: int
  norm_first: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, width_in]` to `[batch, height / stride, width / stride, sum]`.

    Raises:
      ValueError: the map cannot be halved between stages.
    """
    if self.norm_first and (x.shape[1] % self.stride or x.shape[2] % self.stride):
      raise ValueError(
        f'a map of {x.shape[1]} x {x.shape[2]} cannot be halved: the next stage needs images whose '
        'height and width are multiples of its stride; pad them'
      )
    norm = self.layer_norm('norm', 1e-5)
    if self.norm_first:
      x = norm(x)
    parts = [
      convolution.convolution(
        x.shape[-1],
        channels,
        side,
        stride=self.stride,
        padding=(side - self.stride) // 2,
        name=f'conv_{i}',
        **self.types,
      )(x)
      for i, (channels, side) in enumerate(zip(self.channels, self.kernels, strict=True))
    ]
    x = jnp.concatenate(parts, axis=-1)
    if not self.norm_first:
      x = norm(x)
    return parallel.constrain(x, 'batch', 'height', 'width', 'channels')


class Block(nn.Module):
  """Attention and MLP, each added to its input; then, on request, a cooling layer.

  Attributes:
    attention: builds the attention module, given its name.
    mlp_ratio: hidden width of the MLP per channel.
    drop_path_rate: of the residual branches.
    cooling: whether the block ends with a depthwise convolution and a norm that nothing bypasses:
      it keeps activations from growing with depth (amplitude cooling layer, CrossFormer++ 3.2).
    options: common to all blocks.
  """

  attention: Callable[..., long_short_distance.LongShortDistanceAttention]
  mlp_ratio: float = 4
  drop_path_rate: float | jax.Array = 0.0
  cooling: bool = False
  options: Options = Options()

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool = False, with_weights: bool = False
  ) -> tuple[jax.Array, jax.Array | None]:
    """Maps `[batch, height, width, channels]` to the same shape.

    Args:
      x: the map.
      train: whether drop path is on.
      with_weights: whether to return the attention's weights.

    Returns:
      The map; and the weights as `LongShortDistanceAttention` returns them, or None.
    """
    types, norm = self.options.types, self.options.layer_norm
    out = self.attention(name='attention')(norm('norm1')(x), train, with_weights)
    out, weights = out if with_weights else (out, None)
    drop = drop_path.DropPath(self.drop_path_rate)
    x += drop(out, train)
    hidden = mlp.Mlp(int(self.mlp_ratio * x.shape[-1]), name='mlp', **types)
    x += drop(hidden(norm('norm2')(x), train), train)
    if self.cooling:
      x = norm('cooling_norm')(depthwise_conv.DepthwiseConv(3, name='cooling', **types)(x))
    return parallel.constrain(x, 'batch', 'height', 'width', 'channels'), weights


class Stage(nn.Module):
  """A stack of blocks at one resolution.

  Attributes:
    attentions: builds the attention of each block.
    cooling: whether each block ends with a cooling layer.
    drop_path_rates: one per block.
    mlp_ratio: see `Block`.
    options: common to all blocks.
  """

  attentions: tuple[Callable[..., long_short_distance.LongShortDistanceAttention], ...]
  cooling: tuple[bool, ...]
  drop_path_rates: tuple[float, ...]
  mlp_ratio: float = 4
  options: Options = Options()

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, Features]:
    """Maps `[batch, height, width, channels]` to the same shape.

    Returns:
      The map, and the attention's weights in the last block that attends at short distance and in
      the last that does at long distance, by 'short' and 'long'.
    """
    depth = len(self.attentions)
    groupings = [self.attentions[i](parent=None).grouping(x.shape[1:3]) for i in range(depth)]
    kinds = ['short' if grouping.interval == (1, 1) else 'long' for grouping in groupings]
    last = {kind: i for i, kind in enumerate(kinds)}
    # Only what the features show computes its weights.
    shown = [i in last.values() for i in range(depth)]
    x, weights = stack.apply_blocks(
      self,
      lambda i, rate, **where: Block(
        self.attentions[i], self.mlp_ratio, rate, self.cooling[i], self.options, **where
      ),
      self.drop_path_rates,
      x,
      train,
      own_arguments=[(each,) for each in shown],
      kinds=list(zip(groupings, self.cooling, shown, strict=True)),
      has_aux=True,
      **self.options.loops,
    )
    return x, {kind: weights[i] for kind, i in last.items()}


class CrossFormer(module.Module):
  """The classifier, or the backbone of a dense predictor.

  Attributes:
    num_classes: 0 returns the mean of the last map in place of logits.
    image_size: (height, width) of the natural input; multiples of 32 of any size are taken.
    widths: channels of each stage.
    depths: blocks of each stage.
    head_dim: width of a head, of all stages or per stage.
    group_sizes: tokens on a side of a group, per stage.
    group_rule: how `group_sizes` change within a stage; see `group_sizes_of_blocks`.
    intervals: of long distance attention, per stage.
    lda: how far it goes, 'region' or 'global'; see `find_grouping`. The published results of dense
      prediction are of 'global'.
    adaptive_interval: whether the interval is the one at which a region covers the map.
    center_padding: whether maps are padded on all sides, not only at the lower right.
    mask_padding: whether padded tokens are hidden; if not, they take part as keys whose projection
      is the bias.
    patch_sizes: of the first cross-scale embedding.
    merging_sizes: of those between stages, the same or each its own.
    mlp_ratio: hidden width of the MLPs per channel, of all stages or per stage.
    cooling: whether every third block of a stage, but not its last, ends with a cooling layer.
    backbone: whether to leave out classifier and final norm, and to cut small maps as the official
      dense predictors do.
    drop_path_rate: stochastic depth, growing linearly from 0 to this rate with depth.
    num_channels: of the input image.
    remat: whether the backward pass recomputes each block instead of storing it.
    scan_blocks: whether blocks that repeat within a stage are one loop: programs that compile
      several times faster and compute the same. Parameters keep their names.
    dtype: of the computation, None for the input's and parameters' common type. Position biases
      are computed in at least float32.
  """

  strides = (4, 8, 16, 32)  # Of the maps 'stage_0' to 'stage_3'.

  num_classes: int = 1000
  image_size: tuple[int, int] = (224, 224)
  widths: tuple[int, ...] = (96, 192, 384, 768)
  depths: tuple[int, ...] = (2, 2, 6, 2)
  head_dim: int | tuple[int, ...] = 32
  group_sizes: tuple[int, ...] = (7, 7, 7, 7)
  group_rule: Literal['constant', 'linear', 'linear_div', 'alter', '7_14'] = 'constant'
  intervals: tuple[int, ...] = (8, 4, 2, 1)
  lda: Literal['region', 'global'] = 'region'
  adaptive_interval: bool = False
  center_padding: bool = False
  mask_padding: bool = True
  patch_sizes: tuple[int, ...] = (4, 8, 16, 32)
  merging_sizes: tuple[int, ...] | tuple[tuple[int, ...], ...] = (2, 4)
  mlp_ratio: float | tuple[float, ...] = 4
  cooling: bool = False
  backbone: bool = False
  drop_path_rate: float = 0.0
  num_channels: int = 3
  remat: bool = False
  scan_blocks: bool = False

  def __post_init__(self):
    self._check()
    super().__post_init__()

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> tuple[Any, Features]:
    """Classifies images, or computes the maps for a dense predictor.

    Args:
      image: normalised, `[batch, height, width, num_channels]`.
      train: whether drop path is on (rng 'drop_path').

    Returns:
      Logits `[batch, num_classes]` in at least float32 (without classes the mean of the last map;
      with `backbone` the maps of all stages), and features:
        'stage_{s}': what stage s returns, `[batch, height, width, channels]` at stride 4 * 2^s.
        'attention/{s}/short', 'attention/{s}/long': weights of the last block of stage s that
          attends at that distance, mean of the heads, `[batch, groups, queries, keys]`.
        'evidence': how much each position of the last map contributes to the largest logit,
          `[batch, height, width]`; its mean, with the bias, is that logit. Only with classes.
    """
    checks.check_image(self, image, self.num_channels)
    options = Options.of(self)
    features: Features = {}
    rates = drop_path.growing_rates(self.drop_path_rate, self.depths)
    x = image
    for s, depth in enumerate(self.depths):
      x = self.start(s)(name=f'downsampling_{s}' if s else 'embedding')(x)
      x, weights = Stage(
        self.attentions(s),
        tuple(self.cooling and i % 3 == 2 and i < depth - 1 for i in range(depth)),
        rates[s],
        _of_stage(self.mlp_ratio, s),
        options,
        name=f'stage_{s}',
      )(x, train)
      features[f'stage_{s}'] = x
      features |= {f'attention/{s}/{kind}': part for kind, part in weights.items()}
    if self.backbone:
      return tuple(features[f'stage_{s}'] for s in range(len(self.widths))), features

    x = options.layer_norm('norm')(x)
    vector = classifier.global_mean(x)
    if self.num_classes == 0:
      return vector, features
    logits = classifier.classify(vector, self.num_classes, **options.types)
    kernel = self.get_variable('params', 'head')['kernel']
    features['evidence'] = classifier.evidence(x, logits, kernel)
    return logits, features

  @nn.nowrap
  def start(self, stage: int) -> Callable[..., CrossScaleEmbedding]:
    """Returns a builder of the embedding that a stage starts from."""
    kernels = self.patch_sizes if stage == 0 else self.merging_sizes
    if isinstance(kernels[0], tuple):
      kernels = kernels[stage - 1]
    return functools.partial(
      CrossScaleEmbedding,
      channels=channel_shares(self.widths[stage], len(kernels)),
      kernels=kernels,
      stride=2 if stage else 4,
      norm_first=stage > 0,
      **self.types,
    )

  @nn.nowrap
  def attentions(
    self, stage: int
  ) -> tuple[Callable[..., long_short_distance.LongShortDistanceAttention], ...]:
    """Returns builders of the attention of each block of a stage."""
    sizes = group_sizes_of_blocks(
      self.group_rule, self.group_sizes, self.depths, self.image_size[0] // 4
    )[stage]
    return tuple(
      functools.partial(
        long_short_distance.LongShortDistanceAttention,
        self.widths[stage] // _of_stage(self.head_dim, stage),
        kind=long_short_distance.KINDS[i % 2],
        group_size=size,
        interval=self.intervals[stage],
        lda=self.lda,
        small_map='pad' if self.backbone and self.lda == 'region' else 'shrink',
        adaptive_interval=self.adaptive_interval,
        center_padding=self.center_padding,
        mask_padding=self.mask_padding,
        **self.types,
      )
      for i, size in enumerate(sizes)
    )

  @nn.nowrap
  def attention_maps(self, features: Features) -> dict[str, jax.Array]:
    """Returns where a position looks in the last blocks of each stage.

    The position is the one that says most about the answer: where the evidence for the largest
    logit is greatest.

    Args:
      features: as `__call__` returns them, of a classifier.

    Returns:
      By stage and kind of attention, maps `[batch, height, width]` of weights that sum to one, but
      for what looked at padding; of each stage whose map has more than one position.
    """
    return {name: weights for name, (weights, _) in self._looks(features).items()}

  @nn.nowrap
  def attention_queries(self, features: Features) -> dict[str, jax.Array]:
    """Returns the positions that look in `attention_maps`, as maps of the same names and shapes."""
    return {name: query for name, (_, query) in self._looks(features).items()}

  @nn.nowrap
  def _looks(self, features: Features) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Maps of the weights and of the position that looks."""
    if 'evidence' not in features:
      return {}
    place = classifier.looking_place(features)
    batch = len(features['evidence'])
    maps = {}
    for s in range(len(self.widths)):
      size = features[f'stage_{s}'].shape[1:3]
      if size == (1, 1):
        continue
      y, x = ((part * length).astype(jnp.int32) for part, length in zip(place, size, strict=True))
      query = jax.nn.one_hot(y * size[1] + x, size[0] * size[1]).reshape(batch, *size)
      for kind in long_short_distance.KINDS:
        weights = features.get(f'attention/{s}/{kind}')
        if weights is None:
          continue
        groupings = (build(parent=None).grouping(size) for build in self.attentions(s))
        grouping = [g for g in groupings if (g.interval == (1, 1)) == (kind == 'short')][-1]
        # The group and the token that look, as maps of the group's shape.
        asks = grouping.split(grouping.pad(query))
        attended = jnp.einsum('bgq,bgqk->bgk', asks, weights)
        name = f'stage {s + 1}, {kind} distance: where the framed place looks'
        maps[name] = grouping.crop(grouping.merge(attended)), query
    return maps

  @nn.nowrap
  def _check(self) -> None:
    """Raises a ValueError that names the first field that does not fit the others."""
    checks.check_lengths(self, 'widths', 'stages', 'depths', 'group_sizes', 'intervals')
    checks.check_choices(self, lda=long_short_distance.LONG_DISTANCES, group_rule=GROUP_RULES)
    for s, channels in enumerate(self.widths):
      if channels % _of_stage(self.head_dim, s):
        raise ValueError(
          f'head_dim={self.head_dim} does not divide the width {channels} of a stage'
        )


def _of_stage(value: Any, stage: int) -> Any:
  """A field of all stages, or of one per stage."""
  return value[stage] if isinstance(value, tuple) else value


def channel_shares(channels: int, kernels: int) -> tuple[int, ...]:
  """Channels of each patch size: half as many for the next larger one, as many for the last."""
  return tuple(channels // 2 ** min(i + 1, kernels - 1) for i in range(kernels))


_PROGRESSIVE = {'group_sizes': (4, 4, 14, 7), 'intervals': (4, 2, 1, 1), 'cooling': True}
_TINY_WIDTHS, _LARGE_WIDTHS = (64, 128, 256, 512), (128, 256, 512, 1024)
_DEEP = (2, 2, 18, 2)

registry.register('crossformer_tiny', CrossFormer, widths=_TINY_WIDTHS, depths=(1, 1, 8, 6))
registry.register('crossformer_small', CrossFormer)
registry.register('crossformer_base', CrossFormer, depths=_DEEP)
registry.register('crossformer_large', CrossFormer, widths=_LARGE_WIDTHS, depths=_DEEP)
registry.register(
  'crossformer_pp_small', CrossFormer, widths=_TINY_WIDTHS, depths=_DEEP, **_PROGRESSIVE
)
registry.register('crossformer_pp_base', CrossFormer, depths=_DEEP, **_PROGRESSIVE)
registry.register(
  'crossformer_pp_large', CrossFormer, widths=_LARGE_WIDTHS, depths=_DEEP, **_PROGRESSIVE
)
registry.register(
  'crossformer_pp_huge', CrossFormer, widths=_LARGE_WIDTHS, depths=(6, 6, 18, 2), **_PROGRESSIVE
)
