import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.attention import self_attention


def test_module_drops_only_in_training():
  x = jnp.asarray(np.random.RandomState(0).standard_normal((2, 7, 12)), jnp.float32)
  module = self_attention.SelfAttention(3, attention_drop_rate=0.5, drop_rate=0.5)
  variables = module.init(jax.random.key(0), x)
  first, second = (
    module.apply(variables, x, True, rngs={'dropout': jax.random.key(seed)}) for seed in (1, 2)
  )
  evaluated = module.apply(variables, x)
  assert np.abs(first - second).max() > 0
  np.testing.assert_array_equal(evaluated, module.apply(variables, x))
  assert np.mean(np.asarray(first) == 0) > 0.2  # what drop_rate dropped


def test_kernels_have_the_layout_of_the_sharding_rules():
  module = self_attention.SelfAttention(3, qkv_bias=False)
  variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 7, 12)))
  shapes = jax.tree.map(jnp.shape, variables['params'])
  assert shapes == {
    'qkv': {'kernel': (12, 3, 3, 4)},
    'out': {'kernel': (3, 4, 12), 'bias': (12,)},
  }


def test_wrong_heads_are_refused():
  with pytest.raises(ValueError, match='num_heads=5 does not divide the width 12'):
    self_attention.SelfAttention(5).init(jax.random.key(0), jnp.zeros((1, 7, 12)))
