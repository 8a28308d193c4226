"""Class-token cross-attention: one query token per sample gathers from all tokens.

Source: CrossViT, Chen et al. 2021 (arXiv 2103.14899), section 3.3, equation 6 and figure 4.
"""

from collections.abc import Callable
import functools
from typing import Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.layers import linear, module

Dropout = Callable[[jax.Array], jax.Array]


def class_token_weights(query: jax.Array, key: jax.Array) -> jax.Array:
  """softmax(query key^T head_dim^-1/2) of one token per sample (A of equation 6).

  Args:
    query: `[batch, heads, head_dim]`.
    key: `[batch, tokens, heads, head_dim]`.

  Returns:
    `[batch, heads, tokens]` in at least float32.
  """
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.einsum('bhd,bnhd->bhn', query, key, preferred_element_type=dtype)
  return nn.softmax(scores * query.shape[-1] ** -0.5)


def class_token_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, *, dropout: Dropout | None = None
) -> tuple[jax.Array, jax.Array]:
  """Attends from one token per sample to `tokens` tokens (equation 6).

  Args:
    query: `[batch, heads, head_dim]`.
    key: `[batch, tokens, heads, head_dim]`.
    value: the same shape as `key`.
    dropout: applied to the attention weights.

  Returns:
    The result `[batch, heads, head_dim]` in `value`'s dtype, and the attention weights before
    dropout `[batch, heads, tokens]` in at least float32.

  Examples:
    >>> query, tokens = jnp.ones((2, 3, 8)), jnp.ones((2, 10, 3, 8))
    >>> result, weights = jax.eval_shape(class_token_attention, query, tokens, tokens)
    >>> result.shape, weights.shape
    ((2, 3, 8), (2, 3, 10))
  """
  weights = class_token_weights(query, key)
  used = (weights if dropout is None else dropout(weights)).astype(value.dtype)
  return jnp.einsum('bhn,bnhd->bhd', used, value), weights


def folded_class_token_attention(
  query: jax.Array,
  tokens: jax.Array,
  key_kernel: jax.Array,
  value_kernel: jax.Array,
  value_bias: jax.Array | None = None,
  *,
  dropout: Dropout | None = None,
) -> tuple[jax.Array, jax.Array]:
  """`class_token_attention` of projected tokens (equation 6), without ever projecting them.

  With a single query the key matrix can be applied to the query and the value matrix to the pooled
  token: q . (W_k y_n) = (W_k^T q) . y_n and sum_n a_n (W_v y_n) = W_v (sum_n a_n y_n). The bias of
  the keys adds the same number to every score and drops out of the softmax.

  Args:
    query: `[batch, heads, head_dim]`.
    tokens: `[batch, tokens, channels]`, what keys and values are projected from.
    key_kernel: `[channels, heads, head_dim]`.
    value_kernel: the same shape as `key_kernel`.
    value_bias: `[heads, head_dim]`, or None.
    dropout: applied to the attention weights.

  Returns:
    The result `[batch, heads, head_dim]` in `tokens`' dtype, and the attention weights before
    dropout `[batch, heads, tokens]` in at least float32.
  """
  score_dtype = jnp.promote_types(query.dtype, jnp.float32)
  folded_query = jnp.einsum('bhd,chd->bhc', query, key_kernel)
  scores = jnp.einsum('bhc,bnc->bhn', folded_query, tokens, preferred_element_type=score_dtype)
  weights = nn.softmax(scores * query.shape[-1] ** -0.5)
  used = (weights if dropout is None else dropout(weights)).astype(tokens.dtype)
  pooled = jnp.einsum('bhn,bnc->bhc', used, tokens)
  out = jnp.einsum('bhc,chd->bhd', pooled, value_kernel)
  if value_bias is not None:
    # Without dropout the weights sum to one.
    total = 1 if dropout is None else used.sum(axis=-1)[..., None]
    out = out + total * value_bias
  return out, weights


def folding_pays(tokens: int, channels: int, num_heads: int) -> bool:
  """Whether the folded form multiplies less than projecting every token to a key and a value.

  Per sample the projections cost 2 n D^2 + 2 n D multiplications and the folded form
  2 n D h + 2 D^2, for n tokens of width D and h heads. `benchmarks/class_token_attention.py`
  measures both.
  """
  projected = 2 * tokens * channels**2 + 2 * tokens * channels
  folded = 2 * tokens * channels * num_heads + 2 * channels**2
  return folded < projected


class _HeadProjection(module.Module):
  """A linear map to heads, whose parameters can also be read without applying it.

  Attributes:
    channels: width of the input.
    num_heads: heads of the output.
    use_bias: whether there is a bias.
    kernel_init: of the kernel.
  """

  channels: int
  num_heads: int
  use_bias: bool
  kernel_init: nn.initializers.Initializer

  def setup(self):
    shape = (self.channels, self.num_heads, self.channels // self.num_heads)
    self.kernel = self.param('kernel', self.kernel_init, shape, self.param_dtype)
    self.bias = None
    if self.use_bias:
      self.bias = self.param('bias', nn.initializers.zeros, shape[1:], self.param_dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[..., channels]` to `[..., heads, head_dim]`."""
    x, kernel, bias = nn.dtypes.promote_dtype(x, self.kernel, self.bias, dtype=self.dtype)
    out = jnp.einsum('...c,chd->...hd', x, kernel)
    return out if bias is None else out + bias


class ClassTokenAttention(module.Module):
  """Cross-attention whose only query is token 0 (equation 6 with several heads, figure 4).

  Attributes:
    num_heads: must divide the width of the tokens.
    qkv_bias: whether the projections to query, key and value have biases.
    attention_drop_rate: dropout of the attention weights.
    drop_rate: dropout of the result.
    form: 'projected' computes keys and values, 'folded' never does, 'auto' takes the one that
      multiplies less (`folding_pays`). The parameters are the same and so, exactly, is the result.
    kernel_init: of the four projections.

  Examples:
    >>> attention, x = ClassTokenAttention(num_heads=4), jnp.ones((2, 97, 64))
    >>> (token, weights), _ = jax.eval_shape(attention.init_with_output, jax.random.key(0), x)
    >>> token.shape, weights.shape
    ((2, 1, 64), (2, 4, 97))
  """

  num_heads: int
  qkv_bias: bool = True
  attention_drop_rate: float = 0.0
  drop_rate: float = 0.0
  form: Literal['auto', 'projected', 'folded'] = 'auto'
  kernel_init: nn.initializers.Initializer = nn.initializers.normal(stddev=0.02)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
    """Attends from the first token of `[batch, tokens, channels]` to all of them, itself included.

    Returns:
      The new token `[batch, 1, channels]` and the attention weights `[batch, heads, tokens]`.
    """
    tokens, channels = x.shape[-2:]
    if channels % self.num_heads:
      raise ValueError(f'num_heads={self.num_heads} does not divide the width {channels}')
    if self.form not in ('auto', 'projected', 'folded'):
      raise ValueError(f"unknown form {self.form!r}; use 'auto', 'projected' or 'folded'")
    common = {'kernel_init': self.kernel_init, **self.types}
    projection = functools.partial(
      _HeadProjection, channels, self.num_heads, self.qkv_bias, **common
    )
    query, key, value = (projection(name=name) for name in ('query', 'key', 'value'))
    drops_weights = train and self.attention_drop_rate > 0
    dropout = nn.Dropout(self.attention_drop_rate, deterministic=False) if drops_weights else None

    class_query = parallel.constrain(query(x[:, 0]), 'batch', 'heads', None)
    folds = self.form == 'folded' or (
      self.form == 'auto' and folding_pays(tokens, channels, self.num_heads)
    )
    if folds:
      x, key_kernel, value_kernel, value_bias = nn.dtypes.promote_dtype(
        x, key.kernel, value.kernel, value.bias, dtype=self.dtype
      )
      out, weights = folded_class_token_attention(
        class_query, x, key_kernel, value_kernel, value_bias, dropout=dropout
      )
    else:
      keys, values = (
        parallel.constrain(part, 'batch', 'tokens', 'heads', None) for part in (key(x), value(x))
      )
      out, weights = class_token_attention(class_query, keys, values, dropout=dropout)
    out = linear.Dense(channels, axis=(-2, -1), name='out', **common)(out)
    out = nn.Dropout(self.drop_rate, deterministic=not train)(out)
    return out[:, None], weights
