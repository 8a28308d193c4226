"""A pyramid backbone with a head that labels every pixel."""

from typing import Literal

from flax import linen as nn
import jax

from crossattn_jax.heads import style as style_lib
from crossattn_jax.heads.segmentation import fcn, semantic_fpn, upernet

Features = dict[str, jax.Array]

HEADS = ('semantic_fpn', 'upernet')


class Segmentor(nn.Module):
  """Semantic segmentation in the style of mmsegmentation.

  Attributes:
    backbone: a model whose features hold the maps 'stage_0' to 'stage_3' at strides 4 to 32.
    num_classes: of the labels.
    head: 'semantic_fpn', or 'upernet' with its auxiliary head on the third map.
    channels: of the head; its own where None: 128 of Semantic FPN, 512 of UPerNet.
    pyramid_channels: of Semantic FPN's feature pyramid.
    auxiliary_channels: of UPerNet's auxiliary head; 0 leaves it out.
    dropout_rate: of whole channels before the classifiers.
    dtype: of the head's computation.
    param_dtype: of the head's parameters.
  """

  backbone: nn.Module
  num_classes: int
  head: Literal['semantic_fpn', 'upernet'] = 'semantic_fpn'
  channels: int | None = None
  pyramid_channels: int = 256
  auxiliary_channels: int = 256
  dropout_rate: float = 0.1
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = 'float32'

  def __post_init__(self):
    if self.head not in HEADS:
      raise ValueError(f'head={self.head!r} is not one of {", ".join(HEADS)}')
    super().__post_init__()

  @property
  def image_size(self) -> tuple[int, int]:
    """(height, width) of the backbone's natural input."""
    return self.backbone.image_size

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> tuple[jax.Array, Features]:
    """Labels every pixel.

    Args:
      image: normalised, `[batch, height, width, bands]`.
      train: whether the model drops and batch norms use the batch, whose statistics go into the
        collection 'batch_stats' where that is mutable.

    Returns:
      Logits `[batch, height / 4, width / 4, num_classes]` in at least float32, and the backbone's
      features and:
        'auxiliary_logits': of the auxiliary head, at a sixteenth of the image's size.

    Raises:
      KeyError: the backbone has no such maps.
    """
    _, features = self.backbone(image, train)
    maps = style_lib.stage_maps(features)
    style = style_lib.Style(
      dropout_rate=self.dropout_rate, dtype=self.dtype, param_dtype=self.param_dtype
    )
    features = dict(features)
    if self.head == 'semantic_fpn':
      head = semantic_fpn.SemanticFPN(
        self.num_classes, style, self.pyramid_channels, self.channels or 128, name='decoder'
      )
      return head(maps, train), features
    if self.auxiliary_channels:
      features['auxiliary_logits'] = fcn.FCNHead(
        self.num_classes, style, self.auxiliary_channels, name='auxiliary_head'
      )(maps[2], train)
    head = upernet.UPerHead(self.num_classes, style, self.channels or 512, name='decoder')
    return head(maps, train), features
