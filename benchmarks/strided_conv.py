"""The two forms of the strided convolution side by side on this machine, in float32.

  python -m benchmarks.strided_conv

Rows are stem and downsampling of SwiftFormer-XS at 224 x 224: 3 x 3, stride 2. Prints milliseconds
of the forward pass and of the gradients, of the kernel alone where the input is the image.
"""

from collections.abc import Callable
import time

import jax

from crossattn_jax.kernels.convolution import cpu, reference

# side of the map, channels, channels of the result
SHAPES = ((224, 3, 24), (112, 24, 48), (56, 48, 56), (28, 56, 112), (14, 112, 220))
BATCH = 8
GEOMETRY = (2, ((1, 1), (1, 1)))
FORMS = {'convolution': reference.convolution, 'product': cpu.convolution}


def milliseconds(function: Callable[..., jax.Array], *args: jax.Array) -> float:
  """The fastest of seven calls of a compiled function."""
  function = jax.jit(function)
  jax.block_until_ready(function(*args))
  seconds = []
  for _ in range(7):
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    seconds.append(time.perf_counter() - start)
  return 1e3 * min(seconds)


def main() -> None:
  """Prints the table."""
  print('| map | channels | ' + ' | '.join(f'{form}, gradients' for form in FORMS) + ' |')
  print('|---|---|' + '---|' * len(FORMS))
  for side, channels, channels_out in SHAPES:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (BATCH, side, side, channels))
    kernel = jax.random.normal(keys[1], (3, 3, channels, channels_out))
    cotangent = jax.random.normal(keys[2], (BATCH, side // 2, side // 2, channels_out))
    cells = []
    for form in FORMS.values():

      def run(x, kernel, form=form):
        return form(x, kernel, geometry=GEOMETRY, precision=None)

      def gradients(x, kernel, cotangent, run=run, of_image=channels == 3):
        if of_image:
          return jax.vjp(lambda kernel: run(x, kernel), kernel)[1](cotangent)
        return jax.vjp(run, x, kernel)[1](cotangent)

      forward = milliseconds(run, x, kernel)
      cells.append(f'{forward:.1f}, {milliseconds(gradients, x, kernel, cotangent):.1f}')
    row = [f'{BATCH} x {side} x {side}', f'{channels} -> {channels_out}', *cells]
    print('| ' + ' | '.join(row) + ' |', flush=True)


if __name__ == '__main__':
  main()
