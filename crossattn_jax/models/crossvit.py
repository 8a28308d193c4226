"""CrossViT: two transformers at two patch sizes that talk through their class tokens.

Source: Chen, Fan, Panda, "CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image
Classification", ICCV 2021 (arXiv 2103.14899). Equations and figures are the paper's; where paper
and official code (IBM/CrossViT) differ, this follows the code.

A branch is numbered d; branch 0 ("S") has the small patches, branch 1 ("L") the large ones. More
than two branches form a ring. Every token sequence starts with the class token, the patch tokens
follow row by row.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any, Literal

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax import parallel
from crossattn_jax.attention import cross_attention, self_attention
from crossattn_jax.layers import (
  activations,
  block_scan,
  drop_path,
  initializers,
  linear,
  mlp,
  patch_embedding,
  resize,
  tokens_to_token,
)
from crossattn_jax.models import registry

Grid = tuple[int, int]
Tokens = tuple[jax.Array, ...]

_PATCH_EMBEDDINGS = {
  'linear': patch_embedding.LinearPatchEmbedding,
  'conv': patch_embedding.ConvPatchEmbedding,
  't2t': tokens_to_token.TokensToToken,
  'performer': functools.partial(tokens_to_token.TokensToToken, performer=True),
}


@dataclasses.dataclass(frozen=True)
class BlockOptions:
  """What all blocks of a model have in common.

  Attributes:
    qkv_bias: whether the projections to query, key and value have biases.
    drop_rate: dropout of projections, MLPs and position embeddings.
    attention_drop_rate: dropout of attention weights.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  qkv_bias: bool = True
  drop_rate: float = 0.0
  attention_drop_rate: float = 0.0
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  @property
  def types(self) -> dict[str, Any]:
    """The two dtypes, as keyword arguments of a module."""
    return {'dtype': self.dtype, 'param_dtype': self.param_dtype}

  @property
  def attention(self) -> dict[str, Any]:
    """Keyword arguments of an attention module."""
    return {
      'qkv_bias': self.qkv_bias,
      'drop_rate': self.drop_rate,
      'attention_drop_rate': self.attention_drop_rate,
      'kernel_init': initializers.linear,
      **self.types,
    }

  def layer_norm(self, name: str) -> nn.LayerNorm:
    """A layer normalisation with the epsilon of all published models."""
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name, **self.types)


class TokenEmbedding(nn.Module):
  """Patch tokens behind a class token, plus position embeddings (section 3.1).

  Attributes:
    patch_embedding: 'linear', 'conv' (three convolutions), 't2t' or 'performer'.
    patch_size: side of a patch in pixels.
    channels: width of a token.
    num_patches: patches per image.
    options: common to all blocks.
  """

  patch_embedding: str
  patch_size: int
  channels: int
  num_patches: int
  options: BlockOptions

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, bands]` to `[batch, 1 + patches, channels]`."""
    patches = _PATCH_EMBEDDINGS[self.patch_embedding](
      self.patch_size, self.channels, name='patch_embedding', **self.options.types
    )(image, train)
    init, dtype = initializers.linear, self.options.param_dtype
    class_token = self.param('class_token', init, (1, 1, self.channels), dtype)
    positions = self.param(
      'position_embedding', init, (1, 1 + self.num_patches, self.channels), dtype
    )
    class_tokens = jnp.broadcast_to(
      class_token.astype(patches.dtype), (patches.shape[0], 1, self.channels)
    )
    tokens = jnp.concatenate([class_tokens, patches], axis=1) + positions.astype(patches.dtype)
    tokens = nn.Dropout(self.options.drop_rate, deterministic=not train)(tokens)
    return parallel.constrain(tokens, 'batch', 'tokens', 'channels')


class TransformerBlock(nn.Module):
  """Self-attention and MLP, each normalised first and added to its input (equation 1).

  Attributes:
    num_heads: of the self-attention.
    mlp_ratio: hidden width of the MLP per channel.
    drop_path_rate: of both residual branches.
    options: common to all blocks.
  """

  num_heads: int
  mlp_ratio: float
  drop_path_rate: float
  options: BlockOptions

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, tokens, channels]` to the same shape."""
    options = self.options
    hidden = int(self.mlp_ratio * x.shape[-1])
    drop = drop_path.DropPath(self.drop_path_rate)
    attention = self_attention.SelfAttention(self.num_heads, name='attention', **options.attention)
    x = x + drop(attention(options.layer_norm('norm1')(x), train), train)
    feed_forward = mlp.Mlp(hidden, options.drop_rate, name='mlp', **options.types)
    x = x + drop(feed_forward(options.layer_norm('norm2')(x), train), train)
    return parallel.constrain(x, 'batch', 'tokens', 'channels')


class Branch(nn.Module):
  """A branch's own stack of transformer blocks inside one multi-scale encoder (figure 2).

  Attributes:
    num_heads: of every block.
    mlp_ratio: of every block.
    drop_path_rates: one per block.
    remat: whether the backward pass recomputes each block.
    options: common to all blocks.
    scan_blocks: whether the blocks are one loop.
  """

  num_heads: int
  mlp_ratio: float
  drop_path_rates: tuple[float, ...]
  remat: bool
  options: BlockOptions
  scan_blocks: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, tokens, channels]` to the same shape."""
    names = [f'block_{i}' for i in range(len(self.drop_path_rates))]
    if self.scan_blocks and len(names) > 1 and block_scan.can_scan(self):
      return block_scan.scan_blocks(
        self,
        lambda rate: TransformerBlock(
          self.num_heads, self.mlp_ratio, rate, self.options, parent=None
        ),
        names,
        self.drop_path_rates,
        x,
        train,
        train=train,
        remat=self.remat,
      )
    block = nn.remat(TransformerBlock, static_argnums=(2,)) if self.remat else TransformerBlock
    for name, rate in zip(names, self.drop_path_rates, strict=True):
      x = block(self.num_heads, self.mlp_ratio, rate, self.options, name=name)(x, train)
    return x


class Projection(nn.Module):
  """LayerNorm, GELU, linear: f and g of the paper, which align the widths of two branches.

  Attributes:
    channels: width of the result.
    options: common to all blocks.
  """

  channels: int
  options: BlockOptions

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, tokens, width]` to `[batch, tokens, channels]`."""
    x = activations.gelu(self.options.layer_norm('norm')(x))
    project = linear.Dense(
      self.channels, kernel_init=initializers.linear, name='linear', **self.options.types
    )
    return parallel.constrain(project(x), 'batch', 'tokens', 'channels')


class CrossAttentionBlock(nn.Module):
  """The class token attends to a sequence and is added to the result (equation 7, figure 4).

  Attributes:
    num_heads: of the attention.
    drop_path_rate: of the residual branches.
    options: common to all blocks.
    mlp_ratio: hidden width per channel of an MLP behind the attention; None, as in every published
      model, means no MLP.
  """

  num_heads: int
  drop_path_rate: float
  options: BlockOptions
  mlp_ratio: float | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
    """Maps `[batch, tokens, channels]` to a new first token and its attention weights.

    Returns:
      The class token `[batch, 1, channels]` and the weights `[batch, heads, tokens]`.
    """
    options = self.options
    drop = drop_path.DropPath(self.drop_path_rate)
    attention = cross_attention.ClassTokenAttention(
      self.num_heads, name='attention', **options.attention
    )
    # Else the shards of the class token's projections would spread to all tokens of all examples.
    x = parallel.constrain(x, 'batch', 'tokens', 'channels')
    attended, weights = attention(options.layer_norm('norm1')(x), train)
    attended = parallel.constrain(attended, 'batch', None, 'channels')
    class_token = x[:, :1] + drop(attended, train)
    if self.mlp_ratio is not None:
      hidden = int(self.mlp_ratio * x.shape[-1])
      feed_forward = mlp.Mlp(hidden, options.drop_rate, name='mlp', **options.types)
      class_token = class_token + drop(
        feed_forward(options.layer_norm('norm2')(class_token), train), train
      )
    return class_token, weights


class CrossAttentionFusion(nn.Module):
  """Cross-attention fusion: each class token visits the next branch's patches (equations 5 to 7).

  The token that comes back replaces the branch's class token; patch tokens pass unchanged. All
  directions start from the same tokens.

  Attributes:
    depth: cross-attention blocks in sequence per direction; 0 means one, un-nested as in the
      published models: `cross_attention_{d}` and not `cross_attention_{d}_{j}`.
    num_heads: per branch; a direction uses those of the branch that it visits.
    drop_path_rate: of every block.
    reuse_patches: whether the second and later blocks see the patches again, as the paper's text
      has it. In the official code they see nothing but the class token.
    options: common to all blocks.
  """

  depth: int
  num_heads: tuple[int, ...]
  drop_path_rate: float
  reuse_patches: bool
  options: BlockOptions

  @nn.compact
  def __call__(
    self, tokens: Tokens, grids: tuple[Grid, ...], train: bool = False
  ) -> tuple[Tokens, Tokens]:
    """Fuses `[batch, tokens_d, channels_d]` per branch.

    Returns:
      Tokens of the same shapes, and per direction d the attention weights
      `[batch, heads, tokens_{d+1}]` of its last block that sees the patches.
    """
    del grids
    fused, weights = [], []
    for d, own in enumerate(tokens):
      visited = (d + 1) % len(tokens)
      patches = tokens[visited][:, 1:]
      class_token = Projection(patches.shape[-1], self.options, name=f'projection_{d}')(own[:, :1])
      names = [f'cross_attention_{d}_{j}' for j in range(self.depth)] or [f'cross_attention_{d}']
      for name in names:
        sees_patches = name == names[0] or self.reuse_patches
        sequence = [class_token, patches] if sees_patches else [class_token]
        block = CrossAttentionBlock(
          self.num_heads[visited],
          self.drop_path_rate,
          self.options,
          name=name,
        )
        class_token, block_weights = block(jnp.concatenate(sequence, axis=1), train)
        if sees_patches:
          direction_weights = block_weights
      class_token = Projection(own.shape[-1], self.options, name=f'back_projection_{d}')(
        class_token
      )
      fused.append(jnp.concatenate([class_token, own[:, 1:]], axis=1))
      weights.append(direction_weights)
    return tuple(fused), tuple(weights)


class AllAttentionFusion(nn.Module):
  """All-attention fusion: self-attention over the tokens of all branches (equation 2).

  Attributes:
    num_heads: per branch; the attention has those of the widest branch, the last of them if tied.
    drop_path_rate: of the residual branch.
    options: common to all blocks.
  """

  num_heads: tuple[int, ...]
  drop_path_rate: float
  options: BlockOptions

  @nn.compact
  def __call__(
    self, tokens: Tokens, grids: tuple[Grid, ...], train: bool = False
  ) -> tuple[Tokens, Tokens]:
    """Fuses `[batch, tokens_d, channels_d]` per branch; has no class-token weights to return."""
    del grids
    options = self.options
    widths = [x.shape[-1] for x in tokens]
    common = max(widths)
    heads = [heads for heads, width in zip(self.num_heads, widths, strict=True) if width == common]
    y = jnp.concatenate(
      [Projection(common, options, name=f'projection_{d}')(x) for d, x in enumerate(tokens)], axis=1
    )
    attention = self_attention.SelfAttention(heads[-1], name='attention', **options.attention)
    drop = drop_path.DropPath(self.drop_path_rate)
    y = y + drop(attention(options.layer_norm('norm')(y), train), train)
    ends = np.cumsum([x.shape[1] for x in tokens])[:-1]
    fused = [
      Projection(width, options, name=f'back_projection_{d}')(part)
      for d, (width, part) in enumerate(zip(widths, jnp.split(y, ends, axis=1), strict=True))
    ]
    return tuple(fused), ()


class SumFusion(nn.Module):
  """Class-token fusion (equation 3) and pairwise fusion (equation 4): sums in a common width.

  Class-token fusion sums the class tokens and keeps the patches. Pairwise fusion also sums the
  patches at the same place of the image, resized bilinearly from one branch's grid to another's.
  Projections are the identity where a branch already has the common width, the largest.

  Attributes:
    pairwise: whether patches are fused too.
    options: common to all blocks.
  """

  pairwise: bool
  options: BlockOptions

  @nn.compact
  def __call__(
    self, tokens: Tokens, grids: tuple[Grid, ...], train: bool = False
  ) -> tuple[Tokens, Tokens]:
    """Fuses `[batch, tokens_d, channels_d]` per branch; has no class-token weights to return."""
    del train
    widths = [x.shape[-1] for x in tokens]
    common = max(widths)

    def projection(name: str, d: int, channels: int):
      if widths[d] == common:
        return lambda x: x
      return Projection(channels, self.options, name=f'{name}_{d}')

    to_common = [projection('projection', d, common) for d in range(len(tokens))]
    from_common = [projection('back_projection', d, width) for d, width in enumerate(widths)]
    if not self.pairwise:
      class_token = sum(to_common[d](x[:, :1]) for d, x in enumerate(tokens))
      fused = [
        jnp.concatenate([from_common[d](class_token), x[:, 1:]], axis=1)
        for d, x in enumerate(tokens)
      ]
      return tuple(fused), ()
    projected = [to_common[d](x) for d, x in enumerate(tokens)]
    class_token = sum(x[:, :1] for x in projected)
    maps = [
      rearrange(x[:, 1:], 'b (h w) c -> b h w c', h=grid[0])
      for x, grid in zip(projected, grids, strict=True)
    ]
    fused = []
    for d, grid in enumerate(grids):
      patches = sum(resize.resize(x, grid, 'bilinear') for x in maps)
      patches = rearrange(patches, 'b h w c -> b (h w) c')
      fused.append(from_common[d](jnp.concatenate([class_token, patches], axis=1)))
    return tuple(fused), ()


class MultiScaleEncoder(nn.Module):
  """One of the K encoders: every branch's own blocks, then the fusion (figure 2, section 3.2).

  Attributes:
    depths: blocks of each branch, then cross-attention blocks per direction; 0 of them means 1.
    num_heads: per branch.
    mlp_ratios: per branch.
    drop_path_rates: rate i is block i's, in any branch; the last is the fusion's too.
    fusion: as in `CrossViT`.
    reuse_patches: as in `CrossAttentionFusion`.
    remat: whether the backward pass recomputes each transformer block.
    scan_blocks: whether the blocks of a branch are one loop.
    options: common to all blocks.
  """

  depths: tuple[int, ...]
  num_heads: tuple[int, ...]
  mlp_ratios: tuple[float, ...]
  drop_path_rates: tuple[float, ...]
  fusion: str = 'cross_attention'
  reuse_patches: bool = False
  remat: bool = False
  scan_blocks: bool = False
  options: BlockOptions = BlockOptions()

  @nn.compact
  def __call__(
    self, tokens: Tokens, grids: tuple[Grid, ...], train: bool = False
  ) -> tuple[Tokens, Tokens]:
    """Maps `[batch, tokens_d, channels_d]` per branch to the same shapes.

    Args:
      tokens: per branch.
      grids: (height, width) of each branch's patch grid.
      train: whether dropout and drop path are on.

    Returns:
      The tokens, and the class tokens' attention weights per direction (cross-attention only).
    """
    *branch_depths, fusion_depth = self.depths
    tokens = tuple(
      Branch(
        self.num_heads[d],
        self.mlp_ratios[d],
        self.drop_path_rates[:depth],
        self.remat,
        self.options,
        self.scan_blocks,
        name=f'branch_{d}',
      )(tokens[d], train)
      for d, depth in enumerate(branch_depths)
    )
    last_rate = self.drop_path_rates[-1]
    match self.fusion:
      case 'cross_attention':
        fusion = CrossAttentionFusion(
          fusion_depth,
          self.num_heads,
          last_rate,
          self.reuse_patches,
          self.options,
          name='fusion',
        )
      case 'all_attention':
        fusion = AllAttentionFusion(self.num_heads, last_rate, self.options, name='fusion')
      case 'class_token' | 'pairwise':
        fusion = SumFusion(self.fusion == 'pairwise', self.options, name='fusion')
      case 'none':
        return tokens, ()
    tokens, weights = fusion(tokens, grids, train)
    tokens = tuple(parallel.constrain(x, 'batch', 'tokens', 'channels') for x in tokens)
    return tokens, weights


class CrossViT(nn.Module):
  """The classifier: token embeddings, K multi-scale encoders, one head per branch, mean of logits.

  Attributes:
    num_classes: 0 returns the concatenated branch vectors in place of logits.
    image_size: (height, width) of the natural input. Images of any other size are resized.
    branch_scales: side of each branch's image per side of `image_size`, rounded down.
    branch_image_sizes: (height, width) of each branch's image; None derives them from the scales.
    patch_sizes: side of a patch in pixels, per branch.
    widths: channels of a token, per branch.
    depths: per encoder: blocks of each branch, then cross-attention blocks per direction, where 0
      means 1.
    num_heads: per branch.
    mlp_ratios: hidden width of the MLPs per channel, per branch.
    qkv_bias: whether the projections to query, key and value have biases.
    patch_embedding: 'linear', 'conv' (three convolutions, the paper's dagger), 't2t' or 'performer'
      (tokens-to-token with transformer or performer blocks).
    fusion: the four strategies of section 3.3, or 'none'.
    reuse_patches: whether the second and later cross-attention blocks of a direction see the
      patches again (the paper's text) or the class token alone (the official code).
    resize: how a branch gets its image: 'bicubic' resizes, 'center_crop' cuts out the middle and
      resizes only what is too small (timm's `crop_scale`).
    global_pool: 'token' classifies the class token, 'avg' the mean of the patch tokens.
    drop_rate: dropout of position embeddings, projections and MLPs.
    attention_drop_rate: dropout of attention weights.
    drop_path_rate: stochastic depth, growing linearly from 0 to this rate with depth.
    head_drop_rate: dropout before the heads (timm's `drop_rate`).
    num_channels: of the input image.
    remat: whether the backward pass recomputes each transformer block instead of storing it.
    scan_blocks: whether equal encoders, and the transformer blocks of a branch, are loops: programs
      that compile several times faster and compute the same. Parameters keep their names.
    dtype: of the computation, None for the input's and parameters' common type.
    param_dtype: of the parameters.
  """

  num_classes: int = 1000
  image_size: tuple[int, int] = (240, 240)
  branch_scales: tuple[float, ...] = (1.0, 224 / 240)
  branch_image_sizes: tuple[tuple[int, int], ...] | None = None
  patch_sizes: tuple[int, ...] = (12, 16)
  widths: tuple[int, ...] = (192, 384)
  depths: tuple[tuple[int, ...], ...] = ((1, 4, 0),) * 3
  num_heads: tuple[int, ...] = (6, 6)
  mlp_ratios: tuple[float, ...] = (4, 4)
  qkv_bias: bool = True
  patch_embedding: Literal['linear', 'conv', 't2t', 'performer'] = 'linear'
  fusion: Literal['cross_attention', 'all_attention', 'class_token', 'pairwise', 'none'] = (
    'cross_attention'
  )
  reuse_patches: bool = False
  resize: Literal['bicubic', 'center_crop'] = 'bicubic'
  global_pool: Literal['token', 'avg'] = 'token'
  drop_rate: float = 0.0
  attention_drop_rate: float = 0.0
  drop_path_rate: float = 0.0
  head_drop_rate: float = 0.0
  num_channels: int = 3
  remat: bool = False
  scan_blocks: bool = False
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  def __post_init__(self):
    self._check()
    super().__post_init__()

  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool = False
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Classifies images.

    Args:
      image: normalised, `[batch, height, width, num_channels]`. Any height and width: each branch
        resizes to its own.
      train: whether dropout and drop path are on (rngs 'dropout' and 'drop_path').

    Returns:
      Logits `[batch, num_classes]` (with no classes, the branch vectors side by side), in at least
      float32, and features:
        'logits/{d}': of branch d alone, `[batch, num_classes]`.
        'tokens/{d}': of branch d after its final norm, `[batch, 1 + patches, channels]`.
        'cross_attention/{k}/{d}': in encoder k, how much the class token of branch d attends to
          itself and to each patch of branch d+1, `[batch, heads, 1 + patches]`. Only with
          cross-attention fusion.
    """
    self._check_image(image)
    options = BlockOptions(
      self.qkv_bias, self.drop_rate, self.attention_drop_rate, self.dtype, self.param_dtype
    )
    grids = self.grids()
    tokens = tuple(
      TokenEmbedding(
        self.patch_embedding,
        self.patch_sizes[d],
        self.widths[d],
        math.prod(grids[d]),
        options,
        name=f'embedding_{d}',
      )(self._branch_image(image, size), train)
      for d, size in enumerate(self.branch_sizes())
    )
    make_encoder = lambda depths, rates, **where: MultiScaleEncoder(
      depths,
      self.num_heads,
      self.mlp_ratios,
      rates,
      self.fusion,
      self.reuse_patches,
      self.remat,
      self.scan_blocks,
      options,
      **where,
    )
    rates = drop_path_rates(self.depths, self.drop_path_rate)
    names = [f'encoder_{k}' for k in range(len(self.depths))]
    if self.scan_blocks and len(set(self.depths)) == 1 < len(names) and block_scan.can_scan(self):
      make_equal = lambda rates: make_encoder(self.depths[0], rates, parent=None)
      tokens, stacked = block_scan.scan_blocks(
        self, make_equal, names, rates, tokens, grids, train, train=train, has_aux=True
      )
      weights = [tuple(each[k] for each in stacked) for k in range(len(names))]
    else:
      weights = []
      for depths, encoder_rates, name in zip(self.depths, rates, names, strict=True):
        encoder = make_encoder(depths, encoder_rates, name=name)
        tokens, encoder_weights = encoder(tokens, grids, train)
        weights.append(encoder_weights)
    features = {
      f'cross_attention/{k}/{d}': direction_weights
      for k, encoder_weights in enumerate(weights)
      for d, direction_weights in enumerate(encoder_weights)
    }

    vectors = []
    for d, x in enumerate(tokens):
      x = parallel.constrain(options.layer_norm(f'norm_{d}')(x), 'batch', 'tokens', 'channels')
      features[f'tokens/{d}'] = x
      x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
      vectors.append(x[:, 0] if self.global_pool == 'token' else x[:, 1:].mean(axis=1))
    if self.num_classes == 0:
      return jnp.concatenate(vectors, axis=-1), features
    branch_logits = []
    for d, vector in enumerate(vectors):
      vector = nn.Dropout(self.head_drop_rate, deterministic=not train)(vector)
      head = linear.Dense(
        self.num_classes, kernel_init=initializers.linear, name=f'head_{d}', **options.types
      )
      logits = parallel.constrain(head(vector), 'batch', None)
      branch_logits.append(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
      features[f'logits/{d}'] = branch_logits[-1]
    return sum(branch_logits) / len(branch_logits), features

  @nn.nowrap
  def branch_sizes(self) -> tuple[tuple[int, int], ...]:
    """Returns (height, width) of each branch's image."""
    if self.branch_image_sizes is not None:
      return self.branch_image_sizes
    return tuple(
      tuple(int(side * scale) for side in self.image_size) for scale in self.branch_scales
    )

  @nn.nowrap
  def grids(self) -> tuple[Grid, ...]:
    """Returns (height, width) of each branch's patch grid."""
    return tuple(
      (height // patch, width // patch)
      for (height, width), patch in zip(self.branch_sizes(), self.patch_sizes, strict=True)
    )

  @nn.nowrap
  def attention_maps(self, features: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns where the last encoder's class tokens look, one map per direction, to be drawn.

    Args:
      features: as `__call__` returns them.

    Returns:
      Mean over the heads of the weights on the visited branch's patches, `[batch, rows, columns]`.
    """
    grids, last = self.grids(), len(self.depths) - 1
    maps = {}
    for d in range(len(grids)):
      visited = (d + 1) % len(grids)
      weights = features.get(f'cross_attention/{last}/{d}')
      if weights is not None:
        patches = weights.mean(axis=1)[:, 1:]
        maps[f'branch {d} to {visited}'] = patches.reshape(-1, *grids[visited])
    return maps

  @nn.nowrap
  def _branch_image(self, image: jax.Array, size: tuple[int, int]) -> jax.Array:
    fits = image.shape[1] >= size[0] and image.shape[2] >= size[1]
    if self.resize == 'center_crop' and fits:
      return resize.center_crop(image, size)
    return resize.resize(image, size, 'bicubic')

  @nn.nowrap
  def _check_image(self, image: jax.Array) -> None:
    if image.ndim != 4 or image.shape[-1] != self.num_channels:
      raise ValueError(
        f'CrossViT expects images [batch, height, width, {self.num_channels}], not an array of '
        f'shape {image.shape}; transpose NCHW images, or set num_channels'
      )
    if not jnp.issubdtype(image.dtype, jnp.floating):
      raise ValueError(
        f'CrossViT expects normalised floating-point images, not {image.dtype}; scale them to '
        '[0, 1], subtract the mean and divide by the standard deviation'
      )

  @nn.nowrap
  def _check(self) -> None:
    """Raises a ValueError that names the first field that does not fit the others."""
    branches = len(self.widths)
    if not isinstance(self.image_size, tuple) or len(self.image_size) != 2:
      raise ValueError(f'image_size={self.image_size} must be (height, width)')
    for field in ('patch_sizes', 'num_heads', 'mlp_ratios'):
      _check_length(field, getattr(self, field), branches)
    if self.branch_image_sizes is None:
      _check_length('branch_scales', self.branch_scales, branches)
    else:
      _check_length('branch_image_sizes', self.branch_image_sizes, branches)
    for depths in self.depths:
      if len(depths) != branches + 1 or min(depths[:-1]) < 1 or depths[-1] < 0:
        raise ValueError(
          f'depths needs per encoder at least one block for each of {branches} branches and then '
          f'the number of cross-attention blocks, not {depths}'
        )
    for width, heads in zip(self.widths, self.num_heads, strict=True):
      if width % heads:
        raise ValueError(f'num_heads={self.num_heads} does not divide widths={self.widths}')
    for field, choices in (
      ('patch_embedding', tuple(_PATCH_EMBEDDINGS)),
      ('fusion', ('cross_attention', 'all_attention', 'class_token', 'pairwise', 'none')),
      ('resize', ('bicubic', 'center_crop')),
      ('global_pool', ('token', 'avg')),
    ):
      if getattr(self, field) not in choices:
        raise ValueError(f'{field}={getattr(self, field)!r} is not one of {", ".join(choices)}')
    for size, patch in zip(self.branch_sizes(), self.patch_sizes, strict=True):
      if min(size) < patch:
        raise ValueError(
          f'an image of {size} holds no patch of {patch} x {patch}; enlarge image_size or '
          'branch_image_sizes, or choose smaller patch_sizes'
        )
      if self.patch_embedding != 'linear' and any(side % patch for side in size):
        whole = tuple(side // patch * patch for side in size)
        raise ValueError(
          f'patch_embedding={self.patch_embedding!r} needs whole patches of {patch} pixels, but a '
          f'branch has images of {size}; {whole} would do (branch_image_sizes)'
        )


def drop_path_rates(depths: Sequence[Sequence[int]], rate: float) -> tuple[tuple[float, ...], ...]:
  """Returns each encoder's stochastic-depth rates, growing linearly from 0 to `rate`.

  An encoder takes as many values as its deepest branch has blocks plus its cross-attention blocks.
  (The official code counts the last branch's depth in place of the deepest one's, and runs out of
  values where they differ.)
  """
  counts = [max(branch_depths) + fusion_depth for *branch_depths, fusion_depth in depths]
  values = np.linspace(0, rate, sum(counts)).tolist()
  starts = np.cumsum([0] + counts).tolist()
  return tuple(
    tuple(values[start : start + count]) for start, count in zip(starts, counts, strict=False)
  )


def _check_length(field: str, values: Sequence[Any], branches: int) -> None:
  if len(values) != branches:
    raise ValueError(f'{field}={values} needs one entry for each of {branches} branches (widths)')


# timm's and the official name, image sides S and L, widths S and L, blocks S and L, heads, MLP
# ratio, patch embedding. The last three are not among the official models: 480 and T2T are in the
# paper, the performer is an option of the code.
_VARIANTS = (
  ('tiny_240', 'tiny_224', (240, 224), (96, 192), (1, 4), 3, 4, 'linear'),
  ('small_240', 'small_224', (240, 224), (192, 384), (1, 4), 6, 4, 'linear'),
  ('base_240', 'base_224', (240, 224), (384, 768), (1, 4), 12, 4, 'linear'),
  ('9_240', '9_224', (240, 224), (128, 256), (1, 3), 4, 3, 'linear'),
  ('15_240', '15_224', (240, 224), (192, 384), (1, 5), 6, 3, 'linear'),
  ('18_240', '18_224', (240, 224), (224, 448), (1, 6), 7, 3, 'linear'),
  ('9_dagger_240', '9_dagger_224', (240, 224), (128, 256), (1, 3), 4, 3, 'conv'),
  ('15_dagger_240', '15_dagger_224', (240, 224), (192, 384), (1, 5), 6, 3, 'conv'),
  ('18_dagger_240', '18_dagger_224', (240, 224), (224, 448), (1, 6), 7, 3, 'conv'),
  ('15_dagger_408', '15_dagger_384', (408, 384), (192, 384), (1, 5), 6, 3, 'conv'),
  ('18_dagger_408', '18_dagger_384', (408, 384), (224, 448), (1, 6), 7, 3, 'conv'),
  ('18_dagger_504', '18_dagger_480', (504, 480), (224, 448), (1, 6), 7, 3, 'conv'),
  ('18_t2t_240', '18_t2t_224', (240, 224), (224, 448), (1, 6), 7, 3, 't2t'),
  ('18_performer_240', '18_performer_224', (240, 224), (224, 448), (1, 6), 7, 3, 'performer'),
)

for *_names, _sides, _widths, _blocks, _heads, _ratio, _embedding in _VARIANTS:
  for _name in _names:
    registry.register(
      f'crossvit_{_name}',
      CrossViT,
      image_size=(_sides[0], _sides[0]),
      branch_scales=(1.0, _sides[1] / _sides[0]),
      widths=_widths,
      depths=((*_blocks, 0),) * 3,
      num_heads=(_heads, _heads),
      mlp_ratios=(_ratio, _ratio),
      patch_embedding=_embedding,
    )
