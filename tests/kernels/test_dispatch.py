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


FORMS = {
  'cpu': lambda x: x + 1,
  'tpu': lambda x: x + 2,
  'gpu': lambda x: x + 3,
  'xla': lambda x: x + 4,
}


@pytest.mark.parametrize(
  ('platform', 'forms', 'constant'),
  [
    ('cpu', FORMS, 1.0),
    ('tpu', FORMS, 2.0),
    ('cuda', FORMS, 3.0),
    ('rocm', FORMS, 4.0),
    ('cpu', {'xla': FORMS['xla'], 'tpu': FORMS['tpu']}, 4.0),
    ('tpu', {'xla': FORMS['xla']}, 4.0),
  ],
)
def test_the_form_is_chosen_for_the_platform_that_is_lowered_for(platform, forms, constant):
  choose = jax.jit(lambda x: dispatch.by_platform(x, **forms))
  exported = jax.export.export(choose, platforms=[platform])(jnp.zeros(()))
  assert f'{constant:.6e}' in exported.mlir_module()


@pytest.mark.parametrize(('platform', 'constant'), [('cpu', 1.0), ('tpu', 4.0), ('cuda', 4.0)])
def test_kernels_are_not_taken_for_any_batch_size(platform, constant):
  choose = jax.jit(lambda x: dispatch.by_platform(x, **FORMS))
  (batch,) = jax.export.symbolic_shape('b')
  x = jax.ShapeDtypeStruct((batch,), jnp.float32)
  assert f'{constant:.6e}' in jax.export.export(choose, platforms=[platform])(x).mlir_module()
