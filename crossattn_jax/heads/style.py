"""What the heads of one code base have in common: norms, initialisation, resizing, boxes."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.layers import conv_norm, convolution, resize

# He et al. 2015 (arXiv 1502.01852) by the outputs: std sqrt(2 / (channels * side^2)).
KAIMING_FAN_OUT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
_leaky_relu = functools.partial(nn.leaky_relu, negative_slope=0.01)


@dataclasses.dataclass(frozen=True)
class Style:
  """How a head's convolutions are normalised, activated and initialised.

  Attributes:
    corner_aligned: the style of CCNet's repository: leaky ReLU, torch's initialisation, and
      resizing that aligns the centres of the pixels in the corners. Otherwise that of
      mmsegmentation: ReLU, Kaiming initialisation, and resizing that aligns their edges.
    activated_norm: whether norms are those of Inplace-ABN; see `BatchNorm`.
    dropout_rate: of whole channels before the classifier.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  corner_aligned: bool = False
  activated_norm: bool = False
  dropout_rate: float = 0.1
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  @property
  def types(self) -> dict[str, Any]:
    """The two dtypes, as keyword arguments of a module."""
    return {'dtype': self.dtype, 'param_dtype': self.param_dtype}

  def unit(self, channels: int, side: int = 1, **kwargs: Any) -> conv_norm.ConvNorm:
    """A convolution with norm and activation; further arguments are `ConvNorm`'s."""
    if self.corner_aligned:
      kwargs = {'activation': _leaky_relu, **kwargs}
    else:
      kwargs = {'kernel_init': KAIMING_FAN_OUT, **kwargs}
    return conv_norm.ConvNorm(
      channels, side, absolute_scale=self.activated_norm, **kwargs, **self.types
    )

  def classify(self, x: jax.Array, num_classes: int, train: bool) -> jax.Array:
    """Drops whole channels and maps `[..., channels]` to logits in at least float32.

    To be called in a compact method: the convolution is called 'classifier'.
    """
    x = nn.Dropout(self.dropout_rate, broadcast_dims=(1, 2), deterministic=not train)(x)
    if self.corner_aligned:
      conv = convolution.convolution(x.shape[-1], num_classes, 1, name='classifier', **self.types)
    else:
      init = nn.initializers.normal(0.01)
      conv = nn.Conv(num_classes, (1, 1), kernel_init=init, name='classifier', **self.types)
    logits = conv(x)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

  def resize(self, x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Resizes `[..., height, width, channels]` bilinearly to `size`."""
    return resize.resize(x, size, 'bilinear', align_corners=self.corner_aligned)


@dataclasses.dataclass(frozen=True)
class Boxes:
  """What boxes and anchors are in one code base.

  Attributes:
    center_offset: of an anchor's centre from the upper left corner of its cell, in cells.
    inclusive: whether a box ends with its last pixel, so that widths are `x_max - x_min + 1`.
    divisor: an image has anchors up to the next multiple of so many pixels: the size to which it
      is padded before it gets into a batch.
  """

  center_offset: float = 0.0
  inclusive: bool = False
  divisor: int = 32


MMDETECTION = Boxes()
YOLOV5 = Boxes(center_offset=0.5)


def stage_maps(features: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
  """Returns the maps of a backbone's four stages, finest first.

  Args:
    features: of a backbone.

  Raises:
    KeyError: the model has no such features.
  """
  try:
    return tuple(features[f'stage_{s}'] for s in range(4))
  except KeyError as error:
    raise KeyError(
      "a backbone's features need the maps 'stage_0' to 'stage_3', these have "
      f'{", ".join(sorted(features))}'
    ) from error
