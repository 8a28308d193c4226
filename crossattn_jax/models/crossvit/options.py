"""What all parts of a CrossViT have in common."""

import dataclasses
from typing import Any

import jax

from crossattn_jax.layers import initializers
from crossattn_jax.models.parts import options as options_lib

Tokens = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockOptions(options_lib.Options):
  """What all blocks of a model have in common.

  Attributes:
    qkv_bias: whether the projections to query, key and value have biases.
    drop_rate: dropout of projections, MLPs and position embeddings.
    attention_drop_rate: dropout of attention weights.
  """

  qkv_bias: bool = True
  drop_rate: float = 0.0
  attention_drop_rate: float = 0.0

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
