from flax import linen as nn
import jax.numpy as jnp
import pytest

from crossattn_jax.models.parts import checks


class _Network(nn.Module):
  widths: tuple[int, ...] = (8, 16)
  depths: tuple[int, ...] | None = None
  head: str = 'token'


@pytest.mark.parametrize(
  ('image', 'message'),
  [
    (jnp.zeros((2, 3, 8, 8)), r'_Network expects images \[batch, height, width, 3\], .*NCHW'),
    (jnp.zeros((8, 8, 3)), r'not an array of shape \(8, 8, 3\)'),
    (jnp.zeros((2, 8, 8, 3), jnp.uint8), 'normalised floating-point images, not uint8'),
  ],
  ids=['channels first', 'no batch', 'integers'],
)
def test_images_of_another_kind_are_refused(image, message):
  with pytest.raises(ValueError, match=message):
    checks.check_image(_Network(), image, 3)


def test_fields_that_do_not_fit_are_named():
  checks.check_lengths(_Network(), 'widths', 'stages', 'depths')
  message = r'depths=\(1,\) needs one entry for each of 2 stages \(widths\)'
  with pytest.raises(ValueError, match=message):
    checks.check_lengths(_Network(depths=(1,)), 'widths', 'stages', 'depths')
  checks.check_choices(_Network(), head=('token', 'avg'))
  with pytest.raises(ValueError, match="head='mean' is not one of token, avg"):
    checks.check_choices(_Network(head='mean'), head=('token', 'avg'))
