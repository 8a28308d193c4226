"""ATFuse: fuses an infrared and a visible image by alternating cross-attention.

Source: "Rethinking Cross-Attention for Infrared and Visible Image Fusion" (arXiv 2401.11675), and
its code (songlei-xiong/ATFuse), which this follows; docs/atfuse.md lists the differences.

The features of the visible image first take in what distinguishes the infrared ones (DIIM), then
what they have in common with the visible and with the infrared ones, in turn (ACIIM). A decoder
makes one image of the result.
"""

from typing import Any

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.attention import information_injection
from crossattn_jax.layers import (
  batch_norm,
  convolution,
  depthwise_conv,
  initializers,
  linear,
  module,
)
from crossattn_jax.models import registry
from crossattn_jax.models.parts import checks
from crossattn_jax.models.parts.types import Features

# Both images are padded to multiples of this size, though the network needs multiples of two only.
STRIDE = 4

_LEVELS = 255


def _scale_init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
  return 1 + initializers.linear(key, shape, dtype)


def _masked(x: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Zeros, as a convolution pads, beyond an image that is smaller than its array."""
  return x if mask is None else jnp.where(mask[..., None], x, 0)


def _convolution(
  x: jax.Array, channels: int, name: str, *, stride: int = 1, **kwargs: Any
) -> jax.Array:
  kwargs = {'kernel_init': initializers.linear, 'bias_init': nn.initializers.zeros, **kwargs}
  conv = convolution.convolution(
    x.shape[-1], channels, 3, stride=stride, padding=1, name=name, **kwargs
  )
  return parallel.constrain(conv(x), 'batch', 'height', 'width', 'channels')


class Stem(module.Module):
  """From levels to features at half the size: convolution, batch norm, hard swish.

  Attributes:
    channels: of the result.
  """

  channels: int

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, bands]` to half of height and width, rounded up."""
    x = _convolution(image, self.channels, 'conv', stride=2, use_bias=False, **self.types)
    x = batch_norm.BatchNorm(scale_init=_scale_init, name='norm', **self.types)(x, train)
    return nn.hard_swish(x)


class PatchEmbedding(module.Module):
  """Depthwise convolution, linear map, batch norm and hard swish at one resolution."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape."""
    init = {'kernel_init': initializers.linear, 'use_bias': False}
    x = depthwise_conv.DepthwiseConv(3, name='depthwise', **init, **self.types)(x)
    x = linear.Dense(x.shape[-1], name='pointwise', **init, **self.types)(x)
    x = batch_norm.BatchNorm(scale_init=_scale_init, name='norm', **self.types)(x, train)
    return nn.hard_swish(x)


class Upsampling(module.Module):
  """Joins fused features with those of the first injection and doubles their size.

  Attributes:
    feature_sum: whether both maps are added, or else concatenated, before the first convolution.
  """

  feature_sum: bool = True

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    skip: jax.Array,
    half_mask: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """Maps two `[batch, height, width, channels]` to `[batch, 2 height, 2 width, channels / 2]`.

    Args:
      x: fused features.
      skip: of the same shape.
      half_mask: bool `[batch, height, width]`, False beyond the image; None where it fills its
        array.
      mask: the same at twice the size.
    """
    channels = x.shape[-1]
    joined = x + skip if self.feature_sum else jnp.concatenate([x, skip], axis=-1)
    joined = _convolution(_masked(joined, half_mask), channels, 'join', **self.types) + x
    wide = _convolution(_masked(joined, half_mask), 2 * channels, 'expand', **self.types)
    # Pixel shuffle.
    large = rearrange(wide, 'b y x (c i j) -> b (y i) (x j) c', i=2, j=2)
    return _convolution(_masked(nn.relu(large), mask), channels // 2, 'refine', **self.types)


class ResidualHead(module.Module):
  """A convolution, and a second one of its rectified result added to it.

  Attributes:
    channels: of the result.
  """

  channels: int

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Maps `[batch, height, width, channels_in]` to the same size.

    Args:
      x: a map.
      mask: bool `[batch, height, width]`, False beyond the image; None where it fills its array.
    """
    first = _convolution(_masked(x, mask), self.channels, 'conv1', **self.types)
    return _convolution(_masked(nn.relu(first), mask), self.channels, 'conv2', **self.types) + first


class ATFuse(module.Module):
  """Fuses pairs of registered images of one band.

  Attributes:
    image_size: (height, width) of the training crops; any other size does.
    width: channels of the features.
    num_heads: of the injections.
    mlp_ratio: hidden width of their MLPs per channel.
    feature_sum: whether upsampling adds both of its maps, or else concatenates them.
    attention: 'factorized' (the code) or 'softmax' (the paper's equation).
    clamp_in_training: whether results are clamped to [0, 255] in training too, as published:
      saturated pixels then have no gradient.
    unused_parameters: whether to hold also what the original has and never uses, in the collection
      'unused', so that its checkpoints are kept whole.
    dtype: of the computation, None for the inputs' and parameters' common type. Decoder and result
      are computed in at least float32: bfloat16 has no fractions of the higher levels.
  """

  image_size: tuple[int, int] = (128, 128)
  width: int = 64
  num_heads: int = 4
  mlp_ratio: float = 3
  feature_sum: bool = True
  attention: information_injection.Attention = 'factorized'
  clamp_in_training: bool = True
  unused_parameters: bool = False

  def __post_init__(self):
    if self.width % self.num_heads or self.width % 4:
      raise ValueError(
        f'width={self.width} must be a multiple of 4 and of num_heads={self.num_heads}'
      )
    checks.check_choices(self, attention=information_injection.ATTENTIONS)
    super().__post_init__()

  @nn.compact
  def __call__(
    self,
    visible: jax.Array,
    infrared: jax.Array,
    train: bool = False,
    size: jax.Array | None = None,
  ) -> tuple[jax.Array, Features]:
    """Fuses pairs of images.

    Args:
      visible: luma in 0..255, not normalised, `[batch, height, width, 1]`.
      infrared: the same of the other image.
      train: whether batch norms use the batch, whose statistics go into the collection
        'batch_stats' where that is mutable.
      size: (height, width) of each image, int32 `[batch, 2]`, where they are smaller than their
        arrays, of which they fill the upper left; the arrays' height and width must then be
        multiples of 4. The result is that of the images alone, and 0 beyond them.

    Returns:
      The fused image, luma in 0..255 in at least float32, of the images' shape, and features, at
      half the size of the images padded to multiples of 4 at their upper and left sides:
        'visible', 'infrared': of each image, `[batch, rows, columns, width]`.
        'discrepancy', 'common_0', 'common_1': after each injection, likewise.
        'weights/discrepancy', 'weights/common_0', 'weights/common_1': the share of each position of
          the map that is injected, `[batch, rows, columns]`; without the attention 'softmax'.

    Raises:
      ValueError: shapes or dtypes are not as above, or `size` is given in training.
    """
    self._check(visible, infrared, train, size)
    wide_dtype = None if self.dtype is None else jnp.promote_types(self.dtype, jnp.float32)
    wide = {'dtype': wide_dtype, 'param_dtype': self.param_dtype}
    frame = _Frame(visible.shape[1:3], size)
    half_mask, mask = frame.mask(2), frame.mask(1)

    maps = {}
    for name, image in (('infrared', infrared), ('visible', visible)):
      x = Stem(self.width, name=f'stem_{name}', **self.types)(frame.pad(image), train)
      embedding = PatchEmbedding(name=f'patch_embedding_{name}', **self.types)
      maps[name] = embedding(_masked(x, half_mask), train)

    features: Features = dict(maps)
    x = maps['visible']
    for name, injected in (
      ('discrepancy', 'infrared'),
      ('common_0', 'visible'),
      ('common_1', 'infrared'),
    ):
      x, weights = information_injection.InformationInjection(
        num_heads=self.num_heads,
        mlp_ratio=self.mlp_ratio,
        injection=name.split('_')[0],
        attention=self.attention,
        name=name,
        **self.types,
      )(x, maps[injected], maps[injected], half_mask)
      features[name] = x
      if self.attention == 'factorized':
        features[f'weights/{name}'] = weights

    decoder = Upsampling(self.feature_sum, name='decoder', **wide)
    x = decoder(x, features['discrepancy'], half_mask, mask)
    x = ResidualHead(self.width // 4, name='reconstruction_0', **wide)(x, mask)
    x = ResidualHead(visible.shape[-1], name='reconstruction_1', **wide)(x, mask)
    x = frame.crop(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    if self.unused_parameters:
      for key, shape in self.unused_shapes().items():
        self.variable('unused', key, jnp.zeros, shape, self.param_dtype)
    return jnp.clip(x, 0, _LEVELS) if self.clamp_in_training or not train else x, features

  @nn.nowrap
  def attention_maps(self, features: Features) -> dict[str, jax.Array]:
    """Returns which positions' values each injection sums up, over the padded image.

    Args:
      features: as `__call__` returns them.

    Returns:
      Maps `[batch, rows, columns]` by the injection.
    """
    titles = {
      'discrepancy': '1. taken from infrared: what differs',
      'common_0': '2. taken from visible: what both share',
      'common_1': '3. taken from infrared: what both share',
    }
    return {
      title: features[f'weights/{name}']
      for name, title in titles.items()
      if f'weights/{name}' in features
    }

  @nn.nowrap
  def unused_shapes(self) -> dict[str, tuple[int, ...]]:
    """Shapes of what the original has and never uses, by its state-dict keys."""
    width, hidden = self.width, int(self.mlp_ratio * self.width)
    shapes: dict[str, tuple[int, ...]] = {}

    def add(prefix: str, entries: dict[str, tuple[int, ...]]) -> None:
      shapes.update({f'{prefix}.{key}': shape for key, shape in entries.items()})

    def norm() -> dict[str, tuple[int, ...]]:
      names = ('weight', 'bias', 'running_mean', 'running_var')
      return {f'bn.{name}': (width,) for name in names}

    def affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
      return {f'{name}.weight': shape, f'{name}.bias': shape[:1]}

    fuse = affine('fuse', width, 2 * width)
    for name in ('mhca_stage', 'mhca_stage1_2', 'mhca_stage2'):
      add(name, fuse)
    for name in (
      *(f'{image}_attn1' for image in ('ir1', 'ir2', 'vi1', 'vi2')),
      'ir1_attn1_2',
      'ir2_attn1_2',
      'mhca_stage2_2',
    ):
      add(name, fuse)
      for part in ('q', 'k', 'v', 'proj'):
        add(name, affine(f'factoratt_crpe.{part}', width, width))
      add(name, affine('mlp.fc1', hidden, width) | affine('mlp.fc2', width, hidden))
      add(name, affine('norm2', width))
    patch = {
      'patch_conv.dwconv.weight': (width, 1, 3, 3),
      'patch_conv.pwconv.weight': (width, width, 1, 1),
      **{f'patch_conv.{key}': shape for key, shape in norm().items()},
    }
    for stage, bands, indices in ((1, 1, (2, 3)), (2, width, range(5))):
      for i in indices:
        add(f'stem{stage}.{i}', {'conv.weight': (width, bands, 3, 3), **norm()})
        add(f'patch_embed_stages{stage}.patch_embeds.{i}', patch)
    for conv in ('conv1', 'conv2'):
      add('resBlock', affine(conv, width, width, 3, 3))
    head, joined = ('conv11_headSum', width) if self.feature_sum else ('conv11_head', 2 * width)
    add('up_scale2_aggregate', affine(head, width, joined, 3, 3))
    add('up_scale2_aggregate', affine('conv12', 2 * width, width, 3, 3))
    add('up_scale2_aggregate', affine('conv11_tail', width // 2, width // 2, 3, 3))
    return shapes

  @nn.nowrap
  def _check(
    self, visible: jax.Array, infrared: jax.Array, train: bool, size: jax.Array | None
  ) -> None:
    for name, image in (('visible', visible), ('infrared', infrared)):
      if image.ndim != 4 or image.shape[-1] != 1:
        raise ValueError(
          f'ATFuse expects {name} images [batch, height, width, 1], not an array of shape '
          f'{image.shape}; of colour images fuse the luma (data.image_fusion.colors.luma)'
        )
      if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(
          f'ATFuse expects {name} images as floating-point levels in 0..255, not {image.dtype}'
        )
    if visible.shape != infrared.shape:
      raise ValueError(
        f'the visible images have shape {visible.shape}, the infrared ones {infrared.shape}; pairs '
        'must show the same pixels'
      )
    if size is None:
      return
    if train:
      raise ValueError('batch statistics would count what is beyond the images: train without size')
    if any(length % STRIDE for length in visible.shape[1:3]):
      raise ValueError(
        f'with size, height and width of the arrays must be multiples of {STRIDE}, not '
        f'{visible.shape[1:3]}'
      )


class _Frame:
  """Where images lie in arrays that are padded to multiples of 4."""

  def __init__(self, shape: tuple[int, int], size: jax.Array | None):
    self._shape, self._size = shape, size
    if size is None:
      self._margins = tuple(-length % STRIDE for length in shape)
    else:
      self._margins = -size % STRIDE

  def pad(self, x: jax.Array) -> jax.Array:
    """Repeats the upper row and the left column until the images have multiples of 4."""
    if self._size is None:
      top, left = self._margins
      return jnp.pad(x, ((0, 0), (top, 0), (left, 0), (0, 0)), mode='edge')
    last = self._size - 1
    for axis in (0, 1):
      index = jnp.arange(self._shape[axis]) - self._margins[:, axis, None]
      x = self._take(x, jnp.clip(index, 0, last[:, axis, None]), axis)
    return x

  def crop(self, x: jax.Array) -> jax.Array:
    """Undoes `pad`; zeros beyond the images."""
    if self._size is None:
      top, left = self._margins
      return x[:, top:, left:]
    for axis in (0, 1):
      length = self._shape[axis]
      index = jnp.arange(length) + self._margins[:, axis, None]
      x = self._take(x, jnp.minimum(index, length - 1), axis)
    return _masked(x, self._inside(self._size, self._shape))

  def mask(self, stride: int) -> jax.Array | None:
    """Which positions at a stride belong to the padded images; None where all do."""
    if self._size is None:
      return None
    extent = (self._size + self._margins) // stride
    return self._inside(extent, [length // stride for length in self._shape])

  def _inside(self, size: jax.Array, shape: Any) -> jax.Array:
    rows, columns = (jnp.arange(length) < size[:, axis, None] for axis, length in enumerate(shape))
    return rows[:, :, None] & columns[:, None, :]

  def _take(self, x: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    index = index[:, :, None, None] if axis == 0 else index[:, None, :, None]
    return jnp.take_along_axis(x, index, axis=axis + 1)


registry.register('atfuse', ATFuse)
