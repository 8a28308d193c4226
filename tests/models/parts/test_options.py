import dataclasses

from flax import linen as nn
import jax.numpy as jnp

from crossattn_jax.models.parts import options


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options(options.Options):
  mlp_ratio: float = 4


class _Network(nn.Module):
  mlp_ratio: float = 3
  remat: bool = True
  scan_blocks: bool = False
  depth: int = 2
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32


def test_parts_have_the_options_that_the_model_has_as_fields():
  own = _Options.of(_Network(dtype=jnp.bfloat16))
  assert own == _Options(mlp_ratio=3, remat=True, dtype=jnp.bfloat16)
  assert own.types == {'dtype': jnp.bfloat16, 'param_dtype': jnp.float32}
  assert own.loops == {'scan': False, 'remat': True}
