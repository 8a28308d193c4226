"""Composites that label every pixel: a pyramid backbone with a head of mmsegmentation.

`create_model('biformer_small+upernet')`; `registry.register_head` says how names and fields of
backbone and head join.
"""

from collections.abc import Sequence

from flax import linen as nn
import jax

from crossattn_jax.heads import style as style_lib
from crossattn_jax.heads.segmentation import fcn, semantic_fpn, upernet
from crossattn_jax.layers import module
from crossattn_jax.models import registry
from crossattn_jax.models.parts.types import Features


class Segmentor(module.Module):
  """A backbone with the heads of a subclass.

  Attributes:
    backbone: a model whose features hold the maps 'stage_0' to 'stage_3' at strides 4 to 32.
    num_classes: of the labels; ADE20K's by default.
    dropout_rate: of whole channels before the classifiers.
  """

  backbone: nn.Module
  num_classes: int = 150
  dropout_rate: float = 0.1

  @property
  def image_size(self) -> tuple[int, int]:
    """(height, width) of the backbone's natural input."""
    return self.backbone.image_size

  @nn.nowrap
  def style(self) -> style_lib.Style:
    """How the heads' convolutions are built."""
    return style_lib.Style(dropout_rate=self.dropout_rate, **self.types)

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
        'auxiliary_logits': of an auxiliary head, at a sixteenth of the image's size.

    Raises:
      KeyError: the backbone has no such maps.
    """
    _, features = self.backbone(image, train)
    logits, more = self.heads(style_lib.stage_maps(features), train)
    return logits, {**features, **more}


class SemanticFPN(Segmentor):
  """A backbone with Semantic FPN.

  Attributes:
    head_channels: of the head.
    pyramid_channels: of the feature pyramid.
  """

  head_channels: int = 128
  pyramid_channels: int = 256

  def heads(self, maps: Sequence[jax.Array], train: bool) -> tuple[jax.Array, Features]:
    """Maps of the stages, finest first, to logits and further features."""
    head = semantic_fpn.SemanticFPN(
      self.num_classes, self.style(), self.pyramid_channels, self.head_channels, name='decoder'
    )
    return head(maps, train), {}


class UPerNet(Segmentor):
  """A backbone with UPerNet, and an auxiliary head on the third map.

  Attributes:
    head_channels: of UPerNet's head.
    auxiliary_channels: of the auxiliary head; 0 leaves it out.
  """

  head_channels: int = 512
  auxiliary_channels: int = 256

  def heads(self, maps: Sequence[jax.Array], train: bool) -> tuple[jax.Array, Features]:
    """Maps of the stages, finest first, to logits and further features."""
    style, features = self.style(), {}
    if self.auxiliary_channels:
      features['auxiliary_logits'] = fcn.FCNHead(
        self.num_classes, style, self.auxiliary_channels, name='auxiliary_head'
      )(maps[2], train)
    head = upernet.UPerHead(self.num_classes, style, self.head_channels, name='decoder')
    return head(maps, train), features


registry.register_head('semantic_fpn', SemanticFPN, strides=(4, 8, 16, 32))
registry.register_head('upernet', UPerNet, strides=(4, 8, 16, 32))
