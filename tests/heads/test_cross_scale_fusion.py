import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.heads import cross_scale_fusion


def test_finer_maps_know_coarser_ones_and_not_the_other_way_round():
  module = cross_scale_fusion.CrossScaleFusion(32)
  maps = [jax.ShapeDtypeStruct((1, 8 >> i, 6 >> i, 3 + i), jnp.float32) for i in range(2)]
  shapes = jax.eval_shape(module.init, jax.random.key(0), maps)
  assert set(shapes['params']) == {
    *('projection_0', 'projection_1', 'smoothing_0', 'lateral_0', 'output_0', 'output_1')
  }
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype)
  variables, (fine, coarse) = jax.tree.map(draw, (shapes, maps))
  apply = jax.jit(module.apply)
  base = apply(variables, [fine, coarse])
  assert [x.shape for x in base] == [(1, 8, 6, 32), (1, 4, 3, 32)]
  moved = apply(variables, [fine + draw(fine), coarse])
  assert [bool(np.any(a != b)) for a, b in zip(base, moved, strict=True)] == [True, False]
  moved = apply(variables, [fine, coarse + draw(coarse)])
  assert all(np.any(a != b) for a, b in zip(base, moved, strict=True))
