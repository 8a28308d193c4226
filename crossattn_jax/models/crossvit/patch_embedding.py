"""Patch embeddings: an image becomes a sequence of tokens, row by row."""

from einops import rearrange
from flax import linen as nn
import jax

from crossattn_jax.layers import convolution, module

# patch size -> (kernel, stride, padding) of the three convolutions
_CONVOLUTIONS = {
  12: ((7, 4, 3), (3, 3, 0), (3, 1, 1)),
  16: ((7, 4, 3), (3, 2, 1), (3, 2, 1)),
}


class LinearPatchEmbedding(module.Module):
  """One linear map per non-overlapping patch (Dosovitskiy et al. 2021, arXiv 2010.11929).

  Attributes:
    patch_size: side of a patch in pixels; pixels beyond the last whole patch are not seen.
    channels: width of a token.
  """

  patch_size: int
  channels: int

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, bands]` to `[batch, patches, channels]`."""
    del train
    project = convolution.convolution(
      image.shape[-1],
      self.channels,
      self.patch_size,
      stride=self.patch_size,
      name='conv',
      **self.types,
    )
    return rearrange(project(image), 'b h w c -> b (h w) c')


class ConvPatchEmbedding(module.Module):
  """Three convolutions with ReLU between them, the "dagger" of CrossViT (arXiv 2103.14899, 4.1).

  Attributes:
    patch_size: 12 or 16; the original defines no other.
    channels: width of a token; the first two convolutions have a quarter and a half of it.
  """

  patch_size: int
  channels: int

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, bands]` to `[batch, patches, channels]`."""
    del train
    if self.patch_size not in _CONVOLUTIONS:
      raise ValueError(
        f'the three-convolution embedding is defined for patch sizes {sorted(_CONVOLUTIONS)}, not '
        f"{self.patch_size}; choose one of them or patch_embedding='linear'"
      )
    x = image
    widths = (self.channels // 4, self.channels // 2, self.channels)
    for i, (channels, (side, stride, padding)) in enumerate(
      zip(widths, _CONVOLUTIONS[self.patch_size], strict=True)
    ):
      if i > 0:
        x = nn.relu(x)
      x = convolution.convolution(
        x.shape[-1], channels, side, stride=stride, padding=padding, name=f'conv_{i}', **self.types
      )(x)
    return rearrange(x, 'b h w c -> b (h w) c')
