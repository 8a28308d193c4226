"""Dual cross-attention: two modalities re-weight each other by their queries, iteratively.

Source: ICAFusion, Shen et al. 2024 (Pattern Recognition 145, arXiv 2308.07504): its modules CFE,
cross-modal feature enhancement, and ICFE, the same with shared parameters over several iterations.
The modalities are called RGB and thermal, as there; any two streams of one size will do.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import kernels, parallel
from crossattn_jax.layers import activations, linear, mlp, module

Dropout = Callable[[jax.Array], jax.Array]

EPSILON = 1e-5  # Of the layer norms.
MODALITIES = ('rgb', 'thermal')


class Projected(NamedTuple):
  """The tokens of one modality, as attention takes them.

  Attributes:
    query: `[batch, tokens, heads, head_dim]`.
    key: the same shape.
    value: the same shape.
  """

  query: jax.Array
  key: jax.Array
  value: jax.Array


def dual_cross_attention(
  rgb: Projected, thermal: Projected, *, dropout: Dropout | None = None
) -> tuple[jax.Array, jax.Array]:
  """Each modality's values, mixed by the other's queries (ICAFusion, module CFE).

  Z_rgb = softmax(Q_thermal K_rgb^T head_dim^-1/2) V_rgb, and the other way round. So a modality is
  never added to the other one here: it says where in the other one to look.

  Args:
    rgb: the one modality.
    thermal: the other, of the same shape.
    dropout: applied to the attention weights.

  Returns:
    What is new of RGB and of thermal, each `[batch, tokens, heads, head_dim]`.
  """
  attend = functools.partial(kernels.dot_product_attention, dropout=dropout)
  return (
    attend(thermal.query, rgb.key, rgb.value),
    attend(rgb.query, thermal.key, thermal.value),
  )


def attention_weights(query: jax.Array, key: jax.Array) -> jax.Array:
  """The weights of one direction of `dual_cross_attention`, means over the heads.

  Args:
    query: of the one modality, `[batch, queries, heads, head_dim]`; any of its tokens.
    key: of the other, `[batch, tokens, heads, head_dim]`.

  Returns:
    `[batch, queries, tokens]`, of sum one over the tokens.
  """
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.einsum('bqhd,bkhd->bhqk', query, key, preferred_element_type=dtype)
  return nn.softmax(scores * query.shape[-1] ** -0.5).mean(axis=1)


class Modality(module.Module):
  """The norm and the projections that one modality has in a `DualCrossAttention`."""

  width: int
  num_heads: int
  kernel_init: nn.initializers.Initializer

  def setup(self):
    """Creates the parts."""
    options = {'kernel_init': self.kernel_init, **self.types}
    heads = (self.num_heads, self.width // self.num_heads)
    self.norm = self.layer_norm(epsilon=EPSILON)
    self.query, self.key, self.value = (linear.Dense(heads, **options) for _ in Projected._fields)
    self.out = linear.Dense(self.width, axis=(-2, -1), **options)

  def project(self, x: jax.Array) -> Projected:
    """Maps `[batch, tokens, width]` to query, key and value of the normed tokens."""
    x = self.norm(x)
    parts = (project(x) for project in (self.query, self.key, self.value))
    return Projected(
      *(parallel.constrain(part, 'batch', 'tokens', 'heads', None) for part in parts)
    )

  def merge(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, tokens, heads, head_dim]` to `[batch, tokens, width]`."""
    return self.out(x)


class DualCrossAttention(module.Module):
  """`dual_cross_attention` with each modality's norm and projections (module CFE).

  Attributes:
    num_heads: must divide the width of the tokens.
    attention_drop_rate: dropout of the attention weights.
    drop_rate: dropout of the results.
    kernel_init: of all projections. With the authors' all weights start equal and the results at 0.

  Examples:
    >>> attention, rgb = DualCrossAttention(num_heads=4), jnp.ones((2, 9, 64))
    >>> thermal = jnp.ones((2, 9, 64))
    >>> news, _ = jax.eval_shape(attention.init_with_output, jax.random.key(0), rgb, thermal)
    >>> [x.shape for x in news]
    [(2, 9, 64), (2, 9, 64)]
  """

  num_heads: int = 8
  attention_drop_rate: float = 0.0
  drop_rate: float = 0.0
  kernel_init: nn.initializers.Initializer = nn.initializers.normal(stddev=0.001)

  @nn.compact
  def __call__(
    self, rgb: jax.Array, thermal: jax.Array, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """What is new of two `[batch, tokens, channels]`, each in its own shape.

    Raises:
      ValueError: the shapes differ, or the heads do not divide the channels.
    """
    channels = rgb.shape[-1]
    if rgb.shape != thermal.shape:
      raise ValueError(f'the modalities have shapes {rgb.shape} and {thermal.shape}, not one')
    if channels % self.num_heads:
      raise ValueError(f'num_heads={self.num_heads} does not divide the width {channels}')
    modalities = [
      Modality(channels, self.num_heads, self.kernel_init, name=name, **self.types)
      for name in MODALITIES
    ]
    projected = (own.project(x) for own, x in zip(modalities, (rgb, thermal), strict=True))
    drops_weights = train and self.attention_drop_rate > 0
    dropout = nn.Dropout(self.attention_drop_rate, deterministic=False) if drops_weights else None
    mixed = dual_cross_attention(*projected, dropout=dropout)
    drop = nn.Dropout(self.drop_rate, deterministic=not train)
    new_rgb, new_thermal = (drop(own.merge(x)) for own, x in zip(modalities, mixed, strict=True))
    return new_rgb, new_thermal


class WeightedSum(module.Module):
  """A residual connection with two learnt scalars, at first 1: `kept * x + added * change`."""

  @nn.compact
  def __call__(self, x: jax.Array, change: jax.Array) -> jax.Array:
    """Maps two arrays of one shape to that shape."""
    kept, added = (
      self.param(name, nn.initializers.ones, (), self.param_dtype) for name in ('kept', 'added')
    )
    x, change, kept, added = nn.dtypes.promote_dtype(x, change, kept, added, dtype=self.dtype)
    return kept * x + added * change


class IterativeCrossModalBlock(module.Module):
  """Dual cross-attention and MLPs, applied several times with the same parameters (module ICFE).

  With c1 to c8 the learnt coefficients, one iteration is

      rgb = c1 rgb + c2 Z_rgb                  thermal = c3 thermal + c4 Z_thermal
      rgb = c5 rgb + c6 MLP_rgb(LN(rgb))       thermal = c7 thermal + c8 MLP_thermal(LN(thermal))

  where Z is of `DualCrossAttention` and the norm LN is shared by the modalities.

  Attributes:
    num_heads: must divide the width of the tokens.
    mlp_ratio: hidden width of the MLPs per channel.
    loops: iterations.
    attention_drop_rate: dropout of the attention weights.
    drop_rate: dropout of what attention and MLPs return.
    unused_parameters: whether to hold also what the original has and never uses, in the collection
      'unused', so that its checkpoints are kept whole.
  """

  num_heads: int = 8
  mlp_ratio: float = 4
  loops: int = 1
  attention_drop_rate: float = 0.0
  drop_rate: float = 0.0
  unused_parameters: bool = False

  @nn.compact
  def __call__(
    self, rgb: jax.Array, thermal: jax.Array, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Maps two `[batch, tokens, channels]` to the same shapes.

    Raises:
      ValueError: there is no iteration; see also `DualCrossAttention`.
    """
    if self.loops < 1:
      raise ValueError(f'loops={self.loops}; there must be at least one iteration')
    hidden = int(self.mlp_ratio * rgb.shape[-1])
    attention = DualCrossAttention(
      self.num_heads, self.attention_drop_rate, self.drop_rate, name='attention', **self.types
    )
    norm = self.layer_norm('norm', EPSILON)
    options = {'activation': activations.gelu, 'drop_hidden': False, **self.types}
    mlps = [mlp.FeedForward(hidden, self.drop_rate, name=f'mlp_{m}', **options) for m in MODALITIES]
    attention_sums, mlp_sums = (
      [WeightedSum(name=f'{part}_sum_{m}', **self.types) for m in MODALITIES]
      for part in ('attention', 'mlp')
    )
    streams = rgb, thermal
    for _ in range(self.loops):
      new = attention(*streams, train)
      streams = [add(x, z) for add, x, z in zip(attention_sums, streams, new, strict=True)]
      streams = [
        add(x, own(norm(x), train)) for add, x, own in zip(mlp_sums, streams, mlps, strict=True)
      ]
    if self.unused_parameters:
      for key, shape in self._unused_shapes(rgb.shape[-1], hidden).items():
        self.variable('unused', key, jnp.zeros, shape, self.param_dtype)
    rgb, thermal = (parallel.constrain(x, 'batch', 'tokens', 'channels') for x in streams)
    return rgb, thermal

  def _unused_shapes(self, channels: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Three more norms and another MLP of the original, by its keys."""
    norms = [f'{norm}.{x}' for norm in ('ln_input', 'ln_output', 'LN1') for x in ('weight', 'bias')]
    return {
      **dict.fromkeys(norms, (channels,)),
      'mlp.0.weight': (hidden, channels),
      'mlp.0.bias': (hidden,),
      'mlp.2.weight': (channels, hidden),
      'mlp.2.bias': (channels,),
    }
