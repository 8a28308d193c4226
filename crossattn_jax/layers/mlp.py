"""The transformer's multi-layer perceptron."""

from collections.abc import Callable

from flax import linen as nn
import jax

from crossattn_jax.layers import activations, initializers, linear, module


class Mlp(module.Module):
  """Linear, GELU, dropout, linear back to the input's width, dropout.

  Attributes:
    hidden: width between the two linear maps.
    drop_rate: of both dropouts.
    out_init: of the second linear map's kernel.

  Examples:
    >>> layer, x = Mlp(hidden=128), jnp.ones((2, 49, 64))
    >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0].shape
    (2, 49, 64)
  """

  hidden: int
  drop_rate: float = 0.0
  out_init: nn.initializers.Initializer = initializers.linear

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[..., channels]` to the same shape."""
    drop = nn.Dropout(self.drop_rate, deterministic=not train)
    fc1 = linear.Dense(self.hidden, kernel_init=initializers.linear, name='fc1', **self.types)
    fc2 = linear.Dense(x.shape[-1], kernel_init=self.out_init, name='fc2', **self.types)
    return drop(fc2(drop(activations.gelu(fc1(x)))))


class FeedForward(module.Module):
  """The first transformers' MLP: linear, ReLU, dropout, linear back to the input's width, dropout.

  Biases are drawn at first as PyTorch draws those of linear maps.

  Attributes:
    hidden: width between the two linear maps.
    drop_rate: of both dropouts.
    kernel_init: of the kernels; None draws them as PyTorch does.
    activation: in place of ReLU.
    drop_hidden: whether the first dropout is there, too.
  """

  hidden: int
  drop_rate: float = 0.0
  kernel_init: nn.initializers.Initializer | None = None
  activation: Callable[[jax.Array], jax.Array] = nn.relu
  drop_hidden: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[..., channels]` to the same shape."""
    options = {'kernel_init': self.kernel_init, 'bias_init': None, **self.types}
    fc1 = linear.Dense(self.hidden, name='fc1', **options)
    fc2 = linear.Dense(x.shape[-1], name='fc2', **options)
    drop = nn.Dropout(self.drop_rate, deterministic=not train)
    x = self.activation(fc1(x))
    x = drop(x) if self.drop_hidden else x
    return drop(fc2(x))
