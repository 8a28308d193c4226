r"""Both kernels on this machine's GPU, beside XLA's form of them and the PyTorch formulations.

  python -m benchmarks.gpu_kernels --dtype=bfloat16 --json=gpu_kernels.json

The forward pass and a training step (forward and all gradients) at the shapes of BiFormer-S and
CCNet. All sides take turns in one process; a sample is as many calls of eight layers as fill some
milliseconds, waited for together. Prints medians of a layer, and the floor: the larger of the
products at the rate of an H100's matrix units and of inputs and results, each moved once, at its
memory's. Needs the extra `torch`, built for CUDA.
"""

import argparse
from collections.abc import Callable
import functools
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import criss_cross_vs_torch, kernels_vs_torch
from crossattn_jax import kernels

# name -> batch, regions, tokens, channels, heads, top_k.
ROUTED = {
  '224 stage 1': (32, 49, 64, 64, 2, 1),
  '224 stage 2': (32, 49, 16, 128, 4, 4),
  '224 stage 3': (32, 49, 4, 256, 8, 16),
  '512x2048 stage 1': (1, 64, 1024, 64, 2, 1),
  '512x2048 stage 2': (1, 64, 256, 128, 4, 4),
  '512x2048 stage 3': (1, 64, 64, 256, 8, 16),
}
# name -> batch, height, width, channels of query and key, of value.
CRISS_CROSS = {
  '4x97x97': (4, 97, 97, 64, 512),
  '1x128x256': (1, 128, 256, 64, 512),
  '8x64x65': (8, 64, 65, 64, 512),
}
LAYERS = 8
KINDS = ('forward', 'train')
SIDES = ('kernel', 'xla', 'torch', 'torch.compile')
# H100 SXM: dense products a second, bytes a second.
PEAKS = {'bfloat16': 989e12, 'float32': 494e12}
BANDWIDTH = 3.35e12

Functions = dict[str, Callable[[], None]]


def _jax_functions(attend, inputs, cotangent, *constants) -> Functions:
  """Forward passes and training steps of `LAYERS` layers, which return before they have run.

  All are in one program, as they are in a model: Python hands over to the GPU once.
  """

  def train(inputs, cotangent, *constants):
    out, pull_back = jax.vjp(lambda *inputs: attend(*inputs, *constants), *inputs)
    return out, pull_back(cotangent)

  layers = [tuple(x * (1 + i / 16) for x in inputs) for i in range(LAYERS)]
  forward = jax.jit(lambda layers, *rest: [attend(*each, *rest) for each in layers])
  train_all = jax.jit(lambda layers, *rest: [train(each, *rest) for each in layers])
  return {
    'forward': lambda: forward(layers, *constants),
    'train': lambda: train_all(layers, cotangent, *constants),
  }


def _torch_functions(functions: Functions) -> Functions:
  """The same number of layers of PyTorch's."""

  def repeated(function):
    def run():
      for _ in range(LAYERS):
        out = function()
      return out

    return run

  return {kind: repeated(function) for kind, function in functions.items()}


def routed(name: str, dtype: str) -> tuple[dict[str, Functions], dict[str, float]]:
  """Functions of every side, and the floor of every kind in seconds."""
  batch, regions, tokens, channels, heads, top_k = ROUTED[name]
  arrays = kernels_vs_torch.arguments(batch, regions, tokens, channels, top_k)
  query, key, value, cotangent = (jnp.asarray(x, dtype) for x in arrays[:4])
  routing = jnp.asarray(arrays[4])
  attend = lambda implementation: functools.partial(
    kernels.routed_attention,
    num_heads=heads,
    scale=channels**-0.5,
    implementation=implementation,
  )
  sides = {
    'kernel': _jax_functions(attend('gpu'), (query, key, value), cotangent, routing),
    'xla': _jax_functions(attend('xla'), (query, key, value), cotangent, routing),
  }
  for side in SIDES[2:]:
    forward, train = kernels_vs_torch.torch_functions(
      arrays, heads, 'cuda', dtype, side == 'torch.compile'
    )
    sides[side] = _torch_functions({'forward': forward, 'train': train})
  products = 2 * batch * regions * tokens * top_k * tokens * channels
  return sides, _floors(products, products, 4 * [query], dtype)


def criss_cross(name: str, dtype: str) -> tuple[dict[str, Functions], dict[str, float]]:
  """Functions of every side, and the floor of every kind in seconds."""
  batch, height, width, key_channels, channels = shape = CRISS_CROSS[name]
  rng = np.random.default_rng(0)
  widths = (key_channels, key_channels, channels, channels)
  *inputs, cotangent = (
    jnp.asarray(rng.standard_normal((batch, height, width, each)), dtype) for each in widths
  )
  attend = lambda implementation: functools.partial(
    kernels.criss_cross_attention, implementation=implementation
  )
  sides = {
    'kernel': _jax_functions(attend('gpu'), tuple(inputs), cotangent),
    'xla': _jax_functions(attend('xla'), tuple(inputs), cotangent),
  }
  for side in SIDES[2:]:
    sample = functools.partial(criss_cross_vs_torch.torch_sample, shape, device='cuda', dtype=dtype)
    functions = {kind: sample(kind, compiled=side == 'torch.compile') for kind in KINDS}
    sides[side] = _torch_functions(functions)
  pairs = batch * height * width * (height + width)
  return sides, _floors(2 * pairs * key_channels, 2 * pairs * channels, [*inputs, cotangent], dtype)


def _floors(scores: int, sums: int, arrays, dtype: str) -> dict[str, float]:
  """Of operations of the scores and of the weighted sums; `arrays` are the inputs and the result.

  The gradients need the scores again, and two products for either.
  """
  moved = sum(x.size * x.dtype.itemsize for x in arrays)
  work = {'forward': scores + sums, 'train': 4 * scores + 3 * sums}
  # The training step reads the cotangent as well, and writes a gradient for every input.
  traffic = {'forward': moved, 'train': 2 * moved}
  return {kind: max(work[kind] / PEAKS[dtype], traffic[kind] / BANDWIDTH) for kind in KINDS}


def _sample(function: Callable[[], None], calls: int) -> float:
  import torch

  start = time.perf_counter()
  for _ in range(calls):
    result = function()
  # Whichever side's it is: the one waits for arrays alone, the other for all that was launched.
  jax.block_until_ready(result)
  torch.cuda.synchronize()
  return (time.perf_counter() - start) / calls / LAYERS


def measure(functions: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
  """Median seconds of a layer of every side."""
  calls, samples = {}, {side: [] for side in functions}
  for side, function in functions.items():
    for _ in range(3):
      _sample(function, 1)
    calls[side] = max(5, min(200, int(0.02 / LAYERS / _sample(function, 5))))
  for _ in range(rounds):
    for side, function in functions.items():
      samples[side].append(_sample(function, calls[side]))
  return {side: statistics.median(each) for side, each in samples.items()}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--dtype', choices=tuple(PEAKS), default='bfloat16')
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--sides', nargs='+', choices=SIDES, default=SIDES)
  parser.add_argument('--only', default='', help='beginning of OPERATION CASE, as in the table')
  parser.add_argument('--json', type=pathlib.Path, help='where the records are written')
  args = parser.parse_args()
  print(f'{jax.devices()[0].device_kind}, {args.dtype}, microseconds, medians of {args.rounds}')
  print(f'| operation | | {" | ".join(args.sides)} | floor |')
  print('|' + '---|' * (len(args.sides) + 3), flush=True)
  records = []
  for build, names in ((routed, ROUTED), (criss_cross, CRISS_CROSS)):
    for name in names:
      if not f'{build.__name__} {name}'.startswith(args.only):
        continue
      sides, floors = build(name, args.dtype)
      for kind in KINDS:
        seconds = measure({side: sides[side][kind] for side in args.sides}, args.rounds)
        seconds['floor'] = floors[kind]
        records.append({'operation': build.__name__, 'case': name, 'kind': kind} | seconds)
        cells = ' | '.join(f'{1e6 * each:.0f}' for each in seconds.values())
        print(f'| {build.__name__} {name} | {kind} | {cells} |', flush=True)
        if args.json:
          args.json.write_text(json.dumps(records, indent=1) + '\n')


if __name__ == '__main__':
  main()
