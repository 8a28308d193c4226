"""What MIT is compared with: the points alone, and the photographs alone.

They take MIT's inputs, and return those of its outputs that they have.
"""

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.layers import activations, module
from crossattn_jax.layers import sparse_convolution as sparse
from crossattn_jax.models import minkunet, registry
from crossattn_jax.models.mit import encoder as encoder_lib
from crossattn_jax.models.mit import heads, supervoxels
from crossattn_jax.models.mit import model as model_lib
from crossattn_jax.models.parts import checks
from crossattn_jax.models.parts.types import Features


class MITPoints(model_lib.PointsModule):
  """Tells the classes of a scene, and of its supervoxels, from points alone.

  Attributes:
    num_classes: of the scenes.
    points_widths: channels of the stages of the `MinkUNet`; the last one is that of all tokens.
    points_depths: blocks of these stages.
    points_stem_width: channels of its stem.
    num_heads: of the encoder's attentions.
    encoder_depth: blocks of the encoder; 0 leaves the class tokens out.
    mlp_ratio: hidden width of their MLPs per channel.
    drop_rate: of all dropouts.
    drop_path_rate: of the encoder's last block.
    position_embedding: whether tokens know where they are.
    pool: from scores of tokens to those of the scene; see `heads.pool_scores`.
    mask_empty: whether supervoxels without a point, which the code sees at the origin, take no
      part.
    centre_positions: whether positions are relative to the scene in place of cells.
    num_channels: of a colour.
    remat: whether the backward pass recomputes each block of the network.
  """

  num_classes: int = 20
  points_widths: tuple[int, ...] = minkunet.VARIANTS['18a'][1]
  points_depths: tuple[int, ...] = minkunet.VARIANTS['18a'][0]
  points_stem_width: int = 32
  num_heads: int = 4
  encoder_depth: int = 3
  mlp_ratio: float = 1.0
  drop_rate: float = 0.1
  drop_path_rate: float = 0.1
  position_embedding: bool = True
  pool: heads.Pool = 'mean'
  mask_empty: bool = False
  centre_positions: bool = False
  num_channels: int = 3
  remat: bool = False

  def __post_init__(self):
    checks.check_choices(self, pool=heads.POOLS)
    super().__post_init__()

  @nn.compact
  def __call__(
    self,
    windows: jax.Array,
    levels: Sequence[sparse.Level],
    supervoxel: jax.Array | None,
    num_tokens: jax.Array | None,
    position: jax.Array | None,
    images: jax.Array | None = None,
    train: bool = False,
  ) -> tuple[dict[str, jax.Array], Features]:
    """Tells classes.

    Args:
      windows: see `MIT`, as all others.
      levels: likewise.
      supervoxel: likewise; or None, where 'cams' are to be of cells. Then there is no encoder, and
        nothing to be consistent with.
      num_tokens: likewise.
      position: likewise.
      images: not looked at.
      train: likewise.

    Returns:
      Outputs: 'voxel_cam_probabilities', 'cams', 'consistency' and, with an encoder,
      'voxel_class_logits'; see `MIT`. And features: those of `MinkUNet`.

    Raises:
      ValueError: there are no supervoxels for the encoder.
    """
    del images
    points, features = self.see_points(windows, levels, train)
    outputs = {}
    if supervoxel is None:
      if self.encoder_depth:
        raise ValueError('without supervoxels there is nothing to encode; set encoder_depth=0')
      seen, mask = points, levels[0].is_cell
    else:
      voxels = supervoxels.summarise(points, supervoxel, num_tokens, position, self.mask_empty)
      seen, mask = voxels.means, voxels.mask
      outputs['consistency'] = voxels.inconsistency
    cams = nn.softmax(heads.activation(seen, self.num_classes, 'head_voxels', **self.types))
    outputs |= {
      'voxel_cam_probabilities': heads.pool_scores(cams, self.pool, mask),
      'cams': cams,
    }
    if self.encoder_depth:
      tokens = seen
      classes = self.class_parameter('class_tokens')
      if self.position_embedding:
        place = encoder_lib.PositionMlp(
          (self.points_widths[-1],) * 2,
          activations.gelu,
          name='positions',
          param_dtype=self.param_dtype,
        )
        position = voxels.position
        if self.centre_positions:
          position = encoder_lib.centre_positions(position, voxels.counts > 0)
        classes += self.class_parameter('class_positions')
        tokens += place(position)
      encoder = encoder_lib.Encoder(
        self.encoder_depth,
        self.num_heads,
        self.mlp_ratio,
        self.drop_rate,
        self.drop_path_rate,
        name='encoder',
        **self.types,
      )
      tokens = encoder(*encoder_lib.with_classes(classes, tokens, mask), train)
      outputs['voxel_class_logits'] = heads.class_logits(tokens, self.num_classes)
    return outputs, features


class MITImages(module.Module):
  """Tells the classes of a scene, and of its photographs, from photographs alone.

  Attributes:
    num_classes: of the scenes.
    num_views: photographs of a scene as the recipe has them; any number will do.
    image_size: (height, width) of the natural input; any other size will do.
    width: of the tokens.
    image_widths: channels inside the bottlenecks of the `PreactResNet`.
    image_depths: bottlenecks of its stages.
    image_stem_width: channels of its stem.
    num_heads: of the encoder's attentions.
    encoder_depth: blocks of the encoder; 0 leaves the class tokens and the poses out.
    mlp_ratio: hidden width of their MLPs per channel.
    drop_rate: of all dropouts.
    drop_path_rate: of the encoder's last block.
    num_channels: of the photographs.
    remat: whether the backward pass recomputes each block of the network.
    scan_blocks: whether equal blocks of the network are one loop.
  """

  num_classes: int = 20
  num_views: int = 16
  image_size: tuple[int, int] = (240, 320)
  width: int = 96
  image_widths: tuple[int, ...] = (64, 128, 256, 512)
  image_depths: tuple[int, ...] = (3, 4, 6, 3)
  image_stem_width: int = 64
  num_heads: int = 4
  encoder_depth: int = 3
  mlp_ratio: float = 1.0
  drop_rate: float = 0.0
  drop_path_rate: float = 0.1
  num_channels: int = 3
  remat: bool = False
  scan_blocks: bool = False

  @nn.compact
  def __call__(
    self,
    windows: jax.Array | None,
    levels: Sequence[sparse.Level] | None,
    supervoxel: jax.Array | None,
    num_tokens: jax.Array | None,
    position: jax.Array | None,
    images: jax.Array,
    train: bool = False,
    poses: jax.Array | None = None,
  ) -> tuple[dict[str, jax.Array], Features]:
    """Tells classes.

    Args:
      windows: not looked at, as are all others but the following.
      levels: likewise.
      supervoxel: likewise.
      num_tokens: likewise.
      position: likewise.
      images: see `MIT`; of any number of views.
      train: likewise.
      poses: where each photograph was taken, `[batch, views, 3]`; None where nobody knows, as if
        all were at the origin.

    Returns:
      Outputs: 'view_cam_logits', 'view_cams' and, with an encoder, 'view_class_logits'; see `MIT`.
      And no features.
    """
    del windows, levels, supervoxel, num_tokens, position
    tokens = encoder_lib.ImageTokens(
      self.width,
      self.image_widths,
      self.image_depths,
      self.image_stem_width,
      self.num_channels,
      self.remat,
      self.scan_blocks,
      name='images',
      **self.types,
    )(images, train)
    outputs = {}
    if self.encoder_depth:
      place = encoder_lib.PositionMlp(
        (self.width,) * 2, name='positions', param_dtype=self.param_dtype
      )
      if poses is None:
        poses = jnp.zeros((*tokens.shape[:2], 3), self.param_dtype)
      shape = (self.num_classes, self.width)
      classes = sum(
        self.param(name, nn.initializers.zeros, shape, self.param_dtype)
        for name in ('class_tokens', 'class_positions')
      )
      encoder = encoder_lib.Encoder(
        self.encoder_depth,
        self.num_heads,
        self.mlp_ratio,
        self.drop_rate,
        self.drop_path_rate,
        name='encoder',
        **self.types,
      )
      tokens = encoder(*encoder_lib.with_classes(classes, tokens + place(poses)), train)
      outputs['view_class_logits'] = heads.class_logits(tokens, self.num_classes)
      tokens = tokens[:, self.num_classes :]
    cams = heads.activation(tokens, self.num_classes, 'head_views', **self.types)
    return outputs | {'view_cam_logits': heads.pool_scores(cams), 'view_cams': cams}, {}


registry.register('mit_points', MITPoints)
registry.register('mit_images', MITImages)
