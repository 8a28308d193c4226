from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from crossattn_jax.layers import module


class Scaled(module.Module):
  channels: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return nn.Dense(self.channels, name='dense', **self.types)(self.layer_norm('norm')(x))


def test_submodules_get_both_dtypes():
  model = Scaled(4, dtype=jnp.bfloat16, param_dtype=jnp.float16)
  out, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((2, 3)))
  assert out.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float16)}


def test_dtypes_are_given_by_name_and_stand_behind_all_own_fields():
  with pytest.raises(TypeError, match='positional'):
    Scaled(4, None, None, jnp.bfloat16)
  assert Scaled(4).types == {'dtype': None, 'param_dtype': jnp.float32}
