"""XLA's convolution and the forms for CPUs side by side on this machine, in float32.

  python -m benchmarks.convolutions

Rows are layers of RetinaNet on ResNet-50 at 320 x 320, of ICAFusion n at 640 x 640 (2 images) and
of SwiftFormer-XS at 224 x 224 (8 images). Prints milliseconds of processor time of the forward pass
and of the gradients, of the kernel alone where the input is the image.
"""

from collections.abc import Callable
import functools
import time

import jax

from crossattn_jax.kernels.convolution import cpu, reference
from crossattn_jax.training import host_memory

# images, side of the map, channels, channels of the result, side of the kernel, stride
SHAPES = (
  (2, 160, 64, 128, 3, 1),
  (2, 40, 256, 256, 3, 1),
  (2, 20, 256, 256, 3, 1),
  (2, 40, 256, 720, 3, 1),
  (2, 80, 64, 256, 1, 1),
  (2, 20, 1024, 256, 1, 1),
  (2, 40, 256, 256, 3, 2),
  (2, 320, 12, 16, 3, 1),
  (2, 320, 16, 32, 3, 2),
  (2, 160, 16, 16, 3, 1),
  (2, 80, 32, 32, 3, 1),
  (2, 80, 64, 64, 1, 1),
  (8, 224, 3, 24, 3, 2),
  (8, 112, 24, 48, 3, 2),
  (8, 56, 48, 56, 3, 2),
  (8, 28, 56, 112, 3, 2),
  (8, 14, 112, 220, 3, 2),
)
FORMS = (
  (reference.convolution, reference.gradients),
  (cpu.convolution, cpu.gradients),
)


def milliseconds(function: Callable[..., jax.Array], *args: jax.Array) -> float:
  """The fastest of seven calls of a compiled function."""
  function = jax.jit(function)
  jax.block_until_ready(function(*args))
  seconds = []
  for _ in range(7):
    start = time.process_time()
    jax.block_until_ready(function(*args))
    seconds.append(time.process_time() - start)
  return 1e3 * min(seconds)


def main() -> None:
  """Prints the table."""
  host_memory.keep_freed_memory()  # As main.py does.
  print('| map | kernel, stride | XLA, gradients | CPU, gradients |')
  print('|---|---|---|---|')
  for batch, side, channels, channels_out, kernel_side, stride in SHAPES:
    geometry = (stride, ((kernel_side // 2,) * 2,) * 2)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, side, side, channels))
    kernel = jax.random.normal(keys[1], (kernel_side, kernel_side, channels, channels_out))
    cotangent = jax.random.normal(keys[2], (batch, *[side // stride] * 2, channels_out))
    of_image = channels < 16
    cells = []
    for forward, gradients in FORMS:

      def backward(*args, gradients=gradients, geometry=geometry, of_image=of_image):
        return gradients(*args, geometry=geometry)[of_image:]

      of_result = milliseconds(functools.partial(forward, geometry=geometry), x, kernel)
      of_gradients = milliseconds(backward, x, kernel, cotangent)
      cells.append(f'{of_result:.1f}, {of_gradients:.1f}')
    row = [f'{batch} x {side} x {side} x {channels}']
    row += [f'{kernel_side} x {kernel_side} x {channels_out}, {stride}', *cells]
    print('| ' + ' | '.join(row) + ' |', flush=True)


if __name__ == '__main__':
  main()
