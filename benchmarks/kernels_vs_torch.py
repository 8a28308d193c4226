r"""Routed attention on a CPU: ours against the formulation of the official PyTorch code.

  python -m benchmarks.kernels_vs_torch [--json FILE]
  python -m benchmarks.kernels_vs_torch --memory 7 [--run]

The official formulation gathers the routed keys and values out of an expanded view, and then
attends with two batched products (BiFormer, section 3.2). Both take turns in one process, and the
ratio is that of the fastest runs; above 1 ours is faster. `--memory` takes windows a side, and says
what ours needs for a map of 600 x 500 x 20, on which the official form needs about 100 GB.
"""

import argparse
import functools
import json
import pathlib
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax import kernels

# name -> batch, regions, tokens, channels, heads, top_k: BiFormer-S, float32.
CASES = {
  '224 stage 1': (8, 49, 64, 64, 2, 1),
  '224 stage 2': (8, 49, 16, 128, 4, 4),
  '224 stage 3': (8, 49, 4, 256, 8, 16),
  '512 stage 1': (1, 64, 256, 64, 2, 1),
  '512 stage 2': (1, 64, 64, 128, 4, 4),
  '512 stage 3': (1, 64, 16, 256, 8, 16),
}


def arguments(batch: int, regions: int, tokens: int, channels: int, top_k: int) -> list[np.ndarray]:
  """Query, key, value, cotangent and routing of distinct regions."""
  rng = np.random.default_rng(0)
  arrays = [rng.standard_normal((batch, regions, tokens, channels), np.float32) for _ in range(4)]
  order = rng.random((batch, regions, regions)).argsort(axis=-1)
  return [*arrays, order[..., :top_k].astype(np.int32)]


def jax_step(arrays: list[np.ndarray], heads: int):
  """A training step, and its arguments."""

  def step(query, key, value, cotangent, routing):
    out, pull_back = jax.vjp(lambda *x: attend(*x, routing, heads), query, key, value)
    return out, pull_back(cotangent)

  return step, tuple(map(jnp.asarray, arrays))


def attend(query, key, value, routing, heads):
  scale = query.shape[-1] ** -0.5
  return kernels.routed_attention(query, key, value, routing, num_heads=heads, scale=scale)


def jax_functions(arrays: list[np.ndarray], heads: int):
  """Forward pass and training step, without arguments."""
  step, given = jax_step(arrays, heads)
  *inputs, _, routing = given
  forward, step = jax.jit(functools.partial(attend, heads=heads)), jax.jit(step)
  return (
    lambda: jax.block_until_ready(forward(*inputs, routing)),
    lambda: jax.block_until_ready(step(*given)),
  )


def torch_functions(
  arrays: list[np.ndarray],
  heads: int,
  device: str = 'cpu',
  dtype: str = 'float32',
  compiled: bool = False,
):
  """The same, in the official formulation, as it is or through torch.compile."""
  import torch

  to_device = lambda x: torch.from_numpy(x).to(device, getattr(torch, dtype))
  query, key, value, cotangent = map(to_device, arrays[:4])
  routing = torch.from_numpy(arrays[4]).to(device).long()
  batch, regions, tokens, channels = query.shape
  scale = channels**-0.5

  def gather(x):
    everywhere = x[:, None].expand(-1, regions, -1, -1, -1)
    index = routing[..., None, None].expand(-1, -1, -1, tokens, x.shape[-1])
    return torch.gather(everywhere, 2, index)

  def heads_first(x):
    return x.reshape(batch * regions, -1, heads, channels // heads).transpose(1, 2)

  def attend(query, key, value):
    gathered = gather(torch.cat([key, value], dim=-1))
    key, value = gathered.split(channels, dim=-1)
    scores = (heads_first(query) * scale) @ heads_first(key).transpose(2, 3)
    out = scores.softmax(dim=-1) @ heads_first(value)
    return out.transpose(1, 2).reshape(batch, regions, tokens, channels)

  if compiled:
    attend = torch.compile(attend)

  def forward():
    with torch.no_grad():
      return attend(query, key, value)

  def step():
    inputs = [x.detach().requires_grad_() for x in (query, key, value)]
    out = attend(*inputs)
    return out, torch.autograd.grad(out, inputs, cotangent)

  return forward, step


def measure(name: str, seconds: float) -> dict[str, float]:
  batch, regions, tokens, channels, heads, top_k = CASES[name]
  arrays = arguments(batch, regions, tokens, channels, top_k)
  ours, theirs = jax_functions(arrays, heads), torch_functions(arrays, heads)
  np.testing.assert_allclose(ours[0](), theirs[0]().numpy(), rtol=1e-4, atol=1e-5)
  record = {}
  for i, direction in enumerate(('forward', 'training step')):
    fastest, end = [float('inf')] * 2, time.perf_counter() + seconds
    rounds = 0
    while rounds < 5 or time.perf_counter() < end:
      for j, function in enumerate((ours[i], theirs[i])):
        start = time.perf_counter()
        function()
        fastest[j] = min(fastest[j], time.perf_counter() - start)
      rounds += 1
    record[direction] = {'jax_ms': 1e3 * fastest[0], 'torch_ms': 1e3 * fastest[1]}
  return record


def measure_memory(windows: int, run: bool, heads: int = 2, top_k: int = 4) -> dict[str, float]:
  """Memory of a training step on the map of 600 x 500 x 20, padded to the windows.

  Args:
    windows: a side.
    run: whether to run the step, which takes minutes, for the peak of the process.
    heads: of the attention.
    top_k: windows that a window attends to.
  """
  tokens = -(-600 // windows) * -(-500 // windows)
  arrays = arguments(1, windows**2, tokens, 20, top_k)
  function, given = jax_step(arrays, heads)
  planned = jax.jit(function).lower(*given).compile().memory_analysis()
  record = {
    'windows': windows,
    'step_bytes': planned.argument_size_in_bytes
    + planned.output_size_in_bytes
    + planned.temp_size_in_bytes,
    # What the official form keeps for the backward pass: the softmax of all heads, float32.
    'softmax_bytes': 4 * heads * windows**2 * tokens * top_k * tokens,
  }
  if run:
    jax.block_until_ready(jax.jit(function)(*given))
    record['peak_bytes'] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return record


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--json', help='file to which the results are written')
  parser.add_argument('--memory', type=int, help='windows a side; measures memory instead')
  parser.add_argument('--run', action='store_true', help='with --memory: runs the step')
  parser.add_argument('--only', default='', help='prefix of the names of cases')
  parser.add_argument('--seconds', type=float, default=3.0, help='for every direction of a case')
  options = parser.parse_args()
  if options.memory:
    records = measure_memory(options.memory, options.run)
    print(records)
  else:
    records = {}
    print('| case | direction | ours, ms | PyTorch, ms | ratio |\n|---|---|---|---|---|')
    for name in CASES:
      if name.startswith(options.only):
        records[name] = measure(name, options.seconds)
        for direction, each in records[name].items():
          ratio = each['torch_ms'] / each['jax_ms']
          cells = f'{each["jax_ms"]:.1f} | {each["torch_ms"]:.1f} | {ratio:.2f}'
          print(f'| {name} | {direction} | {cells} |', flush=True)
  if options.json:
    pathlib.Path(options.json).write_text(json.dumps(records, indent=1) + '\n')


if __name__ == '__main__':
  main()
