"""Composites that find objects: a pyramid backbone with a detection head of mmdetection.

`create_model('crossformer_small+retinanet')`; `registry.register_head` says how names and fields of
backbone and head join.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.geometry import anchors as anchor_ops
from crossattn_jax.heads import feature_pyramid
from crossattn_jax.heads import style as style_lib
from crossattn_jax.heads.detection import anchors as anchors_lib
from crossattn_jax.heads.detection import decoding, retinanet, types
from crossattn_jax.layers import module
from crossattn_jax.models import registry
from crossattn_jax.models.parts.types import Features


class Detector(module.Module):
  """A backbone with a feature pyramid and the heads of a subclass.

  A subclass has methods `heads` and `decode`, and says its `anchors`.

  Attributes:
    backbone: a model whose features hold the maps 'stage_0' to 'stage_3' at strides 4 to 32.
    num_classes: of objects; COCO's by default.
    pyramid_channels: of the feature pyramid.
  """

  backbone: nn.Module
  num_classes: int = 80
  pyramid_channels: int = 256

  @property
  def image_size(self) -> tuple[int, int]:
    """(height, width) of the backbone's natural input."""
    return self.backbone.image_size

  @nn.nowrap
  def style(self) -> style_lib.Style:
    """How the heads' convolutions are built."""
    return style_lib.Style(**self.types)

  @nn.compact
  def __call__(
    self,
    image: jax.Array,
    train: bool = False,
    *,
    image_size: jax.Array | None = None,
    truths: types.Truths | None = None,
    key: jax.Array | None = None,
  ) -> tuple[dict[str, jax.Array], Features]:
    """Looks for objects; `detect` says which they are.

    Args:
      image: normalised, `[batch, height, width, bands]`, smaller ones padded with 0 at the bottom
        and on the right.
      train: whether the model drops and batch norms use the batch, whose statistics go into the
        collection 'batch_stats' where that is mutable.
      image_size: (height, width) in pixels of the part that is image, `[batch, 2]` integers; None
        for images without padding.
      truths: the objects, where a second stage is to train on them.
      key: of the second stage's random draws.

    Returns:
      What the heads say, by the names that the subclass documents; and the backbone's features and:
        'pyramid_2', 'pyramid_3', ...: the pyramid's map at stride 4, 8, ...

    Raises:
      KeyError: the backbone has no such maps.
      ValueError: the maps are not those of the anchors.
    """
    if image_size is None:
      image_size = whole_images(image)
    _, features = self.backbone(image, train)
    levels = self.pyramid(style_lib.stage_maps(features), train)
    grid = self.anchors().of_input(image.shape[1:3])
    sizes = tuple(x.shape[1:3] for x in levels)
    if sizes != grid.map_sizes:
      raise ValueError(
        f'images of {image.shape[1]} x {image.shape[2]} pixels have maps of {_sizes(sizes)}, not '
        f'{_sizes(grid.map_sizes)}: take heights and widths that are multiples of '
        f'{grid.anchors.boxes.divisor} (config.dataset.image_size)'
      )
    outputs = self.heads(levels, train, image_size=image_size, truths=truths, key=key)
    named = {
      f'pyramid_{stride.bit_length() - 1}': x
      for stride, x in zip(grid.anchors.strides, levels, strict=True)
    }
    return outputs, {**features, **named}

  def detect(
    self, image: jax.Array, image_size: jax.Array | None = None, **thresholds: Any
  ) -> types.Detections:
    """Finds objects: `model.apply(variables, image, method='detect')`.

    Args:
      image: as for `__call__`.
      image_size: as for `__call__`.
      **thresholds: of `decode`.
    """
    if image_size is None:
      image_size = whole_images(image)
    outputs, features = self(image, image_size=image_size)
    return self.objects(outputs, features, image.shape[1:3], image_size, **thresholds)

  def objects(
    self,
    outputs: Mapping[str, jax.Array],
    features: Features,
    input_size: Sequence[int],
    image_size: jax.Array,
    **thresholds: Any,
  ) -> types.Detections:
    """The second half of `detect`: what was found, of the model's outputs and features."""
    del features  # Where masks are predicted, they are of these.
    return self.decode(outputs, input_size, image_size, **thresholds)


def whole_images(image: jax.Array) -> jax.Array:
  """(height, width), `[batch, 2]` int32, of images `[batch, height, width, bands]`."""
  return jnp.tile(jnp.array(image.shape[1:3], jnp.int32), (len(image), 1))


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
  return ', '.join(f'{height} x {width}' for height, width in sizes)


class RetinaNet(Detector):
  """A backbone with RetinaNet: every anchor of the levels at strides 8 to 128 is classified.

  Its outputs are 'logits' `[batch, anchors, classes]` and 'deltas' `[batch, anchors, 4]`, in at
  least float32, the levels' anchors one after another, finest first.

  Attributes:
    head_channels: of the head's towers.
    head_convs: of each tower.
    anchor_scale: sides of the smallest square anchor, in strides.
    scales_per_octave: anchors of a ratio, up to twice as large.
    anchor_ratios: heights over widths.
  """

  head_channels: int = 256
  head_convs: int = 4
  anchor_scale: float = 4.0
  scales_per_octave: int = 3
  anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)

  @nn.nowrap
  def anchors(self) -> anchors_lib.Anchors:
    """The anchors: `model.anchors().of_input((height, width))` are those of an input."""
    return anchors_lib.Anchors(
      strides=(8, 16, 32, 64, 128),
      scales=anchor_ops.octave_scales(self.anchor_scale, self.scales_per_octave),
      ratios=tuple(self.anchor_ratios),
    )

  def pyramid(self, maps: Sequence[jax.Array], train: bool) -> tuple[jax.Array, ...]:
    """The backbone's maps, finest first, to the levels of the pyramid."""
    return feature_pyramid.FeaturePyramid(
      self.pyramid_channels, self.style(), extra_levels=2, extra='input', name='pyramid'
    )(maps[1:], train)

  def heads(self, levels: Sequence[jax.Array], train: bool, **unused: Any) -> dict[str, jax.Array]:
    """Maps the levels of the pyramid to the outputs."""
    del train, unused
    return retinanet.RetinaNetHead(
      self.num_classes,
      self.anchors().per_cell,
      self.style(),
      self.head_channels,
      self.head_convs,
      name='head',
    )(levels)

  @nn.nowrap
  def decode(
    self,
    outputs: Mapping[str, jax.Array],
    input_size: Sequence[int],
    image_size: jax.Array,
    **thresholds: Any,
  ) -> types.Detections:
    """The objects that the outputs describe.

    Args:
      outputs: of the model.
      input_size: (height, width) of its input.
      image_size: (height, width) in pixels of the part of it that is image, `[batch, 2]`.
      **thresholds: `score_threshold`, `iou_threshold`, `max_boxes`, `max_per_level`, as in
        `decoding.decode_retinanet`.
    """
    grid = self.anchors().of_input(input_size)
    return decoding.decode_retinanet(outputs, grid, image_size, **thresholds)


registry.register_head('retinanet', RetinaNet, strides=(4, 8, 16, 32))
