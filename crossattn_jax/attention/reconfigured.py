"""Attention of three kinds with one set of parameters, of patches and of detection tokens.

Source: ViDT, Song et al. 2022 (arXiv 2110.03921), section 3.1, the reconfigured attention module.
"""

from flax import linen as nn
import jax

from crossattn_jax import kernels, parallel
from crossattn_jax.attention import dynamic_position_bias, joint_attention
from crossattn_jax.layers import initializers, linear, module


def shifted_windows(size: tuple[int, int], window: int, shift: int) -> kernels.Grouping:
  """How a map is cut into windows that begin `shift` rows and columns later (Swin).

  Of the windows that hang over the map, its tokens alone attend to each other: what the originals
  get by rolling the map and a mask of -100.

  Args:
    size: rows and columns of the map; `window` divides both.
    window: tokens on a side of a window.
    shift: from 0 to `window - 1`.
  """
  hangs = (-shift % window, shift)
  return kernels.Grouping(tuple(size), (window, window), padding=(hangs, hangs))


class ReconfiguredAttention(module.Module):
  """Patches attend within windows, detection tokens to each other and all patches (section 3.1).

  All take query, key and value from one linear map, and go through one linear map in the end.

  Attributes:
    num_heads: must divide the channels.
    window: tokens on a side of a window.
    shift: of the windows, in tokens.
    qkv_bias: whether the projections to query, key and value have biases.

  Examples:
    >>> attention = ReconfiguredAttention(num_heads=2)
    >>> patches, det = jnp.ones((1, 14, 14, 64)), jnp.ones((1, 10, 64))
    >>> result, _ = jax.eval_shape(attention.init_with_output, jax.random.key(0), patches, det)
    >>> [x.shape for x in result]
    [(1, 14, 14, 64), (1, 10, 64)]
  """

  num_heads: int
  window: int = 7
  shift: int = 0
  qkv_bias: bool = True

  @nn.compact
  def __call__(
    self,
    patches: jax.Array,
    det: jax.Array,
    position: jax.Array | None = None,
    padding: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Attends from patches and from detection tokens.

    Args:
      patches: `[batch, height, width, channels]`; the window divides height and width.
      det: `[batch, tokens, channels]`, detection tokens with their positions.
      position: `[batch, rows, columns, channels]` of the first rows and columns of patches, to
        which detection tokens then attend too, positions added; None where they do not.
      padding: bool `[batch, rows, columns]`, True for patches that detection tokens do not see.

    Returns:
      Patches and detection tokens, in their shapes.

    Raises:
      ValueError: the heads do not divide the channels.
    """
    channels, heads, window = patches.shape[-1], self.num_heads, self.window
    project = linear.Projections(
      3,
      heads,
      channels,
      use_bias=self.qkv_bias,
      name='qkv',
      **linear.TORCH,
      **self.types,
    )
    table = self.param(
      'relative_position_bias',
      initializers.linear,
      ((2 * window - 1) ** 2, heads),
      self.param_dtype,
    )
    of_windows = kernels.grouped_attention(
      *(
        parallel.constrain(x, 'batch', 'height', 'width', ('heads', heads))
        for x in project(patches)
      ),
      shifted_windows(patches.shape[1:3], window, self.shift),
      dynamic_position_bias.relative_position_bias(
        table.reshape(2 * window - 1, 2 * window - 1, heads)
      ),
      num_heads=heads,
    )

    query, key, value = (linear.split_heads(x, heads) for x in project(det))
    if position is None:
      of_det = kernels.dot_product_attention(query, key, value)
    else:
      rows, columns = position.shape[1:3]
      seen = patches[:, :rows, :columns] + position.astype(patches.dtype)
      patch_key, patch_value = (
        linear.split_heads(x, heads).reshape(x.shape[0], -1, heads, channels // heads)
        for x in project(seen, slice(1, 3))
      )
      visible = None if padding is None else ~padding.reshape(padding.shape[0], -1)
      of_det, _ = joint_attention.joint_attention(
        query, [patch_key, key], [patch_value, value], [visible, None]
      )
    out = linear.Dense(channels, axis=(-2, -1), name='out', **linear.TORCH, **self.types)
    return out(linear.split_heads(of_windows, heads)), out(of_det)
