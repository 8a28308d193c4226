"""Long and short distance attention: in windows of neighbours, and among tokens spread evenly.

Source: CrossFormer, Wang et al. 2022 (arXiv 2108.00154), section 3.2, and its official code. A map
is cut into groups, and attention stays within each of them: in short distance attention a group is
a window, in long distance attention its tokens are `interval` rows and columns apart. Scores get a
bias per relative position that a small network computes, so that groups may have any size
(dynamic position bias, section 3.2.2).
"""

import dataclasses
import functools
from typing import Any, Literal

from einops import rearrange
from flax import linen as nn
import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from crossattn_jax import kernels, parallel
from crossattn_jax.kernels import biased, products
from crossattn_jax.layers import initializers, linear

Pair = tuple[int, int]

KINDS = ('short', 'long')
LONG_DISTANCES = ('region', 'global')
SMALL_MAPS = ('shrink', 'pad')

# Added to the scores of padded keys. Finite: a group may hold nothing but padding.
_MASKED = -1e6


@dataclasses.dataclass(frozen=True)
class Grouping:
  """How a map is cut into groups; rows first in each pair.

  With padding the map has `regions * group * interval` rows. Tokens of a group lie `interval` rows
  apart within one of the regions, which hold `interval[0] * interval[1]` groups each.

  Attributes:
    size: of the map.
    group: tokens on each side of a group.
    interval: between neighbours in a group; 1 makes windows.
    padding: rows before and after the map, columns before and after it.
  """

  size: Pair
  group: Pair
  interval: Pair = (1, 1)
  padding: tuple[Pair, Pair] = ((0, 0), (0, 0))

  @property
  def padded_size(self) -> Pair:
    """Rows and columns of the padded map."""
    return tuple(length + sum(pad) for length, pad in zip(self.size, self.padding, strict=True))

  @property
  def pads(self) -> bool:
    """Whether there is any padding."""
    return self.padded_size != self.size

  @property
  def lengths(self) -> dict[str, int]:
    """Of the axes in `split`: regions `r` and `s`, tokens `g` and `h`, intervals `i` and `j`."""
    (rows, columns), (g, h), (i, j) = self.padded_size, self.group, self.interval
    return {'r': rows // (g * i), 's': columns // (h * j), 'g': g, 'h': h, 'i': i, 'j': j}

  def pad(self, x: jax.Array) -> jax.Array:
    """Puts zeros around a map `[batch, height, width, ...]`."""
    return jnp.pad(x, ((0, 0), *self.padding, *((0, 0),) * (x.ndim - 3))) if self.pads else x

  def split(self, x: jax.Array) -> jax.Array:
    """Sorts a padded map `[batch, height, width, ...]` into `[batch, groups, tokens, ...]`."""
    return rearrange(x, 'b (r g i) (s h j) ... -> b (r s i j) (g h) ...', **self.lengths)

  def merge(self, groups: jax.Array) -> jax.Array:
    """The inverse of `split`."""
    return rearrange(groups, 'b (r s i j) (g h) ... -> b (r g i) (s h j) ...', **self.lengths)

  def cut_strips(self, x: jax.Array) -> jax.Array:
    """Joins the rows that groups share: `[batch, height, width, ...]` -> `[strips, tokens, ...]`.

    A strip holds whole groups, side by side or mixed column by column.
    """
    lengths = {name: self.lengths[name] for name in 'rgi'}
    return rearrange(x, 'b (r g i) w ... -> (b r i) (g w) ...', **lengths)

  def join_strips(self, strips: jax.Array) -> jax.Array:
    """The inverse of `cut_strips`."""
    lengths = {name: self.lengths[name] for name in 'rgi'}
    return rearrange(strips, '(b r i) (g w) ... -> b (r g i) w ...', **lengths)

  def strip_tokens(self) -> tuple[np.ndarray, np.ndarray]:
    """Of each token of a strip the group, counted within the strip, and the place in it."""
    column = np.arange(self.padded_size[1])
    (g, h), j = self.group, self.interval[1]
    group = column // (h * j) * j + column % j
    place = np.arange(g)[:, None] * h + column // j % h
    return np.tile(group, g), place.reshape(-1)

  def crop(self, x: jax.Array) -> jax.Array:
    """The inverse of `pad`."""
    (top, _), (left, _) = self.padding
    return x[:, top : top + self.size[0], left : left + self.size[1]]

  def real_tokens(self) -> np.ndarray | None:
    """Which tokens are none of padding, bool `[groups, tokens]`; None where nothing is padded."""
    if not self.pads:
      return None
    return self.split(np.pad(np.ones((1, *self.size), bool), ((0, 0), *self.padding)))[0]


def find_grouping(
  size: Pair,
  kind: Literal['short', 'long'],
  group_size: int,
  interval: int = 1,
  *,
  lda: Literal['region', 'global'] = 'region',
  small_map: Literal['shrink', 'pad'] = 'shrink',
  adaptive_interval: bool = False,
  center_padding: bool = False,
) -> Grouping:
  """Decides how a map of a given size is cut. A pure function of its arguments.

  A map that is not larger than a group, in one direction at least, has short distance attention
  whatever the kind.

  Args:
    size: of the map.
    kind: 'short' or 'long'.
    group_size: tokens on a side of a group.
    interval: of long distance attention.
    lda: how far long distance attention goes. 'region': groups of `group_size`, spread over regions
      of `group_size * interval`, as the classifiers and the latest dense predictors have them.
      'global': `interval * interval` groups, however many tokens that makes, as the published dense
      predictors have them.
    small_map: of a map that is not larger than a group. 'shrink': windows as large as its shorter
      side (classifiers). 'pad': one group as large as its longer side (dense predictors with
      `lda='region'`).
    adaptive_interval: replaces the interval by the one at which a region covers the map.
    center_padding: whether padding goes to all sides rather than to the bottom and the right.

  Returns:
    The grouping.

  Raises:
    ValueError: an argument is none of the choices, or not positive.
  """
  for name, value, choices in (
    ('kind', kind, KINDS),
    ('lda', lda, LONG_DISTANCES),
    ('small_map', small_map, SMALL_MAPS),
  ):
    if value not in choices:
      raise ValueError(f'{name}={value!r} is not one of {", ".join(choices)}')
  if min(*size, group_size, interval) < 1:
    raise ValueError(f'{size=}, {group_size=} and {interval=} must be positive')
  if min(size) <= group_size:
    kind, group_size = 'short', min(size) if small_map == 'shrink' else max(size)
  if kind == 'short':
    interval = 1
  elif adaptive_interval:
    interval = -(-max(size) // group_size)
  spread = kind == 'long' and lda == 'global'
  multiple = interval if spread else group_size * interval
  padding = []
  for length in size:
    missing = -length % multiple
    before = missing // 2 if center_padding else 0
    padding.append((before, missing - before))
  group = tuple(
    (length + sum(pad)) // interval if spread else group_size
    for length, pad in zip(size, padding, strict=True)
  )
  return Grouping(tuple(size), group, (interval, interval), tuple(padding))


def relative_offsets(group: Pair) -> np.ndarray:
  """All offsets (rows, columns) between two tokens of a group, rows slow.

  Returns:
    float32 `[2 * group[0] - 1, 2 * group[1] - 1, 2]`, from `1 - group` to `group - 1`.
  """
  axes = [np.arange(1 - length, length, dtype=np.float32) for length in group]
  return np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)


def relative_position_bias(table: jax.Array) -> jax.Array:
  """Spreads the biases of all offsets over all pairs of tokens.

  By products with constants of zeros and ones, which is exact: TPUs are slow at gathering.

  Args:
    table: `[2 * rows - 1, 2 * columns - 1, heads]`, an entry for each of `relative_offsets`.

  Returns:
    `[heads, tokens, tokens]`: the bias of a query (second axis) and a key (third axis).
  """

  def choices(length: int) -> jax.Array:
    offset = np.arange(length)[:, None] - np.arange(length) + length - 1
    return jnp.asarray(offset[..., None] == np.arange(2 * length - 1), table.dtype)

  rows, columns = (choices((length + 1) // 2) for length in table.shape[:2])
  bias = jnp.einsum('yvp,xuq,pqn->nyxvu', rows, columns, table, precision='highest')
  return rearrange(bias, 'n y x v u -> n (y x) (v u)')


def _scores(query, key, bias, real, scale):
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.einsum('bgqnd,bgknd->bgnqk', query * scale, key, preferred_element_type=dtype)
  if bias is not None:
    scores += bias.astype(dtype)
  return scores if real is None else scores + jnp.where(real, 0, _MASKED)[:, None, None]


def grouped_attention_weights(
  query: jax.Array,
  key: jax.Array,
  bias: jax.Array | None = None,
  real: jax.Array | np.ndarray | None = None,
  *,
  scale: float | None = None,
) -> jax.Array:
  """The weights of `grouped_attention`, `[batch, groups, heads, queries, keys]`."""
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  return nn.softmax(_scores(query, key, bias, real, scale))


def grouped_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array | None = None,
  real: jax.Array | np.ndarray | None = None,
  *,
  scale: float | None = None,
) -> jax.Array:
  """Attends within each group.

  Args:
    query: `[batch, groups, tokens, heads, head_dim]`.
    key: the same shape.
    value: the same shape.
    bias: added to the scores, `[heads, queries, keys]`.
    real: bool `[groups, tokens]`; the others are masked as keys. Of a group that has none at all
      the result is finite and means nothing.
    scale: of the scores; head_dim^-0.5 by default.

  Returns:
    The same shape in `value`'s dtype; the softmax is computed in at least float32.
  """
  weights = grouped_attention_weights(query, key, bias, real, scale=scale)
  return jnp.einsum('bgnqk,bgknd->bgqnd', weights.astype(value.dtype), value)


def _group_attention(
  qkv: jax.Array, bias: jax.Array | None, grouping: Grouping, scale: float
) -> jax.Array:
  """Attention of a padded map by `grouped_attention`."""
  groups = (
    parallel.constrain(grouping.split(part), 'batch', 'tokens', None, 'heads', None)
    for part in jnp.moveaxis(qkv, 3, 0)
  )
  return grouping.merge(grouped_attention(*groups, bias, grouping.real_tokens(), scale=scale))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _cpu_attention(
  qkv: jax.Array, bias: jax.Array | None, grouping: Grouping, scale: float
) -> jax.Array:
  """The same for CPUs: one transposition each way, and a backward pass of five products."""
  return _cpu_forward(qkv, bias, grouping, scale)[0]


def _strip_bias(bias: jax.Array, grouping: Grouping) -> jax.Array:
  """The bias between the tokens of a strip, `[heads, tokens, tokens]`; it hides other groups."""
  group, place = grouping.strip_tokens()
  # Products: a TPU gathers, and adds up the gradient, one element at a time.
  spread = jax.nn.one_hot(place, bias.shape[-1], dtype=bias.dtype)
  bias = jnp.einsum('qa,nab,kb->nqk', spread, bias, spread, precision='highest')
  return jnp.where(group[:, None] == group, bias, biased.HIDDEN)


def _kernel_pays(x: jax.Array, heads: int, grouping: Grouping) -> bool:
  """Whether a TPU attends to a map of this dtype in its kernel (figures in docs/crossformer.md)."""
  tokens = grouping.group[0] * grouping.padded_size[1]
  if x.dtype != jnp.bfloat16 or export.is_symbolic_dim(x.shape[0]):
    return False
  return biased.fits(x, (heads, tokens, tokens))


def _strip_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array,
  *,
  grouping: Grouping,
  scale: float,
  interpret: bool = False,
) -> jax.Array:
  """Attention of maps `[batch, height, width, heads * head_dim]` by the kernel of biased attention.

  Strips of the map attend to themselves, with other groups hidden. That scores several times as
  many pairs as there are, and spares a TPU the sorting into groups, which takes longer. Padding is
  hidden by a mask: which rows of a strip are padding differs from strip to strip.
  """
  key_mask = None
  if grouping.pads:
    real = grouping.pad(jnp.ones((1, *grouping.size), bool))
    key_mask = grouping.cut_strips(jnp.broadcast_to(real, (len(query), *grouping.padded_size)))
  out = biased.biased_attention(
    *(grouping.cut_strips(grouping.pad(x)) for x in (query, key, value)),
    _strip_bias(bias, grouping),
    num_heads=len(bias),
    scale=scale,
    key_mask=key_mask,
    implementation='tpu',
    interpret=interpret,
  )
  return grouping.crop(grouping.join_strips(out))


def _tpu_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, **options: Any
) -> jax.Array:
  """`_strip_attention`, on each device of a mesh for its images and heads."""
  # Heads stay side by side: XLA would pad the 32 channels of each to 128 at the shards' border.
  names = ('batch', None, None, ('heads', len(bias)))
  return parallel.map_shards(
    functools.partial(_strip_attention, **options),
    query,
    key,
    value,
    bias,
    names=(names, names, names, ('heads', None, None)),
    out_names=names,
  )


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
  dtype = jnp.promote_types(a.dtype, jnp.float32)
  return jnp.einsum(equation, a, b, preferred_element_type=dtype)


# A padded map, and its groups with the heads before the tokens; see `Grouping.split`.
_MAP, _HEADS = 'b (r g i) (s h j)', 'b (r s i j) n (g h)'


def _transpose(x: jax.Array, source: str, target: str, grouping: Grouping) -> jax.Array:
  return rearrange(x, f'{source} -> {target}', **grouping.lengths)


def _cpu_forward(qkv, bias, grouping, scale):
  parts = _transpose(qkv, f'{_MAP} c n d', f'c {_HEADS} d', grouping)
  query, key, value = parts
  scores = _product('bgnqd,bgnkd->bgnqk', query, key) * scale
  real = grouping.real_tokens()
  offset = 0 if bias is None else bias.astype(scores.dtype)
  if real is not None:
    offset += jnp.where(real, 0, _MASKED).astype(scores.dtype)[:, None, None]
  scores += offset
  weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
  weights /= weights.sum(axis=-1, keepdims=True)
  out = _product('bgnqk,bgnkd->bgnqd', weights.astype(value.dtype), value)
  result = _transpose(out.astype(value.dtype), f'{_HEADS} d', f'{_MAP} n d', grouping)
  return result, (parts, bias, weights, out)


def _cpu_backward(grouping, scale, residuals, d_result):
  parts, bias, weights, out = residuals
  query, key, value = parts.astype(weights.dtype)
  d_out = _transpose(d_result.astype(weights.dtype), f'{_MAP} n d', f'{_HEADS} d', grouping)
  delta = (d_out * out).sum(axis=-1, keepdims=True)
  d_scores = weights * (_product('bgnqd,bgnkd->bgnqk', d_out, value) - delta)
  d_bias = None if bias is None else d_scores.sum(axis=(0, 1)).astype(bias.dtype)
  d_scaled = d_scores * scale
  d_parts = (
    _product('bgnqk,bgnkd->bgnqd', d_scaled, key),
    _product('bgnqk,bgnqd->bgnkd', d_scaled, query),
    _product('bgnqk,bgnqd->bgnkd', weights, d_out),
  )
  d_parts = jnp.stack([part.astype(parts.dtype) for part in d_parts])
  return _transpose(d_parts, f'c {_HEADS} d', f'{_MAP} c n d', grouping), d_bias


_cpu_attention.defvjp(_cpu_forward, _cpu_backward)


def long_short_distance_attention(
  qkv: jax.Array,
  grouping: Grouping,
  bias: jax.Array | None = None,
  *,
  scale: float | None = None,
) -> jax.Array:
  """Attends within the groups of a map; padding is never looked at.

  Args:
    qkv: query, key and value of each position, `[batch, height, width, 3, heads, head_dim]`.
    grouping: of `find_grouping` for this size.
    bias: added to the scores, `[heads, tokens, tokens]` of a group.
    scale: of the scores; head_dim^-0.5 by default.

  Returns:
    `[batch, height, width, heads, head_dim]` in `qkv`'s dtype; the softmax is computed in at least
    float32.
  """
  scale = qkv.shape[-1] ** -0.5 if scale is None else scale
  grouped = functools.partial(_grouped_map_attention, grouping=grouping, scale=scale)
  if bias is None or not _kernel_pays(qkv, qkv.shape[4], grouping):
    return grouped(qkv, bias)

  def strips(qkv, bias):
    parts = jnp.moveaxis(qkv.reshape(*qkv.shape[:4], -1), 3, 0)
    out = _tpu_attention(*parts, bias, grouping=grouping, scale=scale)
    return out.reshape(*out.shape[:3], *qkv.shape[4:])

  return jax.lax.platform_dependent(qkv, bias, tpu=strips, default=grouped)


def _grouped_map_attention(
  qkv: jax.Array, bias: jax.Array | None, grouping: Grouping, scale: float
) -> jax.Array:
  """The form with groups, on any platform."""
  out = jax.lax.platform_dependent(
    grouping.pad(qkv),
    bias,
    cpu=lambda qkv, bias: _cpu_attention(qkv, bias, grouping, scale),
    default=lambda qkv, bias: _group_attention(qkv, bias, grouping, scale),
  )
  return grouping.crop(out)


def project(x: jax.Array, kernel: jax.Array, offset: jax.Array) -> jax.Array:
  """Query, key and value of each position.

  Args:
    x: `[batch, height, width, channels]`.
    kernel: `[channels, 3, heads, head_dim]`, in `x`'s dtype.
    offset: `[3, heads, head_dim]`, the same.

  Returns:
    `[batch, height, width, 3, heads, head_dim]`.
  """
  qkv = kernels.contract(x, kernel) + offset
  return parallel.constrain(qkv, 'batch', 'height', 'width', None, 'heads', None)


def projected_attention(
  x: jax.Array, kernel: jax.Array, offset: jax.Array, grouping: Grouping, bias: jax.Array | None
) -> jax.Array:
  """`long_short_distance_attention` of what `project` makes of a map.

  Together, because the kernel for TPUs wants query, key and value as three arrays: to split one
  takes a TPU longer than to multiply three times.

  Args:
    x: see `project`, as the following.
    kernel: see there.
    offset: see there.
    grouping: see `long_short_distance_attention`, as the following.
    bias: see there.

  Returns:
    `[batch, height, width, heads, head_dim]` in `x`'s dtype.
  """
  heads, width = kernel.shape[2:]
  scale = width**-0.5

  def grouped(x, kernel, offset, bias):
    return _grouped_map_attention(project(x, kernel, offset), bias, grouping, scale)

  if bias is None or not _kernel_pays(x, heads, grouping):
    return grouped(x, kernel, offset, bias)

  def strips(x, kernel, offset, bias):
    parts = products.project_each(x, kernel, offset)
    out = _tpu_attention(*parts, bias, grouping=grouping, scale=scale)
    return out.reshape(*x.shape[:3], heads, width)

  return jax.lax.platform_dependent(x, kernel, offset, bias, tpu=strips, default=grouped)


class DynamicPositionBias(nn.Module):
  """A bias per head from the offset between two tokens (section 3.2.2; DPB in the code).

  Computed in at least float32: norms over so few channels magnify rounding.

  Attributes:
    num_heads: of the attention.
    hidden: width of the network.
    residual: whether its two middle layers are added to their inputs.
    param_dtype: of the parameters.
  """

  num_heads: int
  hidden: int
  residual: bool = False
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, offsets: jax.Array | np.ndarray) -> jax.Array:
    """Maps `[..., 2]`, offsets in rows and columns, to `[..., num_heads]`."""
    dense = functools.partial(
      linear.Dense, kernel_init=initializers.linear, param_dtype=self.param_dtype
    )
    x = dense(self.hidden, name='linear_0')(jnp.asarray(offsets))
    for i, width in enumerate((self.hidden, self.hidden, self.num_heads), start=1):
      norm = nn.LayerNorm(
        epsilon=1e-5, use_fast_variance=False, param_dtype=self.param_dtype, name=f'norm_{i}'
      )
      out = dense(width, name=f'linear_{i}')(nn.relu(norm(x)))
      x = x + out if self.residual and i < 3 else out
    return x


class LongShortDistanceAttention(nn.Module):
  """Attention within the groups of a map of any size.

  Attributes:
    num_heads: must divide the channels.
    kind: see `find_grouping`, as the following.
    group_size: see there.
    interval: see there.
    lda: see there.
    small_map: see there.
    adaptive_interval: see there.
    center_padding: see there.
    mask_padding: whether padded tokens are hidden; if not, they take part as keys whose projection
      is the bias.
    position_bias: whether scores have a dynamic position bias.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  num_heads: int
  kind: Literal['short', 'long'] = 'short'
  group_size: int = 7
  interval: int = 1
  lda: Literal['region', 'global'] = 'region'
  small_map: Literal['shrink', 'pad'] = 'shrink'
  adaptive_interval: bool = False
  center_padding: bool = False
  mask_padding: bool = True
  position_bias: bool = True
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  @nn.nowrap
  def grouping(self, size: Pair) -> Grouping:
    """How a map of this size is cut."""
    return find_grouping(
      tuple(size),
      self.kind,
      self.group_size,
      self.interval,
      lda=self.lda,
      small_map=self.small_map,
      adaptive_interval=self.adaptive_interval,
      center_padding=self.center_padding,
    )

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool = False, with_weights: bool = False
  ) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Maps `[batch, height, width, channels]` to the same shape.

    Args:
      x: the map.
      train: changes nothing; attention has no dropout.
      with_weights: whether to return the weights too.

    Returns:
      The map; with `with_weights` a pair with the mean of all heads' weights, `[batch, groups,
      queries, keys]`, of the groups of `grouping`.
    """
    del train
    channels = x.shape[-1]
    if channels % self.num_heads:
      raise ValueError(f'num_heads={self.num_heads} does not divide the width {channels}')
    grouping = self.grouping(x.shape[1:3])
    cut = grouping
    if not self.mask_padding:
      x = grouping.pad(x)
      cut = Grouping(grouping.padded_size, grouping.group, grouping.interval)
    projections = linear.Projections(
      3,
      self.num_heads,
      channels // self.num_heads,
      param_dtype=self.param_dtype,
      kernel_init=initializers.linear,
      name='qkv',
    )
    x, *parameters = nn.dtypes.promote_dtype(x, *projections.parameters(channels), dtype=self.dtype)
    bias = None
    if self.position_bias:
      # The original divides the width by four twice.
      table = DynamicPositionBias(
        self.num_heads, channels // 4 // 4, param_dtype=self.param_dtype, name='position_bias'
      )
      bias = relative_position_bias(table(relative_offsets(grouping.group)))
    out = projected_attention(x, *parameters, cut, bias)
    if not self.mask_padding:
      out = grouping.crop(out)
    out = linear.Dense(
      channels,
      axis=(-2, -1),
      kernel_init=initializers.linear,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name='out',
    )(out)
    if not with_weights:
      return out
    query, key, _ = jnp.moveaxis(cut.split(cut.pad(project(x, *parameters))), 3, 0)
    weights = grouped_attention_weights(query, key, bias, cut.real_tokens())
    return out, weights.mean(axis=2)
