"""MIT, the model of the first stage: two encoders, and the interlaced decoder over both.

Source: Yang et al. 2023 (arXiv 2310.12817), in the form of its code.
"""

from collections.abc import Sequence
import functools
from typing import Literal

from flax import linen as nn
import jax

from crossattn_jax.attention import interlaced
from crossattn_jax.layers import initializers, module
from crossattn_jax.layers import sparse_convolution as sparse
from crossattn_jax.models import minkunet, registry
from crossattn_jax.models.mit import encoder as encoder_lib
from crossattn_jax.models.mit import heads, supervoxels
from crossattn_jax.models.parts import checks
from crossattn_jax.models.parts.types import Features

# Of class tokens; cut at +-2, a hundred standard deviations: in effect never.
TOKEN_INIT = initializers.linear


class PointsModule(module.Module):
  """A model whose tokens are as wide as what its network for points says of cells."""

  def see_points(
    self, windows: jax.Array, levels: Sequence[sparse.Level], train: bool
  ) -> tuple[jax.Array, Features]:
    """What the network for points, a `MinkUNet`, says of cells."""
    return minkunet.MinkUNet(
      self.points_widths,
      self.points_depths,
      0,
      self.points_stem_width,
      self.num_channels,
      self.remat,
      name='points',
      **self.types,
    )(windows, levels, train)

  def class_parameter(self, name: str) -> jax.Array:
    """What is learnt of the token of each class, `[num_classes, channels]`."""
    shape = (self.num_classes, self.points_widths[-1])
    return self.param(name, TOKEN_INIT, shape, self.param_dtype)


class MIT(PointsModule):
  """Tells the classes of a scene, and of its supervoxels, from points and photographs.

  Photographs and points are never brought together by a camera: their tokens look at each other.

  Attributes:
    num_classes: of the scenes.
    num_views: photographs of a scene, each with a position that is learnt.
    image_size: (height, width) of the natural input; any other size will do.
    points_widths: channels of the stages of the network for points, a `MinkUNet`; the last one is
      that of all tokens.
    points_depths: blocks of these stages.
    points_stem_width: channels of its stem.
    image_widths: channels inside the bottlenecks of the network for images, a `PreactResNet`.
    image_depths: bottlenecks of its stages.
    image_stem_width: channels of its stem.
    num_heads: of the encoders' attentions.
    encoder_depth: blocks of the encoder of either modality.
    mlp_ratio: hidden width of their MLPs per channel.
    decoder_depth: blocks that update the tokens of one modality or of the other.
    decoder_heads: of these blocks' attentions.
    decoder_mlp_ratio: hidden width of their MLPs per channel.
    drop_rate: of all dropouts, which the encoders have.
    drop_path_rate: of the decoder's blocks, and of the encoders' last ones.
    first_query: whose tokens the decoder updates first; see `InterlacedDecoder`.
    cams_of: what the classes of supervoxels are told from: 'pooled', the means of points; or
      'encoded', the tokens that the encoder makes of them. Of the latter `cams` are logits.
    pool: from scores of tokens to those of the scene; see `heads.pool_scores`.
    mask_empty: whether supervoxels without a point, which the code sees at the origin, take no
      part.
    centre_positions: whether positions are relative to the scene in place of cells.
    num_channels: of a colour.
    remat: whether the backward pass recomputes each block of both networks.
    scan_blocks: whether equal blocks of the network for images are one loop.
  """

  num_classes: int = 20
  num_views: int = 16
  image_size: tuple[int, int] = (240, 320)
  points_widths: tuple[int, ...] = minkunet.VARIANTS['18a'][1]
  points_depths: tuple[int, ...] = minkunet.VARIANTS['18a'][0]
  points_stem_width: int = 32
  image_widths: tuple[int, ...] = (64, 128, 256, 512)
  image_depths: tuple[int, ...] = (3, 4, 6, 3)
  image_stem_width: int = 64
  num_heads: int = 4
  encoder_depth: int = 3
  mlp_ratio: float = 1.0
  decoder_depth: int = 4
  decoder_heads: int = 4
  decoder_mlp_ratio: float = 0.2
  drop_rate: float = 0.1
  drop_path_rate: float = 0.1
  first_query: interlaced.FirstQuery = 'views'
  cams_of: Literal['pooled', 'encoded'] = 'pooled'
  pool: heads.Pool = 'mean'
  mask_empty: bool = False
  centre_positions: bool = False
  num_channels: int = 3
  remat: bool = False
  scan_blocks: bool = False

  def __post_init__(self):
    checks.check_choices(
      self,
      first_query=interlaced.FIRST_QUERIES,
      cams_of=('pooled', 'encoded'),
      pool=heads.POOLS,
    )
    super().__post_init__()

  @nn.compact
  def __call__(
    self,
    windows: jax.Array,
    levels: Sequence[sparse.Level],
    supervoxel: jax.Array,
    num_tokens: jax.Array,
    position: jax.Array,
    images: jax.Array,
    train: bool = False,
  ) -> tuple[dict[str, jax.Array], Features]:
    """Tells classes.

    Args:
      windows: see `MinkUNet`.
      levels: likewise.
      supervoxel: of each cell, integers `[batch, n]`, -1 in padding.
      num_tokens: supervoxels of each scene, integers `[batch]`: what comes behind is padding.
      position: mean of the cells of each supervoxel, `[batch, supervoxels, 3]`; in padding finite.
      images: normalised, `[batch, num_views, height, width, num_channels]`.
      train: whether the model drops, and batch norms use the batch.

    Returns:
      Outputs, in at least float32:
        'cross_logits': of the class tokens behind the decoder, `[batch, num_classes]`.
        'view_class_logits', 'voxel_class_logits': of those behind the encoders.
        'view_cam_logits': of what the photographs show.
        'voxel_cam_probabilities': of what the points are; where cams are of 'encoded' tokens,
          'voxel_cam_logits'.
        'cams': probabilities (or logits) of every supervoxel, `[batch, supervoxels, num_classes]`.
        'view_cams': logits of every photograph, `[batch, num_views, num_classes]`.
        'consistency': mean squared distance of points from the mean of their supervoxel, `[batch]`.
        'token_similarity': see `heads.token_similarity`, `[batch]`.
      And features: those of `MinkUNet`, and 'attention_{i}', the logits of block i of the decoder,
        `[batch, decoder_heads, queries, tokens]`, class tokens first. Queries are views in blocks
        0, 2, ..., with `first_query='voxels'` in the others.

    Raises:
      ValueError: there are other than `num_views` images of a scene, or of other channels.
    """
    width = self.points_widths[-1]
    points, features = self.see_points(windows, levels, train)
    voxels = supervoxels.summarise(points, supervoxel, num_tokens, position, self.mask_empty)
    views = encoder_lib.ImageTokens(
      width,
      self.image_widths,
      self.image_depths,
      self.image_stem_width,
      self.num_channels,
      self.remat,
      self.scan_blocks,
      name='images',
      **self.types,
    )(images, train)
    if views.shape[1] != self.num_views:
      raise ValueError(
        f'got {views.shape[1]} images of a scene, num_views={self.num_views}; a model is made for '
        'one number of them (config.model.num_views, config.dataset.num_views)'
      )

    place = encoder_lib.PositionMlp((width,) * 3, name='positions', param_dtype=self.param_dtype)
    position = voxels.position
    if self.centre_positions:
      position = encoder_lib.centre_positions(position, voxels.counts > 0)
    classes = self.class_parameter('class_tokens') + self.class_parameter('class_positions')
    view_positions = self.param(
      'view_positions', nn.initializers.zeros, (self.num_views, width), self.param_dtype
    )
    encode = functools.partial(
      encoder_lib.Encoder,
      self.encoder_depth,
      self.num_heads,
      self.mlp_ratio,
      self.drop_rate,
      self.drop_path_rate,
      **self.types,
    )
    view_tokens, _ = encoder_lib.with_classes(classes, views + view_positions)
    view_tokens = encode(name='view_encoder')(view_tokens, None, train)
    voxel_tokens, mask = encoder_lib.with_classes(
      classes, voxels.means + place(position), voxels.mask
    )
    voxel_tokens = encode(name='voxel_encoder')(voxel_tokens, mask, train)
    *crossed, attention = interlaced.InterlacedDecoder(
      self.decoder_depth,
      self.decoder_heads,
      self.num_classes,
      self.decoder_mlp_ratio,
      self.drop_path_rate,
      self.first_query,
      name='decoder',
      **self.types,
    )(view_tokens, voxel_tokens, mask, train)

    view_cams = heads.activation(views, self.num_classes, 'head_views', **self.types)
    outputs = {
      'cross_logits': sum(heads.class_logits(x, self.num_classes) for x in crossed) / 2,
      'view_class_logits': heads.class_logits(view_tokens, self.num_classes),
      'voxel_class_logits': heads.class_logits(voxel_tokens, self.num_classes),
      'view_cam_logits': heads.pool_scores(view_cams, self.pool),
      'view_cams': view_cams,
      'consistency': voxels.inconsistency,
      'token_similarity': heads.token_similarity(attention, self.num_classes),
    }
    name, seen = 'voxel_cam_probabilities', voxels.means
    if self.cams_of == 'encoded':
      name, seen = 'voxel_cam_logits', nn.relu(voxel_tokens[:, self.num_classes :])
    cams = heads.activation(seen, self.num_classes, 'head_voxels', **self.types)
    if self.cams_of == 'pooled':
      cams = nn.softmax(cams)
    outputs |= {'cams': cams, name: heads.pool_scores(cams, self.pool, voxels.mask)}
    return outputs, features | {f'attention_{i}': x for i, x in enumerate(attention)}


_IMAGE_DEPTHS = {'r50': (3, 4, 6, 3), 'r101': (3, 4, 23, 3)}
for _points in ('18a', '34c'):
  for _images, _depths in _IMAGE_DEPTHS.items():
    registry.register(
      f'mit_{_points}_{_images}',
      MIT,
      points_depths=minkunet.VARIANTS[_points][0],
      points_widths=minkunet.VARIANTS[_points][1],
      image_depths=_depths,
    )
