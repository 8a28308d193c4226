"""What the recorded cases (tests/parity) do not show: all backbones have the same strides."""

import jax
import jax.numpy as jnp
import pytest

from crossattn_jax.models.icafusion import streams


@pytest.mark.parametrize(
  ('kind', 'depths', 'channels'),
  [
    ('csp_darknet', (1, 1, 2, 1), (24, 32, 40)),
    ('resnet', (1, 1, 2, 1), (96, 128, 160)),
    ('vgg', (1, 1, 1, 2, 1), (24, 32, 40)),
  ],
)
def test_the_maps_have_strides_8_16_and_32(kind, depths, channels):
  stream = streams.STREAMS[kind](widths=(8, 16, 24, 32, 40), depths=depths)
  image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
  maps, _ = jax.eval_shape(stream.init_with_output, jax.random.key(0), image)
  sizes = [(2, 64 // stride, 96 // stride) for stride in (8, 16, 32)]
  assert [x.shape for x in maps] == [(*size, c) for size, c in zip(sizes, channels, strict=True)]
