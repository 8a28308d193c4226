"""CCNet: semantic segmentation with recurrent criss-cross attention.

Source: Huang, Wang, Wei, Huang, Shi, Liu, Huang, "CCNet: Criss-Cross Attention for Semantic
Segmentation", ICCV 2019, and its journal version (arXiv 1811.11721). Where paper and official code
(speedinghzl/CCNet) differ, this follows the code; docs/ccnet.md lists the differences.

A dilated ResNet gives a map at stride 8. Each pixel attends to its row and its column, twice: then
it has seen the whole image.
"""

from typing import Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.heads import style as style_lib
from crossattn_jax.heads.segmentation import aspp, fcn, psp, rcca
from crossattn_jax.layers import module
from crossattn_jax.models import registry
from crossattn_jax.models.backbones import resnet
from crossattn_jax.models.parts import checks
from crossattn_jax.models.parts.types import Features

CONTEXTS = ('rcca', 'psp', 'aspp')


class CCNet(module.Module):
  """Dilated ResNet, context head, auxiliary head; PSPNet and DeepLabv3 by their heads.

  Attributes:
    num_classes: of the labels.
    image_size: (height, width) of the crops of the recipe; any other size will do.
    depths: bottlenecks of each stage of the backbone.
    widths: inside the bottlenecks.
    stem_widths: of the convolutions of the stem.
    output_stride: of the backbone's last map.
    multi_grid: factors of the dilation of the last stage's blocks.
    context: the head: 'rcca', 'psp' or 'aspp'.
    recurrence: how often the criss-cross attention is applied. Checkpoints do not say it.
    context_channels: inside the head: of the attention, of each pooled map or branch; the head's
      own where None.
    head_channels: of the map before the classifier, and in the auxiliary head.
    auxiliary: whether the third stage's map is classified too.
    embedding: channels for the category consistent loss; 0 leaves them out.
    activated_norm: whether norms are those of Inplace-ABN; see `BatchNorm`. Otherwise |scale| +
      epsilon is the plain scale, all else is the same.
    dropout_rate: of whole channels before the classifiers.
    num_channels: of the input image.
    remat: whether the backward pass recomputes each block of the backbone.
    scan_blocks: whether equal blocks of the backbone are one loop; see `ResNet`.
    implementation: of `kernels.criss_cross_attention`.
  """

  num_classes: int = 19
  image_size: tuple[int, int] = (769, 769)
  depths: tuple[int, ...] = (3, 4, 23, 3)
  widths: tuple[int, ...] = (64, 128, 256, 512)
  stem_widths: tuple[int, ...] = (64, 64, 128)
  output_stride: int = 8
  multi_grid: tuple[int, ...] = (1,)
  context: Literal['rcca', 'psp', 'aspp'] = 'rcca'
  recurrence: int = 2
  context_channels: int | None = None
  head_channels: int = 512
  auxiliary: bool = True
  embedding: int = 0
  activated_norm: bool = True
  dropout_rate: float = 0.1
  num_channels: int = 3
  remat: bool = False
  scan_blocks: bool = False
  implementation: str = 'auto'

  def __post_init__(self):
    checks.check_choices(self, context=CONTEXTS)
    if self.embedding and self.context != 'rcca':
      raise ValueError(f"embedding={self.embedding} needs context='rcca', not {self.context!r}")
    super().__post_init__()

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> tuple[jax.Array, Features]:
    """Labels every pixel.

    Args:
      image: `[batch, height, width, num_channels]`, or videos `[batch, time, height, width,
        num_channels]`, whose pixels attend along time too. The official weights expect blue, green,
        red in 0..255 minus their means.
      train: whether channels are dropped (rng 'dropout') and batch norms use the batch, whose
        statistics go into the collection 'batch_stats' where that is mutable.

    Returns:
      Logits `[batch, (time,) rows, columns, num_classes]` at the output stride, in at least
      float32, and features (of videos, one frame after the other):
        'auxiliary_logits': of the auxiliary head, like the logits.
        'stage_{s}': what stage s of the backbone returns.
        'context', 'attention/{r}', 'embedding': see `RCCAHead`.
    """
    frames = image.shape[1] if image.ndim == 5 else None
    if image.ndim not in (4, 5) or image.shape[-1] != self.num_channels:
      raise ValueError(
        f'CCNet expects images [batch, height, width, {self.num_channels}] or videos [batch, time, '
        f'height, width, {self.num_channels}], not an array of shape {image.shape}'
      )
    leading = image.shape[:-3]
    image = image.reshape(-1, *image.shape[-3:])
    backbone = resnet.ResNet(
      num_classes=0,
      image_size=self.image_size,
      depths=self.depths,
      widths=self.widths,
      stem_widths=self.stem_widths,
      output_stride=self.output_stride,
      multi_grid=self.multi_grid,
      ceil_mode=True,
      absolute_scale=self.activated_norm,
      num_channels=self.num_channels,
      remat=self.remat,
      scan_blocks=self.scan_blocks,
      name='backbone',
      **self.types,
    )
    _, features = backbone(image, train)
    style = self.style()
    if self.auxiliary:
      head = fcn.FCNHead(
        self.num_classes, style, self.head_channels, use_bias=True, name='auxiliary_head'
      )
      logits = head(features['stage_2'], train)
      features['auxiliary_logits'] = logits.reshape(*leading, *logits.shape[1:])
    x = features['stage_3']
    if self.context == 'rcca':
      logits, context = self.attention_head()(x, train, frames)
      features |= context
    elif self.context == 'psp':
      channels = self.context_channels or self.head_channels
      logits = psp.PSPHead(self.num_classes, style, channels, self.head_channels, name='head')(
        x, train
      )
    else:
      channels = self.context_channels or self.head_channels // 2
      logits = aspp.ASPPHead(self.num_classes, style, channels, self.head_channels, name='head')(
        x, train
      )
    return logits.reshape(*leading, *logits.shape[1:]), features

  @nn.nowrap
  def style(self) -> style_lib.Style:
    """How the heads' convolutions are built."""
    return style_lib.Style(
      corner_aligned=True,
      activated_norm=self.activated_norm,
      dropout_rate=self.dropout_rate,
      **self.types,
    )

  @nn.nowrap
  def attention_head(self) -> rcca.RCCAHead:
    """The head of recurrent criss-cross attention."""
    return rcca.RCCAHead(
      self.num_classes,
      self.style(),
      self.context_channels,
      self.head_channels,
      self.recurrence,
      self.embedding,
      self.implementation,
      name='head',
    )

  @nn.nowrap
  def attention_maps(self, features: Features) -> dict[str, jax.Array]:
    """Returns where a pixel looks: after one application, and after all.

    It is the one at `features['place']`, shares of height and width; by default that in the middle.

    Weights of several applications are multiplied along all ways that lead from pixel to pixel.

    Args:
      features: as `__call__` returns them.

    Returns:
      Maps `[batch, rows, columns]`, each of sum one.
    """
    if 'attention/0' not in features:
      return {}
    looks = next(iter(self.attention_queries(features).values()))
    maps = {}
    for r in reversed(range(self.recurrence)):
      column, row = jnp.split(features[f'attention/{r}'], [looks.shape[1]], axis=-1)
      looks = jnp.einsum('bhw,bhwg->bgw', looks, column) + jnp.einsum('bhw,bhwu->bhu', looks, row)
      maps[self._look_name(self.recurrence - r)] = looks
    return maps

  @nn.nowrap
  def attention_queries(self, features: Features) -> dict[str, jax.Array]:
    """Returns the pixel that looks in `attention_maps`, as maps of the same names and shapes."""
    if 'attention/0' not in features:
      return {}
    weights = features['attention/0']
    batch, rows, columns, _ = weights.shape
    place = features.get('place', jnp.full((batch, 2), 0.5))
    row, column = ((place * jnp.array([rows, columns])).astype(jnp.int32)).T
    query = jax.nn.one_hot(row * columns + column, rows * columns, dtype=weights.dtype)
    query = query.reshape(batch, rows, columns)
    names = [self._look_name(n) for n in range(1, self.recurrence + 1)]
    return dict.fromkeys(names, query)

  def _look_name(self, times: int) -> str:
    """What `attention_maps` call the reach of so many applications."""
    return f'where the framed pixel looks in {times} {"step" if times == 1 else "steps"}'


for _name, _depths in resnet.DEPTHS.items():
  registry.register(f'ccnet_{_name}', CCNet, depths=_depths)
  registry.register(f'ccnet3d_{_name}', CCNet, depths=_depths, recurrence=3)
  registry.register(f'pspnet_{_name}', CCNet, depths=_depths, context='psp')
  registry.register(f'deeplabv3_{_name}', CCNet, depths=_depths, context='aspp')
