"""The sketch localizer: the photo looks at the sketch, detection tokens look at the photo.

Source: Locformer, "Query-guided Attention in Vision Transformers for Localizing Objects Using a
Single Sketch", Tripathi et al. 2024 (arXiv 2303.08784), in the form of its code, on the detector of
ViDT, Song et al. 2022 (arXiv 2110.03921).
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import sketch_guided
from crossattn_jax.heads import cross_scale_fusion
from crossattn_jax.heads.detection import deformable_decoder, queries, types
from crossattn_jax.layers import module, projection_norm, resize
from crossattn_jax.models import detector, registry
from crossattn_jax.models.backbones import resnet
from crossattn_jax.models.parts import checks
from crossattn_jax.models.parts.types import Features
from crossattn_jax.models.sketch_localizer import backbone, refinement


class SketchLocalizer(module.Module):
  """Finds in photos the objects that sketches show.

  Attributes:
    image_size: (height, width) of the natural input; any other size will do.
    num_channels: of photos and sketches.
    sketch_size: height and width of the natural sketches; any multiples of 32 will do.
    num_classes: of the logits. Class 1 says that a query is what the sketch shows; no query is ever
      to be another one.
    width: channels of the first stage of the backbone, a multiple of 32.
    depths: blocks of its stages.
    num_heads: of its stages.
    window: of its attention, in patches.
    mlp_ratio: hidden width of its MLPs per channel.
    drop_path_rate: of its last block.
    det_stages: where detection tokens look at patches.
    num_queries: detection tokens, and so the most objects of an image.
    channels: of everything behind the backbone, a multiple of 32.
    num_layers: of the decoder.
    decoder_heads: of its attentions.
    num_points: at which a head looks on every map.
    decoder_hidden: width of its networks.
    drop_rate: of its dropouts.
    sketch_fusion: of several sketches: 'mean' of their features, or 'trainable' by attention.
    fusion_heads: of all attentions between photo and sketch.
    fusion_hidden: width of the networks behind them.
    fusion_drop_rate: of their dropouts.
    first_level: of the decoder that the sketch refines; level 0 is of the queries before it.
    prior: the probability of every class at first.
    sketch_depths: bottlenecks of the stages of the sketches' ResNet.
    sketch_widths: channels inside these; the stem has the width of the first.
    sketch_output_stride: pixels per cell of this ResNet's last map.
    cross_scale_fusion: whether the maps that the decoder looks at know all coarser ones.
    iou_head: whether to say of every query how well its box fits.
    remat: whether the backward pass recomputes each block instead of storing it.
    scan_blocks: whether blocks that repeat are one loop.
  """

  image_size: tuple[int, int] = (800, 1056)
  num_channels: int = 3
  sketch_size: int = 224
  num_classes: int = 2
  width: int = 96
  depths: tuple[int, ...] = (2, 2, 6, 2)
  num_heads: tuple[int, ...] = (3, 6, 12, 24)
  window: int = 7
  mlp_ratio: float = 4
  drop_path_rate: float = 0.2
  det_stages: tuple[int, ...] = (3,)
  num_queries: int = 100
  channels: int = 256
  num_layers: int = 6
  decoder_heads: int = 8
  num_points: int = 4
  decoder_hidden: int = 1024
  drop_rate: float = 0.1
  sketch_fusion: sketch_guided.Fusion = 'mean'
  fusion_heads: int = 8
  fusion_hidden: int = 1024
  fusion_drop_rate: float = 0.4
  first_level: int = 3
  prior: float = 0.01
  sketch_depths: tuple[int, ...] = (3, 4, 6, 3)
  sketch_widths: tuple[int, ...] = (64, 128, 256, 512)
  sketch_output_stride: int = 32
  cross_scale_fusion: bool = False
  iou_head: bool = False
  remat: bool = False
  scan_blocks: bool = False

  def __post_init__(self):
    checks.check_choices(self, sketch_fusion=sketch_guided.FUSIONS)
    checks.check_lengths(self, 'depths', 'stages', 'num_heads')
    checks.check_lengths(self, 'sketch_depths', "stages of the sketches' ResNet", 'sketch_widths')
    if self.num_classes < 2:
      raise ValueError(f'num_classes={self.num_classes}: class 1 is what the sketch shows, so 2')
    if not set(self.det_stages) <= set(range(len(self.depths))):
      raise ValueError(f'det_stages={self.det_stages}: the stages are 0 to {len(self.depths) - 1}')
    for field in ('width', 'channels'):
      if getattr(self, field) % projection_norm.GROUPS:
        raise ValueError(
          f'{field}={getattr(self, field)} is no multiple of {projection_norm.GROUPS}, the number '
          'of groups that norms divide channels into'
        )
    super().__post_init__()

  @nn.compact
  def __call__(
    self,
    image: jax.Array,
    sketches: jax.Array,
    train: bool = False,
    *,
    image_size: jax.Array | None = None,
  ) -> tuple[dict[str, jax.Array], Features]:
    """Looks for what the sketches show; `detect` says which objects that are.

    Args:
      image: photos, normalised, `[batch, height, width, num_channels]`, smaller ones padded with 0
        at the bottom and on the right.
      sketches: of one object, in the photos' normalisation, `[batch, sketches, height, width,
        num_channels]`.
      train: whether the model drops, and batch norms of the sketches' ResNet use the batch, whose
        statistics go into the collection 'batch_stats' where that is mutable.
      image_size: (height, width) in pixels of the part that is image, `[batch, 2]` integers; None
        for images without padding.

    Returns:
      What is said of every query, level by level, of the detection tokens as they came and of each
      layer of the decoder, in at least float32:
        'logits': `[batch, levels, queries, num_classes]`.
        'boxes': `[batch, levels, queries, 4]`, centres and sizes as fractions of the part of the
          image that is not padding.
        'ious': `[batch, levels, queries]`, the logits of the overlap of box and object, where the
          model has `iou_head`.
      And features:
        'stage_0', ..., 'stage_3': maps of the backbone at strides 4, 8, 16 and 32.
        'merged': the map at stride 64.
        'attention_0', ...: how much each cell of the photo looks at each cell of the sketch before
          a stage, the mean of all heads, `[batch, cells, cells of the sketch]`; `attention_maps`
          says which of them look at lines.
        'map_0', ...: the maps that the decoder looks at, `[batch, rows, columns, channels]`.
        'queries': `[batch, levels, queries, channels]`, as they were decoded.

    Raises:
      ValueError: shapes or dtypes are not as above.
    """
    self._check(image, sketches)
    if image_size is None:
      image_size = detector.whole_images(image)
    padding = padding_mask(image_size, image.shape[1:3])
    searched = self._encode(sketches, train)
    seen = backbone.SketchGuidedSwin(
      self.width,
      self.depths,
      self.num_heads,
      self.window,
      self.mlp_ratio,
      self.drop_path_rate,
      self.det_stages,
      self.num_queries,
      self.channels,
      self.sketch_fusion,
      self.fusion_heads,
      self.fusion_hidden,
      self.fusion_drop_rate,
      self.remat,
      self.scan_blocks,
      name='backbone',
      **self.types,
    )(image, searched, padding, train)
    if self.sketch_fusion == 'trainable':
      fuse = sketch_guided.SketchFusion(
        self.fusion_heads,
        self.fusion_hidden,
        self.fusion_drop_rate,
        name='sketch_fusion',
        **self.types,
      )
      searched = fuse(searched, train)[:, None]

    if self.cross_scale_fusion:
      fuse = cross_scale_fusion.CrossScaleFusion(self.channels, name='map_fusion', **self.types)
      maps = fuse(seen.maps, train)
    else:
      maps = [self._project(f'map_projection_{i}', x) for i, x in enumerate(seen.maps)]
    position = self._project('position_projection', seen.det_position)
    paddings = [resize.upsample_nearest(padding[..., None], x.shape[1:3])[..., 0] for x in maps]
    box_heads = self._regressors('boxes', (0.0, 0.0, -2.0, -2.0), (0.0, 0.0, 0.0, 0.0))
    decoded = deformable_decoder.DeformableDecoder(
      self.num_layers,
      self.decoder_heads,
      self.num_points,
      self.decoder_hidden,
      self.drop_rate,
      self.remat,
      name='decoder',
      **self.types,
    )(self._project('query_projection', seen.det), position, maps, paddings, box_heads, train)
    logits, boxes = refinement.RefinementHead(
      self.num_classes,
      self.first_level,
      self.fusion_heads,
      self.fusion_hidden,
      self.fusion_drop_rate,
      self.prior,
      name='head',
      **self.types,
    )(decoded, position, searched, box_heads, train)
    outputs = {'logits': logits, 'boxes': boxes}
    if self.iou_head:
      heads = self._regressors('iou', (0.0,), (0.0,))
      ious = [head(x)[..., 0] for head, x in zip(heads, decoded.states, strict=True)]
      outputs['ious'] = jnp.stack(ious).astype(logits.dtype)
    features = {
      **seen.features,
      'merged': seen.maps[-1],
      **{f'map_{i}': x for i, x in enumerate(maps)},
      'queries': jnp.moveaxis(decoded.states, 0, 1),
    }
    return {name: jnp.moveaxis(x, 0, 1) for name, x in outputs.items()}, features

  def _encode(self, sketches: jax.Array, train: bool) -> jax.Array:
    """The features of sketches, `[batch, sketches, rows, columns, channels]`."""
    _, features = resnet.ResNet(
      num_classes=0,
      image_size=(self.sketch_size, self.sketch_size),
      depths=self.sketch_depths,
      widths=self.sketch_widths,
      stem_widths=self.sketch_widths[:1],
      output_stride=self.sketch_output_stride,
      num_channels=self.num_channels,
      remat=self.remat,
      scan_blocks=self.scan_blocks,
      name='sketch_encoder',
      **self.types,
    )(sketches.reshape(-1, *sketches.shape[2:]), train)
    x = features[f'stage_{len(self.sketch_depths) - 1}']
    x = refinement.SketchProjection(self.channels, name='sketch_projection', **self.types)(x)
    return x.reshape(*sketches.shape[:2], *x.shape[1:])

  def _project(self, name: str, x: jax.Array) -> jax.Array:
    return projection_norm.ProjectionNorm(
      self.channels, nn.initializers.xavier_uniform(), name=name, **self.types
    )(x)

  def _regressors(
    self, name: str, first: tuple[float, ...], others: tuple[float, ...]
  ) -> list[deformable_decoder.Regressor]:
    """One for each level, which start alike, but for what the first one says."""
    key = self.make_rng('params') if self.is_initializing() else None
    return [
      deformable_decoder.Regressor(others if i else first, key, name=f'{name}_{i}', **self.types)
      for i in range(self.num_layers + 1)
    ]

  def detect(
    self,
    image: jax.Array,
    sketches: jax.Array,
    image_size: jax.Array | None = None,
    **thresholds: Any,
  ) -> types.Detections:
    """Finds objects: `model.apply(variables, image, sketches, method='detect')`.

    Args:
      image: as for `__call__`.
      sketches: as for `__call__`.
      image_size: as for `__call__`.
      **thresholds: of `decode`.
    """
    if image_size is None:
      image_size = detector.whole_images(image)
    outputs, _ = self(image, sketches, image_size=image_size)
    return self.decode(outputs, image_size, **thresholds)

  @nn.nowrap
  def decode(
    self,
    outputs: Mapping[str, jax.Array],
    image_size: jax.Array,
    *,
    score_threshold: float = 0.0,
    max_boxes: int = 100,
    official: bool = False,
  ) -> types.Detections:
    """The objects that the last level's outputs describe, all with the label 0.

    Args:
      outputs: of the model.
      image_size: (height, width) in pixels of the part of its input that is image, `[batch, 2]`.
      score_threshold: of what is an object.
      max_boxes: of an image.
      official: whether to take `max_boxes` pairs of a query and a class, and to drop those of other
        classes then, as the authors do: there may be fewer objects.
    """
    logits = outputs['logits'][:, -1]
    shown = 1 if official else 0
    found = queries.find_objects(
      logits if official else logits[..., 1:2], outputs['boxes'][:, -1], image_size, max_boxes
    )
    is_object = (found.labels == shown) & (found.scores >= score_threshold)
    return types.Detections(
      found.boxes, jnp.where(is_object, found.scores, 0), jnp.where(is_object, 0, -1)
    )

  def _check(self, image: jax.Array, sketches: jax.Array) -> None:
    checks.check_image(self, image, self.num_channels)
    wanted = f'[batch, sketches, height, width, {self.num_channels}]'
    if sketches.ndim != 5 or sketches.shape[-1] != self.num_channels:
      raise ValueError(
        f'SketchLocalizer expects sketches {wanted}, not an array of shape {sketches.shape}; give '
        'a single sketch of each photo as sketch[:, None]'
      )
    if sketches.shape[0] != image.shape[0]:
      raise ValueError(
        f'sketches {sketches.shape} of photos {image.shape}: every photo needs sketches of its own'
      )
    checks.check_image(self, sketches[:, 0], self.num_channels)
    stride = min(self.sketch_output_stride, 2 << len(self.sketch_depths))
    if any(side % stride for side in sketches.shape[2:4]):
      raise ValueError(
        f'sketches of {sketches.shape[2]} x {sketches.shape[3]} pixels: take heights and widths '
        f'that are multiples of {stride} (config.dataset.sketches.size)'
      )


def padding_mask(image_size: jax.Array, size: tuple[int, int]) -> jax.Array:
  """True where images of (height, width) `[batch, 2]` do not reach: `[batch, *size]`."""
  height, width = image_size[:, 0, None, None], image_size[:, 1, None, None]
  return (jnp.arange(size[0])[:, None] >= height) | (jnp.arange(size[1]) >= width)


registry.register('sketch_localizer_tiny', SketchLocalizer)
registry.register(
  'sketch_localizer_small', SketchLocalizer, depths=(2, 2, 18, 2), drop_path_rate=0.3
)
