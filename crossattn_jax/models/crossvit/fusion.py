"""The four strategies that fuse the tokens of the branches (section 3.3, figure 3)."""

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax import parallel
from crossattn_jax.attention import cross_attention, self_attention
from crossattn_jax.layers import activations, drop_path, initializers, linear, mlp, resize
from crossattn_jax.models.crossvit.options import BlockOptions, Tokens
from crossattn_jax.models.parts.types import Grid


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
          self.num_heads[visited], self.drop_path_rate, self.options, name=name
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
