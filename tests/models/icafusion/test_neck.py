"""What the recorded cases (tests/parity) do not show: every level has seen every map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.models.icafusion import neck


@pytest.mark.extended
def test_every_level_depends_on_every_map():
  module = neck.PathAggregation(widths=(8, 8, 8, 16, 8, 24, 8, 32), depth=1)
  rng = np.random.default_rng(0)
  maps = [jnp.asarray(rng.standard_normal((1, 4 * s, 6 * s, 8)), jnp.float32) for s in (4, 2, 1)]
  levels, variables = module.init_with_output(jax.random.key(0), maps)
  assert [x.shape for x in levels] == [(1, 16, 24, 16), (1, 8, 12, 24), (1, 4, 6, 32)]
  slopes = jax.jit(jax.jacrev(lambda maps: [x.sum() for x in module.apply(variables, maps)]))(maps)
  assert all(np.abs(x).max() > 0 for level in slopes for x in level)
