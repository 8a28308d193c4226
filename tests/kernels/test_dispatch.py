import jax
import jax.numpy as jnp
import pytest

from crossattn_jax.kernels import dispatch


def test_unknown_implementations_are_refused_by_name():
  with pytest.raises(ValueError, match=r"some_op: unknown implementation 'triton'; there are auto"):
    dispatch.check_implementation('some_op', 'triton')


def test_kernels_refuse_float64_and_say_what_takes_it():
  with pytest.raises(ValueError, match=r"'tpu' computes in float32 and bfloat16, not float64"):
    dispatch.check_kernel_dtype('some_op', 'tpu', jnp.dtype('float64'))
  dispatch.check_kernel_dtype('some_op', 'xla', jnp.dtype('float64'))


@pytest.mark.parametrize(('platform', 'constant'), [('cpu', 3.0), ('tpu', 1.0), ('cuda', 2.0)])
def test_the_form_is_chosen_for_the_platform_that_is_lowered_for(platform, constant):
  def choose(x):
    return dispatch.by_platform(x, tpu=lambda x: x + 1, gpu=lambda x: x + 2, xla=lambda x: x + 3)

  exported = jax.export.export(jax.jit(choose), platforms=[platform])(jnp.zeros(()))
  assert f'{constant:.6e}' in exported.mlir_module()
