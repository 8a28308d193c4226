"""The public function of attention within groups: choice of the form."""

import jax
import jax.numpy as jnp

from crossattn_jax.kernels import dispatch
from crossattn_jax.kernels.biased import api as biased
from crossattn_jax.kernels.grouped import cpu, reference, tpu
from crossattn_jax.kernels.grouped.grouping import Grouping


def grouped_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  grouping: Grouping,
  bias: jax.Array | None = None,
  *,
  num_heads: int,
  scale: float | None = None,
) -> jax.Array:
  """softmax(query key^T scale + bias) value among the tokens of each group of a map.

  Padding is never looked at. CPUs have a form with a gradient of its own; TPUs take a kernel where
  `kernel_pays`, for strips of the map; everything else is the definition.

  Args:
    query: `[batch, height, width, num_heads * head_dim]`.
    key: the same shape.
    value: the same shape.
    grouping: how the map is cut.
    bias: added to the scores, `[num_heads, tokens, tokens]` of a group.
    num_heads: into which the channels are split, head by head.
    scale: of the scores; head_dim^-0.5 by default.

  Returns:
    The same shape in `value`'s dtype; the softmax is computed in at least float32.

  Examples:
    >>> x, windows = jnp.ones((1, 14, 14, 64)), Grouping(size=(14, 14), group=(7, 7))
    >>> jax.eval_shape(lambda x: grouped_attention(x, x, x, windows, num_heads=2), x).shape
    (1, 14, 14, 64)
  """
  pays = bias is not None and kernel_pays(query, grouping, num_heads)
  out = dispatch.by_platform(
    *(grouping.pad(x) for x in (query, key, value)),
    bias,
    cpu=cpu.grouped_attention,
    tpu=tpu.grouped_attention if pays else None,
    xla=reference.grouped_attention,
    grouping=grouping,
    num_heads=num_heads,
    scale=(query.shape[-1] // num_heads) ** -0.5 if scale is None else scale,
  )
  return grouping.crop(out)


def kernel_pays(query: jax.Array, grouping: Grouping, num_heads: int) -> bool:
  """Whether a TPU is faster with the kernel, by static estimates of the compiler."""
  tokens = tpu.strip_tokens(grouping)
  return query.dtype == jnp.bfloat16 and biased.fits(query, (num_heads, tokens, tokens))
