"""CrossViT, the classifier: token embeddings, multi-scale encoders, a head per branch."""

import functools
import math
from typing import Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.layers import initializers, module, resize, stack
from crossattn_jax.models import registry
from crossattn_jax.models.crossvit import patch_embedding, tokens_to_token
from crossattn_jax.models.crossvit.encoder import MultiScaleEncoder, drop_path_rates
from crossattn_jax.models.crossvit.options import BlockOptions
from crossattn_jax.models.parts import checks, classifier
from crossattn_jax.models.parts.types import Features, Grid

_PATCH_EMBEDDINGS = {
  'linear': patch_embedding.LinearPatchEmbedding,
  'conv': patch_embedding.ConvPatchEmbedding,
  't2t': tokens_to_token.TokensToToken,
  'performer': functools.partial(tokens_to_token.TokensToToken, performer=True),
}


class TokenEmbedding(nn.Module):
  """Patch tokens behind a class token, plus position embeddings (section 3.1).

  Attributes:
    patch_embedding: 'linear', 'conv' (three convolutions), 't2t' or 'performer'.
    patch_size: side of a patch in pixels.
    channels: width of a token.
    num_patches: patches per image.
    options: common to all blocks.
  """

  patch_embedding: str
  patch_size: int
  channels: int
  num_patches: int
  options: BlockOptions

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, bands]` to `[batch, 1 + patches, channels]`."""
    patches = _PATCH_EMBEDDINGS[self.patch_embedding](
      self.patch_size, self.channels, name='patch_embedding', **self.options.types
    )(image, train)
    init, dtype = initializers.linear, self.options.param_dtype
    class_token = self.param('class_token', init, (1, 1, self.channels), dtype)
    positions = self.param(
      'position_embedding', init, (1, 1 + self.num_patches, self.channels), dtype
    )
    class_tokens = jnp.broadcast_to(
      class_token.astype(patches.dtype), (patches.shape[0], 1, self.channels)
    )
    tokens = jnp.concatenate([class_tokens, patches], axis=1) + positions.astype(patches.dtype)
    tokens = nn.Dropout(self.options.drop_rate, deterministic=not train)(tokens)
    return parallel.constrain(tokens, 'batch', 'tokens', 'channels')


class CrossViT(module.Module):
  """The classifier: token embeddings, K multi-scale encoders, one head per branch, mean of logits.

  Attributes:
    num_classes: 0 returns the concatenated branch vectors in place of logits.
    image_size: (height, width) of the natural input. Images of any other size are resized.
    branch_scales: side of each branch's image per side of `image_size`, rounded down.
    branch_image_sizes: (height, width) of each branch's image; None derives them from the scales.
    patch_sizes: side of a patch in pixels, per branch.
    widths: channels of a token, per branch.
    depths: per encoder: blocks of each branch, then cross-attention blocks per direction, where 0
      means 1.
    num_heads: per branch.
    mlp_ratios: hidden width of the MLPs per channel, per branch.
    qkv_bias: whether the projections to query, key and value have biases.
    patch_embedding: 'linear', 'conv' (three convolutions, the paper's dagger), 't2t' or 'performer'
      (tokens-to-token with transformer or performer blocks).
    fusion: the four strategies of section 3.3, or 'none'.
    reuse_patches: whether the second and later cross-attention blocks of a direction see the
      patches again (the paper's text) or the class token alone (the official code).
    resize: how a branch gets its image: 'bicubic' resizes, 'center_crop' cuts out the middle and
      resizes only what is too small (timm's `crop_scale`).
    global_pool: 'token' classifies the class token, 'avg' the mean of the patch tokens.
    drop_rate: dropout of position embeddings, projections and MLPs.
    attention_drop_rate: dropout of attention weights.
    norm_epsilon: of the layer normalisations.
    drop_path_rate: stochastic depth, growing linearly from 0 to this rate with depth.
    num_channels: of the input image.
    remat: whether the backward pass recomputes each transformer block instead of storing it.
    scan_blocks: whether equal encoders, and the transformer blocks of a branch, are loops: programs
      that compile several times faster and compute the same. Parameters keep their names.
  """

  num_classes: int = 1000
  image_size: tuple[int, int] = (240, 240)
  branch_scales: tuple[float, ...] = (1.0, 224 / 240)
  branch_image_sizes: tuple[tuple[int, int], ...] | None = None
  patch_sizes: tuple[int, ...] = (12, 16)
  widths: tuple[int, ...] = (192, 384)
  depths: tuple[tuple[int, ...], ...] = ((1, 4, 0),) * 3
  num_heads: tuple[int, ...] = (6, 6)
  mlp_ratios: tuple[float, ...] = (4, 4)
  qkv_bias: bool = True
  patch_embedding: Literal['linear', 'conv', 't2t', 'performer'] = 'linear'
  fusion: Literal['cross_attention', 'all_attention', 'class_token', 'pairwise', 'none'] = (
    'cross_attention'
  )
  reuse_patches: bool = False
  resize: Literal['bicubic', 'center_crop'] = 'bicubic'
  global_pool: Literal['token', 'avg'] = 'token'
  drop_rate: float = 0.0
  attention_drop_rate: float = 0.0
  norm_epsilon: float = 1e-6
  drop_path_rate: float = 0.0
  num_channels: int = 3
  remat: bool = False
  scan_blocks: bool = False

  def __post_init__(self):
    self._check()
    super().__post_init__()

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> tuple[jax.Array, Features]:
    """Classifies images.

    Args:
      image: normalised, `[batch, height, width, num_channels]`. Any height and width: each branch
        resizes to its own.
      train: whether dropout and drop path are on (rngs 'dropout' and 'drop_path').

    Returns:
      Logits `[batch, num_classes]` (with no classes, the branch vectors side by side), in at least
      float32, and features:
        'logits/{d}': of branch d alone, `[batch, num_classes]`.
        'tokens/{d}': of branch d after its final norm, `[batch, 1 + patches, channels]`.
        'cross_attention/{k}/{d}': in encoder k, how much the class token of branch d attends to
          itself and to each patch of branch d+1, `[batch, heads, 1 + patches]`. Only with
          cross-attention fusion.
    """
    checks.check_image(self, image, self.num_channels)
    options = BlockOptions.of(self)
    grids = self.grids()
    tokens = tuple(
      TokenEmbedding(
        self.patch_embedding,
        self.patch_sizes[d],
        self.widths[d],
        math.prod(grids[d]),
        options,
        name=f'embedding_{d}',
      )(self._branch_image(image, size), train)
      for d, size in enumerate(self.branch_sizes())
    )
    tokens, weights = stack.apply_blocks(
      self,
      lambda k, rates, **where: MultiScaleEncoder(
        self.depths[k],
        self.num_heads,
        self.mlp_ratios,
        rates,
        self.fusion,
        self.reuse_patches,
        options,
        **where,
      ),
      drop_path_rates(self.depths, self.drop_path_rate),
      tokens,
      grids,
      train,
      name='encoder_{}',
      kinds=self.depths,
      has_aux=True,
      scan=self.scan_blocks,
    )
    features = {
      f'cross_attention/{k}/{d}': direction_weights
      for k, encoder_weights in enumerate(weights)
      for d, direction_weights in enumerate(encoder_weights)
    }

    vectors = []
    for d, x in enumerate(tokens):
      x = parallel.constrain(options.layer_norm(f'norm_{d}')(x), 'batch', 'tokens', 'channels')
      features[f'tokens/{d}'] = x
      x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
      vectors.append(x[:, 0] if self.global_pool == 'token' else x[:, 1:].mean(axis=1))
    if self.num_classes == 0:
      return jnp.concatenate(vectors, axis=-1), features
    branch_logits = []
    for d, vector in enumerate(vectors):
      logits = classifier.classify(vector, self.num_classes, f'head_{d}', **options.types)
      branch_logits.append(logits)
      features[f'logits/{d}'] = logits
    return sum(branch_logits) / len(branch_logits), features

  @nn.nowrap
  def branch_sizes(self) -> tuple[tuple[int, int], ...]:
    """Returns (height, width) of each branch's image."""
    if self.branch_image_sizes is not None:
      return self.branch_image_sizes
    return tuple(
      tuple(int(side * scale) for side in self.image_size) for scale in self.branch_scales
    )

  @nn.nowrap
  def grids(self) -> tuple[Grid, ...]:
    """Returns (height, width) of each branch's patch grid."""
    return tuple(
      (height // patch, width // patch)
      for (height, width), patch in zip(self.branch_sizes(), self.patch_sizes, strict=True)
    )

  @nn.nowrap
  def attention_maps(self, features: Features) -> Features:
    """Returns where the last encoder's class tokens look, one map per direction, to be drawn.

    Args:
      features: as `__call__` returns them.

    Returns:
      Mean over the heads of the weights on the visited branch's patches, `[batch, rows, columns]`.
    """
    grids, last = self.grids(), len(self.depths) - 1
    branches = [f'{side}-pixel' for side in self.patch_sizes]
    if len(grids) == 2 and self.patch_sizes[0] < self.patch_sizes[1]:
      branches = ['fine', 'coarse']
    maps = {}
    for d in range(len(grids)):
      visited = (d + 1) % len(grids)
      weights = features.get(f'cross_attention/{last}/{d}')
      if weights is not None:
        patches = weights.mean(axis=1)[:, 1:]
        name = f"where the {branches[d]} branch's summary looks in the {branches[visited]} one"
        maps[name] = patches.reshape(-1, *grids[visited])
    return maps

  @nn.nowrap
  def _branch_image(self, image: jax.Array, size: tuple[int, int]) -> jax.Array:
    fits = image.shape[1] >= size[0] and image.shape[2] >= size[1]
    if self.resize == 'center_crop' and fits:
      return resize.center_crop(image, size)
    return resize.resize(image, size, 'bicubic')

  @nn.nowrap
  def _check(self) -> None:
    """Raises a ValueError that names the first field that does not fit the others."""
    branches = len(self.widths)
    if not isinstance(self.image_size, tuple) or len(self.image_size) != 2:
      raise ValueError(f'image_size={self.image_size} must be (height, width)')
    sizes = 'branch_scales' if self.branch_image_sizes is None else 'branch_image_sizes'
    fields = ('patch_sizes', 'num_heads', 'mlp_ratios', sizes)
    checks.check_lengths(self, 'widths', 'branches', *fields)
    for depths in self.depths:
      if len(depths) != branches + 1 or min(depths[:-1]) < 1 or depths[-1] < 0:
        raise ValueError(
          f'depths needs per encoder at least one block for each of {branches} branches and then '
          f'the number of cross-attention blocks, not {depths}'
        )
    for width, heads in zip(self.widths, self.num_heads, strict=True):
      if width % heads:
        raise ValueError(f'num_heads={self.num_heads} does not divide widths={self.widths}')
    checks.check_choices(
      self,
      patch_embedding=tuple(_PATCH_EMBEDDINGS),
      fusion=('cross_attention', 'all_attention', 'class_token', 'pairwise', 'none'),
      resize=('bicubic', 'center_crop'),
      global_pool=('token', 'avg'),
    )
    for size, patch in zip(self.branch_sizes(), self.patch_sizes, strict=True):
      if min(size) < patch:
        raise ValueError(
          f'an image of {size} holds no patch of {patch} x {patch}; enlarge image_size or '
          'branch_image_sizes, or choose smaller patch_sizes'
        )
      if self.patch_embedding != 'linear' and any(side % patch for side in size):
        whole = tuple(side // patch * patch for side in size)
        raise ValueError(
          f'patch_embedding={self.patch_embedding!r} needs whole patches of {patch} pixels, but a '
          f'branch has images of {size}; {whole} would do (branch_image_sizes)'
        )


# timm's and the official name, image sides S and L, widths S and L, blocks S and L, heads, MLP
# ratio, patch embedding. The last three are not among the official models: 480 and T2T are in the
# paper, the performer is an option of the code.
_VARIANTS = (
  ('tiny_240', 'tiny_224', (240, 224), (96, 192), (1, 4), 3, 4, 'linear'),
  ('small_240', 'small_224', (240, 224), (192, 384), (1, 4), 6, 4, 'linear'),
  ('base_240', 'base_224', (240, 224), (384, 768), (1, 4), 12, 4, 'linear'),
  ('9_240', '9_224', (240, 224), (128, 256), (1, 3), 4, 3, 'linear'),
  ('15_240', '15_224', (240, 224), (192, 384), (1, 5), 6, 3, 'linear'),
  ('18_240', '18_224', (240, 224), (224, 448), (1, 6), 7, 3, 'linear'),
  ('9_dagger_240', '9_dagger_224', (240, 224), (128, 256), (1, 3), 4, 3, 'conv'),
  ('15_dagger_240', '15_dagger_224', (240, 224), (192, 384), (1, 5), 6, 3, 'conv'),
  ('18_dagger_240', '18_dagger_224', (240, 224), (224, 448), (1, 6), 7, 3, 'conv'),
  ('15_dagger_408', '15_dagger_384', (408, 384), (192, 384), (1, 5), 6, 3, 'conv'),
  ('18_dagger_408', '18_dagger_384', (408, 384), (224, 448), (1, 6), 7, 3, 'conv'),
  ('18_dagger_504', '18_dagger_480', (504, 480), (224, 448), (1, 6), 7, 3, 'conv'),
  ('18_t2t_240', '18_t2t_224', (240, 224), (224, 448), (1, 6), 7, 3, 't2t'),
  ('18_performer_240', '18_performer_224', (240, 224), (224, 448), (1, 6), 7, 3, 'performer'),
)

for *_names, _sides, _widths, _blocks, _heads, _ratio, _embedding in _VARIANTS:
  for _name in _names:
    registry.register(
      f'crossvit_{_name}',
      CrossViT,
      image_size=(_sides[0], _sides[0]),
      branch_scales=(1.0, _sides[1] / _sides[0]),
      widths=_widths,
      depths=((*_blocks, 0),) * 3,
      num_heads=(_heads, _heads),
      mlp_ratios=(_ratio, _ratio),
      patch_embedding=_embedding,
    )
