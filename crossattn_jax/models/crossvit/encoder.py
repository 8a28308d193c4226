"""The multi-scale encoder: each branch's own transformer blocks, then the fusion (section 3.2)."""

from collections.abc import Sequence

from flax import linen as nn
import jax

from crossattn_jax import parallel
from crossattn_jax.attention import self_attention
from crossattn_jax.layers import drop_path, mlp, stack
from crossattn_jax.models.crossvit.fusion import AllAttentionFusion, CrossAttentionFusion, SumFusion
from crossattn_jax.models.crossvit.options import BlockOptions, Tokens
from crossattn_jax.models.parts.types import Grid


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
    options: common to all blocks.
  """

  num_heads: int
  mlp_ratio: float
  drop_path_rates: tuple[float, ...]
  options: BlockOptions

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, tokens, channels]` to the same shape."""
    return stack.apply_blocks(
      self,
      lambda i, rate, **where: TransformerBlock(
        self.num_heads, self.mlp_ratio, rate, self.options, **where
      ),
      self.drop_path_rates,
      x,
      train,
      **self.options.loops,
    )


class MultiScaleEncoder(nn.Module):
  """One of the K encoders: every branch's own blocks, then the fusion (figure 2, section 3.2).

  Attributes:
    depths: blocks of each branch, then cross-attention blocks per direction; 0 of them means 1.
    num_heads: per branch.
    mlp_ratios: per branch.
    drop_path_rates: rate i is block i's, in any branch; the last is the fusion's too.
    fusion: as in `CrossViT`.
    reuse_patches: as in `CrossAttentionFusion`.
    options: common to all blocks.
  """

  depths: tuple[int, ...]
  num_heads: tuple[int, ...]
  mlp_ratios: tuple[float, ...]
  drop_path_rates: tuple[float, ...]
  fusion: str = 'cross_attention'
  reuse_patches: bool = False
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
        self.options,
        name=f'branch_{d}',
      )(tokens[d], train)
      for d, depth in enumerate(branch_depths)
    )
    last_rate = self.drop_path_rates[-1]
    match self.fusion:
      case 'cross_attention':
        fusion = CrossAttentionFusion(
          fusion_depth, self.num_heads, last_rate, self.reuse_patches, self.options, name='fusion'
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


def drop_path_rates(depths: Sequence[Sequence[int]], rate: float) -> tuple[tuple[float, ...], ...]:
  """Returns each encoder's stochastic-depth rates, growing linearly from 0 to `rate`.

  An encoder takes as many values as its deepest branch has blocks plus its cross-attention blocks.
  (The official code counts the last branch's depth in place of the deepest one's, and runs out of
  values where they differ.)
  """
  counts = [max(branch_depths) + fusion_depth for *branch_depths, fusion_depth in depths]
  return drop_path.growing_rates(rate, counts)
