r"""Deformable sampling on a CPU: ours in both forms beside PyTorch's `grid_sample`, map by map.

  python -m benchmarks.deformable_sampling gathers|products|pytorch [--seconds 5]

One photo, 100 queries, 8 heads of 32 channels, maps at strides 8 to 64, 4 samples each, float32:
forward, and with the gradients of values, locations and weights. Each form in a process of its own,
since both libraries keep threads waiting; processor time of the fastest runs.
"""

import argparse
import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.kernels.deformable_sampling import reference, xla

STRIDES = (8, 16, 32, 64)
QUERIES, HEADS, HEAD_DIM, POINTS = 100, 8, 32, 4


def operands(image: tuple[int, int]):
  """Sizes of the maps of a photo; value, locations and weights; a cotangent."""
  sizes = tuple(tuple(-(-side // stride) for side in image) for stride in STRIDES)
  rng = np.random.default_rng(0)
  samples = 1, QUERIES, HEADS, len(sizes), POINTS
  cells = sum(map(math.prod, sizes))
  value = rng.standard_normal((1, cells, HEADS, HEAD_DIM), np.float32)
  locations = rng.uniform(-0.05, 1.05, (*samples, 2)).astype(np.float32)
  cotangent = rng.standard_normal((1, QUERIES, HEADS, HEAD_DIM), np.float32)
  return sizes, (value, locations, rng.random(samples, np.float32)), cotangent


def our_functions(form, image):
  """The forward pass and the step with gradients of one of our forms."""
  sizes, arrays, cotangent = operands(image)
  sample = functools.partial(form, sizes=sizes)

  def step(cotangent, *arrays):
    out, pull_back = jax.vjp(sample, *arrays)
    return out, pull_back(cotangent)

  arrays, cotangent = jax.tree.map(jnp.asarray, (arrays, cotangent))
  return (
    functools.partial(jax.jit(sample), *arrays),
    functools.partial(jax.jit(step), cotangent, *arrays),
  )


def their_functions(image):
  """PyTorch's, as deformable DETR computes it on CPUs."""
  import torch

  sizes, arrays, cotangent = operands(image)

  def sample(value, locations, weights):
    maps = value.split([height * width for height, width in sizes], dim=1)
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
    samples = [
      torch.nn.functional.grid_sample(
        x.flatten(2).transpose(1, 2).reshape(HEADS, HEAD_DIM, *size), grid, align_corners=False
      )
      for x, size, grid in zip(maps, sizes, grids, strict=True)
    ]
    weights = weights.transpose(1, 2).reshape(HEADS, 1, QUERIES, -1)
    total = (torch.stack(samples, dim=-2).flatten(-2) * weights).sum(-1)
    return total.permute(2, 0, 1)[None]

  tensors = [torch.from_numpy(x) for x in arrays]
  torch_cotangent = torch.from_numpy(cotangent)

  def forward():
    with torch.no_grad():
      return sample(*tensors)

  def step():
    inputs = [x.detach().requires_grad_() for x in tensors]
    out = sample(*inputs)
    return out, torch.autograd.grad(out, inputs, torch_cotangent)

  return forward, step


def processor_times(functions, seconds: float) -> list[float]:
  """Milliseconds of the processor (of all threads) in the fastest runs, one function at a time."""
  times = []
  for function in functions:
    jax.block_until_ready(function())  # Warms up.
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
      start = time.process_time()
      jax.block_until_ready(function())
      best = min(best, 1e3 * (time.process_time() - start))
    times.append(best)
  return times


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('form', choices=('gathers', 'products', 'pytorch'))
  parser.add_argument('--seconds', type=float, default=5, help='for every row')
  options = parser.parse_args()
  print('| form | photo | forward, ms | with gradients, ms |\n|---|---|---|---|')
  for image in ((480, 640), (800, 1056)):
    if options.form == 'pytorch':
      functions = their_functions(image)
    else:
      form = {'gathers': reference, 'products': xla}[options.form]
      functions = our_functions(form.deformable_sampling, image)
    forward, step = processor_times(functions, options.seconds)
    print(f'| {options.form} | {image[0]} x {image[1]} | {forward:.1f} | {step:.1f} |', flush=True)


if __name__ == '__main__':
  main()
