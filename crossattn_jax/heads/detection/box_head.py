"""What a region shows, and where its border should be: the second stage of Faster R-CNN.

Source: Ren et al. 2015 (arXiv 1506.01497); with two hidden layers, as Lin et al. 2017 (arXiv
1612.03144), section 4.2, in mmdetection.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.layers import linear, module


class BoxHead(module.Module):
  """Two hidden layers, a classifier, and offsets of the box for every class.

  Attributes:
    num_classes: of the objects.
    channels: of the hidden layers.
  """

  num_classes: int
  channels: int = 1024

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Looks at regions.

    Args:
      x: `[..., side, side, channels_in]`, a map of each region.

    Returns:
      In at least float32: logits `[..., num_classes + 1]`, the last one the background's, and
      offsets `[..., num_classes, 4]` from the region to the object's box, were it of that class.
    """
    xavier, normal = nn.initializers.xavier_uniform(), nn.initializers.normal
    for name, axes in {'fc1': (-3, -2, -1), 'fc2': -1}.items():
      x = nn.relu(linear.Dense(self.channels, axes, kernel_init=xavier, name=name, **self.types)(x))
    classifier = linear.Dense(
      self.num_classes + 1, kernel_init=normal(0.01), name='classifier', **self.types
    )
    regressor = linear.Dense(
      (self.num_classes, 4), kernel_init=normal(0.001), name='regressor', **self.types
    )
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return classifier(x).astype(dtype), regressor(x).astype(dtype)
