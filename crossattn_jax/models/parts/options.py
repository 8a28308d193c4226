"""What all parts of a model have in common."""

import dataclasses
from typing import Any, Self

from flax import linen as nn
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """Options that parts of any model have; a system's own are a subclass.

  Attributes:
    norm_epsilon: of layer norms.
    remat: whether the backward pass recomputes each block instead of storing it.
    scan_blocks: whether blocks that repeat are one loop.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  norm_epsilon: float = 1e-6
  remat: bool = False
  scan_blocks: bool = False
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  @classmethod
  def of(cls, model: nn.Module) -> Self:
    """Returns the options that a model has as fields of the same names."""
    names = [field.name for field in dataclasses.fields(cls) if hasattr(model, field.name)]
    return cls(**{name: getattr(model, name) for name in names})

  @property
  def types(self) -> dict[str, Any]:
    """The two dtypes, as keyword arguments of a module."""
    return {'dtype': self.dtype, 'param_dtype': self.param_dtype}

  @property
  def loops(self) -> dict[str, bool]:
    """How stacks of blocks run, as keyword arguments of `stack.apply_blocks`."""
    return {'scan': self.scan_blocks, 'remat': self.remat}

  def layer_norm(self, name: str, epsilon: float | None = None) -> nn.LayerNorm:
    """A layer norm over the channels."""
    epsilon = self.norm_epsilon if epsilon is None else epsilon
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, name=name, **self.types)
