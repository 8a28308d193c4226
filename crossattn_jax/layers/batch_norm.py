"""Batch normalisation with PyTorch's running statistics."""

from collections.abc import Callable
import contextlib
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.layers import module


class BatchNorm(module.Module):
  """Normalises each channel by the statistics of the global batch (Ioffe and Szegedy 2015).

  Differs from `nn.BatchNorm` in one thing: the running variance takes the unbiased variance of the
  batch, n / (n - 1) of the one that normalises, as PyTorch's does. Under jit over a mesh the batch
  is the global one, which PyTorch calls SyncBatchNorm.

  With `absolute_scale` it is the norm of Inplace-ABN (Rota Bulo et al. 2018, arXiv 1712.02616)
  before its activation: |scale| + epsilon in place of the scale, whose sign is lost.

  Attributes:
    momentum: share of the old running statistics that stays, 1 minus PyTorch's.
    epsilon: added to the variance.
    absolute_scale: see above.
    scale_init: of the scale.
    dtype: of the result.
    param_dtype: of the parameters and of the running statistics.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  absolute_scale: bool = False
  scale_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool = False, is_valid: jax.Array | None = None
  ) -> jax.Array:
    """Maps `[..., channels]` to the same shape.

    Args:
      x: activations.
      train: whether to normalise by the batch, and update the running statistics where the
        collection 'batch_stats' is mutable; otherwise by the running statistics.
      is_valid: `[...]` booleans, False for padding, which counts as 0 and has no part in the
        statistics. At least two are to be True.

    Raises:
      ValueError: there is a single value of each channel to normalise by.
    """
    shape = x.shape[-1:]
    scale = self.param('scale', self.scale_init, shape, self.param_dtype)
    bias = self.param('bias', nn.initializers.zeros, shape, self.param_dtype)
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, self.param_dtype)
    running_var = self.variable('batch_stats', 'var', jnp.ones, shape, self.param_dtype)
    x, scale, bias = nn.dtypes.promote_dtype(x, scale, bias, dtype=self.dtype)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if is_valid is not None:
      wide = jnp.where(is_valid[..., None], wide, 0)
    if train:
      count = x.size // x.shape[-1]
      if count == 1 and not self.is_initializing():
        # Its mean is the value itself: nothing but the bias would be left.
        raise ValueError(
          f'{"/".join(self.path) or "BatchNorm"}: expected more than 1 value per channel when '
          f'training, got inputs of shape {x.shape}; take larger batches (config.batch_size / '
          'config.accumulation_steps) or larger images'
        )
      where = None if is_valid is None else is_valid[..., None]
      count = count if is_valid is None else is_valid.sum().astype(wide.dtype)
      average = functools.partial(jnp.mean, axis=tuple(range(x.ndim - 1)), where=where)
      mean = average(wide)
      variance = average(jnp.square(wide - mean))
      if not self.is_initializing() and self.is_mutable_collection('batch_stats'):
        unbiased = variance * (count / (count - 1))
        for running, new in ((running_mean, mean), (running_var, unbiased)):
          new = new.astype(running.value.dtype)
          running.value = self.momentum * running.value + (1 - self.momentum) * new
    else:
      mean = running_mean.value.astype(wide.dtype)
      variance = running_var.value.astype(wide.dtype)
    scale = scale.astype(wide.dtype)
    if self.absolute_scale:
      # Not jnp.abs, whose derivative at 0 is 0: the weight could never leave it.
      scale = jnp.where(scale < 0, -scale, scale) + self.epsilon
    # Of 1 / sqrt XLA makes one instruction, which CPUs round with a bias of 1e-8. Through sixty
    # norms by running statistics that grows to 1e-5.
    factor = jnp.sqrt(1 / (variance + self.epsilon)) * scale
    return ((wide - mean) * factor + bias.astype(wide.dtype)).astype(x.dtype)


def frozen(is_frozen: Callable[[str], bool]) -> contextlib.AbstractContextManager[None]:
  """Within it, some norms are called as in evaluation, whatever the model is.

  Norms in a stack of blocks that is a loop (`layers.stack`) do not know their path.

  Args:
    is_frozen: takes the path of a `BatchNorm` in the model that is applied, joined by '/'.
  """

  def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    norm = context.module
    called = isinstance(norm, BatchNorm) and context.method_name == '__call__'
    if called and is_frozen('/'.join(norm.path)):
      return call(args[0], train=False)
    return call(*args, **kwargs)

  return nn.intercept_methods(intercept)
