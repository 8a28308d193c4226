"""What all parts of a CrossViT have in common."""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.layers import initializers

Grid = tuple[int, int]
Tokens = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class BlockOptions:
  """What all blocks of a model have in common.

  Attributes:
    qkv_bias: whether the projections to query, key and value have biases.
    drop_rate: dropout of projections, MLPs and position embeddings.
    attention_drop_rate: dropout of attention weights.
    norm_epsilon: of all layer normalisations.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  qkv_bias: bool = True
  drop_rate: float = 0.0
  attention_drop_rate: float = 0.0
  norm_epsilon: float = 1e-6
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
    """A layer normalisation over the channels."""
    return nn.LayerNorm(epsilon=self.norm_epsilon, use_fast_variance=False, name=name, **self.types)
