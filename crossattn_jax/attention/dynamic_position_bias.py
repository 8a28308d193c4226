"""Dynamic position bias: a small network computes the bias of each relative position.

Source: CrossFormer, Wang et al. 2022 (arXiv 2108.00154), section 3.2.2. Unlike a learnt table it
serves groups of any size.
"""

import functools

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.layers import initializers, linear

Pair = tuple[int, int]


def relative_offsets(group: Pair) -> np.ndarray:
  """All offsets (rows, columns) between two tokens of a group, rows slow.

  Returns:
    float32 `[2 * group[0] - 1, 2 * group[1] - 1, 2]`, from `1 - group` to `group - 1`.

  Examples:
    >>> relative_offsets((7, 7)).shape
    (13, 13, 2)
  """
  axes = [np.arange(1 - length, length, dtype=np.float32) for length in group]
  return np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)


def relative_position_bias(table: jax.Array) -> jax.Array:
  """Spreads the biases of all offsets over all pairs of tokens.

  By products with constants of zeros and ones, which is exact: TPUs are slow at gathering.

  Args:
    table: `[2 * rows - 1, 2 * columns - 1, heads]`, an entry for each of `relative_offsets`.

  Returns:
    `[heads, tokens, tokens]`: the bias of a query (second axis) and a key (third axis).
  """

  def choices(length: int) -> jax.Array:
    offset = np.arange(length)[:, None] - np.arange(length) + length - 1
    return jnp.asarray(offset[..., None] == np.arange(2 * length - 1), table.dtype)

  rows, columns = (choices((length + 1) // 2) for length in table.shape[:2])
  bias = jnp.einsum('yvp,xuq,pqn->nyxvu', rows, columns, table, precision='highest')
  return rearrange(bias, 'n y x v u -> n (y x) (v u)')


class DynamicPositionBias(nn.Module):
  """A bias per head from the offset between two tokens (section 3.2.2; DPB in the code).

  Computed in at least float32: norms over so few channels magnify rounding.

  Attributes:
    num_heads: of the attention.
    hidden: width of the network.
    residual: whether its two middle layers are added to their inputs.
    param_dtype: of the parameters.
  """

  num_heads: int
  hidden: int
  residual: bool = False
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, offsets: jax.Array | np.ndarray) -> jax.Array:
    """Maps `[..., 2]`, offsets in rows and columns, to `[..., num_heads]`."""
    dense = functools.partial(
      linear.Dense, kernel_init=initializers.linear, param_dtype=self.param_dtype
    )
    x = dense(self.hidden, name='linear_0')(jnp.asarray(offsets))
    for i, width in enumerate((self.hidden, self.hidden, self.num_heads), start=1):
      norm = nn.LayerNorm(
        epsilon=1e-5, use_fast_variance=False, param_dtype=self.param_dtype, name=f'norm_{i}'
      )
      out = dense(width, name=f'linear_{i}')(nn.relu(norm(x)))
      x = x + out if self.residual and i < 3 else out
    return x
