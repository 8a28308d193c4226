r"""Criss-cross attention on this machine's CPU, beside the official PyTorch formulation.

  python -m benchmarks.criss_cross_vs_torch --json=criss_cross_vs_torch.json

The forward pass and a training step (forward and all gradients) of the attention between the
projections, in float32. Both run in processes of their own on the same cores and take turns, one
sample each; the one that waits sleeps. Prints the medians and the ratio PyTorch / this library of
the rounds: above 1 this library is faster. Needs the extra `torch`.
"""

import argparse
from collections.abc import Callable
import json
import pathlib
import statistics
import subprocess
import sys
import time

# batch, height, width, channels of query and key, of value.
SHAPES = {
  '1x97x97': (1, 97, 97, 64, 512),
  '1x65x129': (1, 65, 129, 64, 512),
  '4x24x24': (4, 24, 24, 32, 256),
}
KINDS = ('forward', 'train')
SIDES = ('jax', 'torch')


def jax_sample(shape: tuple[int, ...], kind: str) -> Callable[[], None]:
  """Returns what runs one sample of this library."""
  import jax

  from crossattn_jax import kernels

  *positions, key_channels, channels = shape
  keys = jax.random.split(jax.random.key(0), 4)
  widths = (key_channels, key_channels, channels, channels)
  maps = [
    jax.random.normal(key, (*positions, width)) for key, width in zip(keys, widths, strict=True)
  ]

  def train(query, key, value, cotangent):
    out, pull_back = jax.vjp(kernels.criss_cross_attention, query, key, value)
    return out, pull_back(cotangent)

  if kind == 'forward':
    maps.pop()
  run = jax.jit(kernels.criss_cross_attention if kind == 'forward' else train)
  return lambda: jax.block_until_ready(run(*maps))


def torch_sample(
  shape: tuple[int, ...],
  kind: str,
  device: str = 'cpu',
  dtype: str = 'float32',
  compiled: bool = False,
) -> Callable[[], None]:
  """Returns what runs one sample of the official formulation, written anew."""
  import torch

  batch, height, width, key_channels, channels = shape
  torch.manual_seed(0)
  like = {'device': device, 'dtype': getattr(torch, dtype)}
  query, key = (torch.randn(batch, key_channels, height, width, **like) for _ in range(2))
  value, cotangent = (torch.randn(batch, channels, height, width, **like) for _ in range(2))

  def by_column(x):
    return x.permute(0, 3, 1, 2).contiguous().view(batch * width, -1, height)

  def by_row(x):
    return x.permute(0, 2, 1, 3).contiguous().view(batch * height, -1, width)

  def attend(query, key, value):
    itself = torch.diag(torch.full((height,), float('-inf'), **like)).repeat(batch * width, 1, 1)
    column = torch.bmm(by_column(query).transpose(1, 2), by_column(key)) + itself
    row = torch.bmm(by_row(query).transpose(1, 2), by_row(key))
    column = column.view(batch, width, height, height).permute(0, 2, 1, 3)
    row = row.view(batch, height, width, width)
    weights = torch.softmax(torch.cat([column, row], dim=3), dim=3)
    column = weights[..., :height].permute(0, 2, 1, 3).contiguous()
    row = weights[..., height:].contiguous()
    column = torch.bmm(by_column(value), column.view(batch * width, height, height).transpose(1, 2))
    row = torch.bmm(by_row(value), row.view(batch * height, width, width).transpose(1, 2))
    column = column.view(batch, width, -1, height).permute(0, 2, 3, 1)
    return column + row.view(batch, height, -1, width).permute(0, 2, 1, 3)

  if compiled:
    attend = torch.compile(attend)

  def train():
    maps = [x.detach().requires_grad_() for x in (query, key, value)]
    attend(*maps).backward(cotangent)

  def forward():
    with torch.no_grad():
      attend(query, key, value)

  return forward if kind == 'forward' else train


def _serve(side: str, name: str, kind: str) -> None:
  sample = {'jax': jax_sample, 'torch': torch_sample}[side](SHAPES[name], kind)
  for _ in range(2):
    sample()
  print('ready', flush=True)
  for _ in sys.stdin:
    start = time.perf_counter()
    sample()
    print(time.perf_counter() - start, flush=True)


def compare(name: str, kind: str, rounds: int, torch_python: str) -> dict[str, float]:
  """Times both sides in turns."""
  servers = {}
  for side in SIDES:
    python = torch_python if side == 'torch' else sys.executable
    servers[side] = subprocess.Popen(
      [python, __file__, '--serve', side, name, kind],
      cwd=pathlib.Path(__file__).parents[1],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    servers[side].stdout.readline()
  seconds = {side: [] for side in SIDES}
  for _ in range(rounds):
    for side, server in servers.items():
      server.stdin.write('\n')
      server.stdin.flush()
      seconds[side].append(float(server.stdout.readline()))
  for server in servers.values():
    server.stdin.close()
    server.wait()
  ratios = [t / j for j, t in zip(seconds['jax'], seconds['torch'], strict=True)]
  return {
    **{f'{side}_ms': 1e3 * statistics.median(values) for side, values in seconds.items()},
    'ratio': statistics.median(ratios),
    'ratio_min': min(ratios),
    'ratio_max': max(ratios),
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('names', nargs='*', default=list(SHAPES))
  parser.add_argument('--rounds', type=int, default=15)
  parser.add_argument('--torch_python', default=sys.executable, help='an interpreter with PyTorch')
  parser.add_argument('--json', type=pathlib.Path)
  parser.add_argument('--serve', nargs=3, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.serve:
    _serve(*arguments.serve)
    return
  figures = {}
  print('| map | | this library, ms | PyTorch, ms | PyTorch / this library |')
  print('|---|---|---|---|---|')
  for name in arguments.names:
    for kind in KINDS:
      each = compare(name, kind, arguments.rounds, arguments.torch_python)
      figures[f'{name}/{kind}'] = each
      print(
        f'| {name} | {kind} | {each["jax_ms"]:.1f} | {each["torch_ms"]:.1f} | {each["ratio"]:.2f} '
        f'({each["ratio_min"]:.2f} to {each["ratio_max"]:.2f}) |',
        flush=True,
      )
  if arguments.json:
    arguments.json.write_text(json.dumps(figures, indent=1) + '\n')


if __name__ == '__main__':
  main()
