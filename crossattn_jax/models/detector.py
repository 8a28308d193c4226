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
from crossattn_jax.heads.detection import decoding, mask_head, region_head, retinanet, rpn, types
from crossattn_jax.heads.detection import regions as regions_lib
from crossattn_jax.layers import batch_norm, module
from crossattn_jax.models import registry
from crossattn_jax.models.parts.types import Features


class Detector(module.Module):
  """A backbone with a feature pyramid and the heads of a subclass.

  A subclass has methods `pyramid`, `heads` and `decode`, and says its `anchors`.

  Attributes:
    backbone: a model whose features hold the maps 'stage_0' to 'stage_3' at strides 4 to 32.
    num_classes: of objects; COCO's by default.
    pyramid_channels: of the feature pyramid.
    frozen_norm: whether the backbone's batch norms use their running statistics in training too, as
      is usual where a device has few images; their scales and biases train.
  """

  backbone: nn.Module
  num_classes: int = 80
  pyramid_channels: int = 256
  frozen_norm: bool = False

  @property
  def image_size(self) -> tuple[int, int]:
    """(height, width) of the backbone's natural input."""
    return self.backbone.image_size

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
    with batch_norm.frozen(lambda _: self.frozen_norm):
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
    outputs = self.heads(levels, grid=grid, image_size=image_size, truths=truths, key=key)
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
  return jnp.broadcast_to(jnp.array(image.shape[1:3], jnp.int32), (image.shape[0], 2))


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
      self.pyramid_channels, extra_levels=2, extra='input', name='pyramid', **self.types
    )(maps[1:], train)

  def heads(self, levels: Sequence[jax.Array], **unused: Any) -> dict[str, jax.Array]:
    """Maps the levels of the pyramid to the outputs."""
    del unused
    return retinanet.RetinaNetHead(
      self.num_classes,
      self.anchors().per_cell,
      self.head_channels,
      self.head_convs,
      name='head',
      **self.types,
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


class MaskRCNN(Detector):
  """A backbone with Mask R-CNN: proposals at strides 4 to 64, whose regions are looked at again.

  Its outputs are, of the first stage, `RegionProposalHead`'s 'objectness' `[batch, anchors]` and
  'anchor_deltas' `[batch, anchors, 4]`; of the second, in at least float32:
    'proposals': `[batch, regions, 4]`, the regions, best first, 0 in padding.
    'proposal_scores': `[batch, regions]`, their probabilities, -1 in padding; not in training.
    'class_logits': `[batch, regions, num_classes + 1]`, the last class is the background.
    'box_deltas': `[batch, regions, num_classes, 4]`, of every class's box from the region.
  Where it trains on truths, the regions are a sample, as `regions.sample` returns it, and there are
    'assigned': `[batch, regions]`, the truth of every region.
    'mask_logits': `[batch, positives, side, side, num_classes]` of the sample's first regions,
      those which may have a truth.

  Attributes:
    head_channels: of the box head's hidden layers.
    mask_channels: of the mask head; 0 leaves it out, which makes it Faster R-CNN.
    mask_convs: of the mask head.
    box_side: cells of a region's map for the box head.
    mask_side: cells of a region's map for the mask head, whose masks have twice as many.
    anchor_scales: sides of a square anchor, in strides.
    anchor_ratios: heights over widths.
    candidates: boxes of a level of the pyramid that may become proposals.
    training_candidates: the same where it trains on truths.
    max_proposals: of an image.
    proposal_iou_threshold: a proposal leaves that overlaps a better one of its level by more.
    sampled_regions: of an image, on which the second stage trains.
    positive_fraction: the part of them that may have a truth.
    low_quality: whether a truth takes the regions that overlap it best from another truth, as in
      mmdetection's Mask R-CNN; its Faster R-CNN does without.
  """

  head_channels: int = 1024
  mask_channels: int = 256
  mask_convs: int = 4
  box_side: int = 7
  mask_side: int = 14
  anchor_scales: tuple[float, ...] = (8.0,)
  anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
  candidates: int = 1000
  training_candidates: int = 2000
  max_proposals: int = 1000
  proposal_iou_threshold: float = 0.7
  sampled_regions: int = 512
  positive_fraction: float = 0.25
  low_quality: bool = True

  def setup(self):
    """Both stages' heads, which several methods call."""
    self.proposal_head = rpn.RegionProposalHead(
      self.anchors().per_cell, self.pyramid_channels, **self.types
    )
    self.region_head = region_head.RegionHead(
      self.num_classes,
      self.head_channels,
      self.mask_channels,
      self.mask_convs,
      self.box_side,
      self.mask_side,
      **self.types,
    )

  @nn.nowrap
  def anchors(self) -> anchors_lib.Anchors:
    """The anchors: `model.anchors().of_input((height, width))` are those of an input."""
    return anchors_lib.Anchors(
      strides=(4, 8, 16, 32, 64),
      scales=tuple(self.anchor_scales),
      ratios=tuple(self.anchor_ratios),
    )

  def pyramid(self, maps: Sequence[jax.Array], train: bool) -> tuple[jax.Array, ...]:
    """The backbone's maps, finest first, to the levels of the pyramid."""
    return feature_pyramid.FeaturePyramid(
      self.pyramid_channels, extra_levels=1, name='pyramid', **self.types
    )(maps, train)

  def heads(
    self,
    levels: Sequence[jax.Array],
    *,
    grid: anchors_lib.AnchorGrid,
    image_size: jax.Array,
    truths: types.Truths | None,
    key: jax.Array | None,
  ) -> dict[str, jax.Array]:
    """Maps the levels of the pyramid to the outputs."""
    outputs = self.proposal_head(levels)
    regions, scores = rpn.propose(
      outputs,
      grid,
      image_size,
      max_per_level=self.candidates if truths is None else self.training_candidates,
      max_boxes=self.max_proposals,
      iou_threshold=self.proposal_iou_threshold,
      is_candidate=grid.valid(image_size),
    )
    if truths is None:
      outputs |= {'proposals': regions, 'proposal_scores': scores}
    else:
      if key is None:
        raise ValueError('to train on truths, the second stage draws regions: pass a key')
      regions, assigned = regions_lib.sample(
        key,
        regions,
        truths,
        number=self.sampled_regions,
        positive_fraction=self.positive_fraction,
        low_quality=self.low_quality,
      )
      outputs |= {'proposals': regions, 'assigned': assigned}
    outputs['class_logits'], outputs['box_deltas'] = self.region_head.boxes(levels[:4], regions)
    if self.mask_channels and (truths is not None or self.is_initializing()):
      positives = regions[:, : int(self.sampled_regions * self.positive_fraction)]
      outputs['mask_logits'] = self.region_head.masks(levels[:4], positives)
    return outputs

  def masks(self, features: Features, boxes: jax.Array, labels: jax.Array) -> jax.Array:
    """The masks of objects.

    Args:
      features: of the model, those of the pyramid.
      boxes: `[batch, count, 4]`, corners in pixels of the input.
      labels: `[batch, count]`, below 0 in padding.

    Returns:
      `[batch, count, side, side]`, the probability of every cell of a box that it belongs to the
      object; 0 in padding.
    """
    levels = [features[f'pyramid_{level}'] for level in range(2, 6)]
    logits = self.region_head.masks(levels, boxes)
    probabilities = nn.sigmoid(mask_head.of_class(logits, labels))
    return jnp.where(labels[..., None, None] < 0, 0, probabilities)

  @nn.nowrap
  def decode(
    self,
    outputs: Mapping[str, jax.Array],
    input_size: Sequence[int],
    image_size: jax.Array,
    **thresholds: Any,
  ) -> types.Detections:
    """The objects that the outputs describe, without masks.

    Args:
      outputs: of the model.
      input_size: (height, width) of its input.
      image_size: (height, width) in pixels of the part of it that is image, `[batch, 2]`.
      **thresholds: `score_threshold`, `iou_threshold`, `max_boxes`, as in `regions.decode`.
    """
    del input_size
    logits, deltas, regions = (outputs[x] for x in ('class_logits', 'box_deltas', 'proposals'))
    return regions_lib.decode(logits, deltas, regions, image_size, **thresholds)

  def objects(
    self,
    outputs: Mapping[str, jax.Array],
    features: Features,
    input_size: Sequence[int],
    image_size: jax.Array,
    **thresholds: Any,
  ) -> types.Detections:
    """The second half of `detect`: what was found, with masks where the model has a mask head."""
    found = self.decode(outputs, input_size, image_size, **thresholds)
    if not self.mask_channels:
      return found
    return found.replace(masks=self.masks(features, found.boxes, found.labels))


registry.register_head('retinanet', RetinaNet, strides=(4, 8, 16, 32))
registry.register_head('mask_rcnn', MaskRCNN, strides=(4, 8, 16, 32))
registry.register_head(
  'faster_rcnn', MaskRCNN, strides=(4, 8, 16, 32), mask_channels=0, low_quality=False
)
