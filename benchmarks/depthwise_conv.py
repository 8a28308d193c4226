"""The two forms of the depthwise convolution side by side on this machine, in float32.

  python -m benchmarks.depthwise_conv

Rows are the position convolutions (side 3) and local enhancements (side 5) of BiFormer's stages at
224 x 224. Prints milliseconds of the forward pass and of both gradients.
"""

from collections.abc import Callable
import time

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.kernels.depthwise import cpu, reference

# batch, side of the map, channels, side of the kernel
SHAPES = (
  (4, 56, 64, 3),
  (4, 56, 64, 5),
  (4, 28, 128, 5),
  (4, 14, 256, 3),
  (4, 14, 256, 5),
  (4, 7, 512, 5),
)
FORMS = {
  'shifted': (cpu.forward, cpu.backward),
  'grouped': (reference.forward, reference.backward),
}


def milliseconds(function: Callable[..., jax.Array], *args: jax.Array) -> float:
  """The fastest of five calls of a compiled function."""
  jax.block_until_ready(function(*args))
  seconds = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    seconds.append(time.perf_counter() - start)
  return 1e3 * min(seconds)


def main() -> None:
  """Prints the table."""
  rng = np.random.RandomState(0)
  print(f'{"batch, map, channels, kernel":32}' + ''.join(f'{name:>20}' for name in FORMS))
  for batch, side, channels, kernel_side in SHAPES:
    x, cotangent = (
      jnp.asarray(rng.standard_normal((batch, side, side, channels)), jnp.float32) for _ in range(2)
    )
    shape = (kernel_side, kernel_side, 1, channels)
    kernel = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    cells = []
    for forward, backward in FORMS.values():
      cells.append(f'{milliseconds(forward, x, kernel):10.2f}')
      cells.append(f'{milliseconds(backward, x, kernel, cotangent):10.2f}')
    print(f'{(batch, side, channels, kernel_side)!s:32}' + ''.join(cells))


if __name__ == '__main__':
  main()
