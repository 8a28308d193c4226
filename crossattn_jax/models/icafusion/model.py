"""ICAFusion: two streams, fused at three levels, and YOLOv5's neck and head.

Source: "ICAFusion: Iterative Cross-Attention Guided Feature Fusion for Multispectral Object
Detection", Shen et al. 2024 (Pattern Recognition 145, arXiv 2308.07504), and the facts of its code
(chanchanchan97/ICAFusion), which this follows where both differ.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any, Literal

from flax import linen as nn
import jax

from crossattn_jax.attention import cross_modal
from crossattn_jax.heads.detection import anchors as anchors_lib
from crossattn_jax.heads.detection import types, yolo
from crossattn_jax.layers import module
from crossattn_jax.models import registry
from crossattn_jax.models.icafusion import fusion as fusion_lib
from crossattn_jax.models.icafusion import neck, streams
from crossattn_jax.models.parts import checks
from crossattn_jax.models.parts.types import Features

Fusion = Literal['transformer', 'nin', 'add', 'add_official']
FUSIONS = ('transformer', 'nin', 'add', 'add_official')
STRIDES = (8, 16, 32)


class ICAFusion(module.Module):
  """Detects objects in pairs of registered RGB and thermal images.

  Attributes:
    num_classes: of objects.
    image_size: (height, width) of the natural input; any multiples of 32 do.
    num_channels: of either image.
    modalities: which images of a pair the model looks at. With one, 'rgb' or 'thermal', it is
      YOLOv5 v6 on that one: a single stream and no fusion, the yardstick of both.
    stream: the backbone of either modality: 'csp_darknet', 'resnet' or 'vgg'.
    widths: channels of its stages; see `streams`.
    depths: blocks of its stages; see `streams`.
    fusion: 'transformer' is the paper's; the baselines are 'nin', a 1 x 1 convolution of both, and
      'add', their mean. 'add_official' is the sum that the authors' configurations compute, whose
      weights are the number of channels and one less, with a minus.
    grids: rows and columns of tokens, of the levels at strides 8, 16 and 32.
    num_heads: of the transformers.
    mlp_ratio: hidden width of their MLPs per channel.
    fusion_depth: their blocks, each with parameters of its own.
    loops: iterations of each block with the same parameters.
    attention_drop_rate: dropout of their attention weights.
    drop_rate: dropout of what their attention and MLPs return.
    pool_mix: how average and maximum of the pixels of a token are mixed: 'free' learns a weight of
      either (the code), 'convex' one in [0, 1] for the average (the paper).
    upsampling: 'nearest' or 'bilinear', how the tokens' maps grow.
    train_upsampling: the same in training, which differs in the authors' code.
    neck_widths: channels of the eight parts of the neck; see `neck.PathAggregation`.
    neck_depth: bottlenecks of its stages.
    anchor_sizes: (width, height) in pixels of the anchors of every level. Weights mean others with
      others: conversion takes those that a checkpoint of the original holds.
    detection_prior: whether an untrained model expects few objects; see `yolo.YoloHead`.
    unused_parameters: whether to hold also what the original has and never uses, in the collection
      'unused', so that its checkpoints are kept whole.
  """

  num_classes: int = 3
  image_size: tuple[int, int] = (640, 640)
  num_channels: int = 3
  modalities: tuple[str, ...] = cross_modal.MODALITIES
  stream: Literal['csp_darknet', 'resnet', 'vgg'] = 'csp_darknet'
  widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
  depths: tuple[int, ...] = (3, 6, 9, 3)
  fusion: Fusion = 'transformer'
  grids: tuple[tuple[int, int], ...] = ((20, 20), (16, 16), (10, 10))
  num_heads: int = 8
  mlp_ratio: float = 4
  fusion_depth: int = 1
  loops: int = 1
  attention_drop_rate: float = 0.1
  drop_rate: float = 0.1
  pool_mix: fusion_lib.PoolMix = 'free'
  upsampling: fusion_lib.Upsampling = 'bilinear'
  train_upsampling: fusion_lib.Upsampling = 'nearest'
  neck_widths: tuple[int, ...] = (512, 512, 256, 256, 256, 512, 512, 1024)
  neck_depth: int = 3
  anchor_sizes: tuple[tuple[tuple[float, float], ...], ...] = yolo.COCO_ANCHORS.sizes
  detection_prior: bool = False
  unused_parameters: bool = False

  def __post_init__(self):
    checks.check_choices(self, fusion=FUSIONS, stream=tuple(streams.STREAMS))
    for field, count in (('grids', 3), ('neck_widths', 8), ('anchor_sizes', 3)):
      if len(getattr(self, field)) != count:
        raise ValueError(f'{field}={getattr(self, field)} needs {count} entries')
    alone = [(modality,) for modality in cross_modal.MODALITIES]
    if tuple(self.modalities) not in (cross_modal.MODALITIES, *alone):
      raise ValueError(
        f'modalities={self.modalities} is neither {cross_modal.MODALITIES} nor one of them alone, '
        f'{" or ".join(map(str, alone))}'
      )
    super().__post_init__()

  @nn.compact
  def __call__(
    self, rgb: jax.Array, thermal: jax.Array, train: bool = False
  ) -> tuple[dict[str, jax.Array], Features]:
    """Looks for objects; `detect` says which they are.

    Args:
      rgb: in 0..1, `[batch, height, width, num_channels]`, height and width multiples of 32.
      thermal: the same of the other image, a grey one with equal channels.
      train: whether the model drops, grows maps as in training, and batch norms use the batch,
        whose statistics go into the collection 'batch_stats' where that is mutable.

    Returns:
      What `yolo.YoloHead` says, and features, maps at strides 8, 16 and 32:
        'rgb_3', 'rgb_4', 'rgb_5' and 'thermal_3', ...: of either stream that the model has.
        'fused_3', 'fused_4', 'fused_5': of both, where it has both.
        'pyramid_3', 'pyramid_4', 'pyramid_5': of the neck.

    Raises:
      ValueError: shapes or dtypes are not as above.
    """
    self._check(rgb, thermal)
    features: Features = {}
    images = dict(zip(cross_modal.MODALITIES, (rgb, thermal), strict=True))
    maps = []
    for modality in self.modalities:
      stream = streams.STREAMS[self.stream](
        self.widths, self.depths, name=f'stream_{modality}', **self.types
      )
      maps.append(stream(images[modality], train))
      features |= _named(modality, maps[-1])
    if len(maps) == 1:
      [seen] = maps
    else:
      fusions = [self._fusion(grid, f'fusion_{i}') for i, grid in enumerate(self.grids, 3)]
      seen = [fuse(*pair, train) for fuse, *pair in zip(fusions, *maps, strict=True)]
      features |= _named('fused', seen)
    aggregate = neck.PathAggregation(self.neck_widths, self.neck_depth, name='neck', **self.types)
    levels = aggregate(seen, train)
    head = yolo.YoloHead(
      self.num_classes,
      self.anchors().per_cell,
      STRIDES if self.detection_prior else None,
      name='head',
      **self.types,
    )
    return head(levels), features | _named('pyramid', levels)

  def _fusion(self, grid: tuple[int, int], name: str) -> nn.Module:
    match self.fusion:
      case 'nin':
        return fusion_lib.ConvolutionFusion(name=name, **self.types)
      case 'add':
        return fusion_lib.SumFusion(name=name, **self.types)
      case 'add_official':
        return fusion_lib.SumFusion('channels', name=name, **self.types)
    return fusion_lib.TransformerFusion(
      grid,
      self.num_heads,
      self.mlp_ratio,
      self.fusion_depth,
      self.loops,
      self.attention_drop_rate,
      self.drop_rate,
      self.pool_mix,
      self.upsampling,
      self.train_upsampling,
      self.unused_parameters,
      name=name,
      **self.types,
    )

  def detect(
    self, rgb: jax.Array, thermal: jax.Array, **thresholds: float | bool
  ) -> types.Detections:
    """Finds objects: `model.apply(variables, rgb, thermal, method='detect')`.

    Args:
      rgb: as for `__call__`.
      thermal: as for `__call__`.
      **thresholds: of `decode`.
    """
    outputs, _ = self(rgb, thermal)
    return self.decode(outputs, rgb.shape[1:3], **thresholds)

  @nn.nowrap
  def anchors(self) -> anchors_lib.SizedAnchors:
    """The anchors: `model.anchors().of_input((height, width))` are those of an input."""
    return anchors_lib.SizedAnchors(STRIDES, self.anchor_sizes)

  @nn.nowrap
  def decode(
    self,
    outputs: Mapping[str, jax.Array],
    input_size: Sequence[int],
    **thresholds: float | bool,
  ) -> types.Detections:
    """The objects that the outputs describe.

    Args:
      outputs: of the model.
      input_size: (height, width) of its input.
      **thresholds: of `yolo.find_objects`.
    """
    return yolo.decode_yolo(outputs, self.anchors().of_input(input_size), **thresholds)

  def _check(self, rgb: jax.Array, thermal: jax.Array) -> None:
    for image in (rgb, thermal):
      checks.check_image(self, image, self.num_channels)
    if rgb.shape != thermal.shape:
      raise ValueError(
        f'the RGB images have shape {rgb.shape}, the thermal ones {thermal.shape}; pairs must show '
        'the same pixels'
      )
    height, width = rgb.shape[1:3]
    if height % STRIDES[-1] or width % STRIDES[-1]:
      raise ValueError(
        f'images of {height} x {width} pixels: take heights and widths that are multiples of '
        f'{STRIDES[-1]} (config.dataset.image_size)'
      )


def _named(name: str, maps: Sequence[jax.Array]) -> Features:
  return {f'{name}_{level}': x for level, x in enumerate(maps, 3)}


def scale_width(width: int, multiple: float) -> int:
  """YOLOv5's rule for channels, up to a multiple of 8."""
  return 8 * math.ceil(width * multiple / 8)


def scale_depth(depth: int, multiple: float) -> int:
  """YOLOv5's rule for repeats, half to even."""
  return max(round(depth * multiple), 1) if depth > 1 else depth


def _darknet(depth_multiple: float, width_multiple: float) -> dict[str, Any]:
  widths = {
    field: tuple(scale_width(width, width_multiple) for width in getattr(ICAFusion, field))
    for field in ('widths', 'neck_widths')
  }
  depths = tuple(scale_depth(depth, depth_multiple) for depth in ICAFusion.depths)
  return {**widths, 'depths': depths, 'neck_depth': scale_depth(3, depth_multiple)}


registry.register('icafusion_n', ICAFusion, **_darknet(0.33, 0.25))
registry.register('icafusion_s', ICAFusion, **_darknet(0.33, 0.5))
registry.register('icafusion_m', ICAFusion, **_darknet(0.67, 0.75))
registry.register('icafusion_l', ICAFusion)
registry.register(
  'icafusion_resnet50',
  ICAFusion,
  stream='resnet',
  widths=(64, 64, 128, 256, 512),
  depths=(3, 4, 6, 3),
  neck_widths=(1024, 1024, 512, 512, 512, 1024, 1024, 2048),
)
registry.register(
  'icafusion_vgg16',
  ICAFusion,
  stream='vgg',
  widths=(64, 128, 256, 512, 512),
  depths=(2, 2, 3, 3, 3),
  neck_widths=(512, 512, 256, 256, 256, 512, 512, 512),
)
