import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.layers import depthwise_conv


def test_module_starts_like_torch_and_refuses_even_sides():
  x = jnp.zeros((1, 8, 8, 400))
  params = jax.jit(depthwise_conv.DepthwiseConv(5).init)(jax.random.key(0), x)['params']
  assert params['kernel'].shape == (5, 5, 1, 400)
  for name in ('kernel', 'bias'):
    assert 0.19 < np.abs(params[name]).max() <= 0.2  # 1/sqrt(25)
  with pytest.raises(ValueError, match='odd side, not 4'):
    depthwise_conv.DepthwiseConv(4).init(jax.random.key(0), x)
