import jax
import jax.numpy as jnp
import pytest

from crossattn_jax import models

# In millions, as the official configurations count; UPerNet with its auxiliary head.
PARAMETERS = {
  ('swiftformer_l1', 'semantic_fpn'): 15.48,
  ('swiftformer_l3', 'semantic_fpn'): 31.74,
  ('crossformer_small', 'semantic_fpn'): 34.260,
  ('crossformer_base', 'semantic_fpn'): 55.574,
  ('crossformer_large', 'semantic_fpn'): 95.440,
  ('crossformer_small', 'upernet'): 62.308,
  ('crossformer_base', 'upernet'): 83.622,
  ('biformer_small', 'semantic_fpn'): 29.27,
  ('biformer_small', 'upernet'): 54.70 + 0.63,
  ('biformer_base', 'upernet'): 87.53 + 0.92,
}
QUICK = [('swiftformer_l1', 'semantic_fpn'), ('crossformer_small', 'upernet')]


@pytest.mark.parametrize(
  ('name', 'head'),
  [pytest.param(*x, marks=[] if x in QUICK else [pytest.mark.extended]) for x in PARAMETERS],
)
def test_parameters_are_those_of_the_official_configurations(name, head):
  fields = {'regions_per_side': (8,) * 4, 'padding': 'input'} if 'biformer' in name else {}
  module = models.create_model(f'{name}+{head}', **fields)
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  params = jax.eval_shape(module.init, jax.random.key(0), image)['params']
  count = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
  assert count == pytest.approx(PARAMETERS[name, head], abs=0.011)
