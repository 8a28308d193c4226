import jax
import jax.numpy as jnp

from crossattn_jax.models.backbones import vgg


def test_a_block_halves_the_map_rounding_down():
  x = jax.ShapeDtypeStruct((1, 11, 14, 3), jnp.float32)
  out, variables = jax.eval_shape(vgg.Block(16, 2).init_with_output, jax.random.key(0), x)
  assert out.shape == (1, 5, 7, 16)
  count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  assert count == 9 * 3 * 16 + 16 + 9 * 16 * 16 + 16
