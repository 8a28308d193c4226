"""From tokens to one vector: of the words of a sentence, or of the regions of an image."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import kernels
from crossattn_jax.layers import initializers, linear, module, similarity


def masked_mean(tokens: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean over the tokens that count, in at least float32; zeros where none does.

  Args:
    tokens: `[..., tokens, channels]`.
    mask: bool `[..., tokens]`.

  Returns:
    `[..., channels]`.
  """
  tokens = tokens.astype(jnp.promote_types(tokens.dtype, jnp.float32))
  total = jnp.sum(tokens, axis=-2, where=mask[..., None])
  return total / jnp.maximum(mask.sum(axis=-1, keepdims=True), 1).astype(total.dtype)


class PhraseCNN(module.Module):
  """Embeds a sentence by its strongest phrases: 1-D convolutions, maxima, a linear map.

  Regions, in the order that they are given in, may take the place of words.

  Attributes:
    width: of the embedding.
    kernel_sizes: words per phrase.
    channels: of each size.
    drop_rate: before the linear map.
  """

  width: int
  kernel_sizes: tuple[int, ...] = (1, 2, 3)
  channels: int = 512
  drop_rate: float = 0.0

  @nn.compact
  def __call__(self, words: jax.Array, mask: jax.Array, train: bool = False) -> jax.Array:
    """Embeds sentences.

    Args:
      words: `[..., length, channels]`.
      mask: bool `[..., length]`, True for the words, which come first. Only phrases within them
        compete; of a sentence that is shorter than a phrase, its first.
      train: whether it drops.

    Returns:
      `[..., width]` of length one, in at least float32.

    Raises:
      ValueError: there is not room for a phrase.
    """
    length, channels = words.shape[-2:]
    if length < max(self.kernel_sizes):
      raise ValueError(
        f'{length} slots have no room for windows of {max(self.kernel_sizes)}, the largest of '
        'kernel_sizes: pad them'
      )
    count = mask.sum(axis=-1, keepdims=True)
    leading = words.shape[:-2]
    # One axis of sentences: `nn.Conv` itself does not join axes of open size.
    words = words.reshape(-1, length, channels)
    strongest = []
    for i, size in enumerate(self.kernel_sizes):
      init = initializers.torch_convolution(size * channels)
      phrases = nn.Conv(
        self.channels,
        (size,),
        padding=0,
        kernel_init=init,
        bias_init=init,
        conv_general_dilated=kernels.conv_general_dilated,
        name=f'conv_{i}',
        **self.types,
      )(words)
      phrases = phrases.reshape(*leading, *phrases.shape[1:])
      start = jnp.arange(phrases.shape[-2])
      competes = (start + size <= count) | (start == 0)
      phrases = jnp.where(competes[..., None], phrases, -jnp.inf)
      # The maximum of rectified phrases.
      strongest.append(nn.relu(phrases.max(axis=-2)))
    x = jnp.concatenate(strongest, axis=-1)
    x = nn.Dropout(self.drop_rate, deterministic=not train)(x)
    x = linear.Dense(self.width, name='fc', **linear.TORCH, **self.types)(x)
    return similarity.l2_normalize(x)


class GRU(module.Module):
  """Reads tokens in order and remembers what it read.

  Attributes:
    width: of its states.
    bidirectional: whether a second one reads backwards; the states are the means of both.
  """

  width: int
  bidirectional: bool = False

  @nn.compact
  def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Reads tokens.

    Args:
      tokens: `[batch, tokens, channels]`.
      mask: bool `[batch, tokens]`, True for the tokens to read, which come first.

    Returns:
      The state after each token, `[batch, tokens, width]`; without meaning at the others.
    """
    init = initializers.torch_convolution(self.width)
    start = jnp.zeros((len(tokens), self.width), jnp.promote_types(tokens.dtype, self.param_dtype))

    def read(name: str, **kwargs: Any) -> jax.Array:
      cell = nn.GRUCell(
        self.width,
        kernel_init=init,
        recurrent_kernel_init=init,
        bias_init=init,
        **self.types,
        parent=None,
      )
      return nn.RNN(cell, name=name, **kwargs)(
        tokens, initial_carry=start, seq_lengths=mask.sum(axis=-1)
      )

    states = read('forward')
    if self.bidirectional:
      states = (states + read('backward', reverse=True, keep_order=True)) / 2
    return states
