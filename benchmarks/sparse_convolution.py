r"""A sparse convolution on a CPU: our form, others that were tried, and PyTorch's.

  python -m benchmarks.sparse_convolution FORM [--voxel 0.1] [--channels 96] [--repeats 7]

FORM is `blocks`, ours; `whole`, one gather of all windows and one product; `offsets`, a loop over
the 27 places of a window; or, of PyTorch, `torch_whole` and `torch_pairs`, which gathers and adds
the pairs that there are, place by place. Of the room of `benchmarks.point_tables`, float32, one
scene: forward, and with the gradients of features and kernel. Processor time of the fastest runs.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import point_tables
from crossattn_jax import kernels
from crossattn_jax.geometry import points
from crossattn_jax.kernels.neighbours import reference

Steps = tuple[Callable[[], object], Callable[[], object]]


def operands(voxel: float, channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Features `[n, channels]`, a kernel `[27, channels, channels]`, the table `[27, n]`."""
  cells = points.voxelize(point_tables.room(400_000), np.eye(3) / voxel).cells
  rng = np.random.default_rng(0)
  x = rng.standard_normal((len(cells), channels), np.float32)
  kernel = rng.standard_normal((27, channels, channels), np.float32) / 50
  return x, kernel, points.neighbours(cells)


def by_offsets(x: jax.Array, kernel: jax.Array, table: jax.Array) -> jax.Array:
  """Adds up the products of each place of the window, of one scene."""
  extended = jnp.pad(x[0], ((0, 1), (0, 0)))

  def step(total, place):
    rows, matrix = place
    return total + extended[rows] @ matrix, None

  return jax.lax.scan(step, jnp.zeros_like(x[0]), (table[0], kernel))[0][None]


OURS = {
  'blocks': kernels.sparse_convolution,
  'whole': reference.convolution,
  'offsets': by_offsets,
}
TORCH = ('torch_whole', 'torch_pairs')


def our_steps(form: str, x: np.ndarray, kernel: np.ndarray, table: np.ndarray) -> Steps:
  """The forward pass and the step with gradients of one of our forms."""
  x, kernel, table = jax.tree.map(jnp.asarray, (x[None], kernel, table[None]))
  call = lambda x, kernel: OURS[form](x, kernel, table)

  def step(x, kernel):
    out, pull_back = jax.vjp(call, x, kernel)
    return out, pull_back(out)

  forward, step = jax.jit(call), jax.jit(step)
  return (
    lambda: jax.block_until_ready(forward(x, kernel)),
    lambda: jax.block_until_ready(step(x, kernel)),
  )


def torch_steps(form: str, x: np.ndarray, kernel: np.ndarray, table: np.ndarray) -> Steps:
  """The same of PyTorch, eager."""
  import torch

  x, kernel = (torch.tensor(array, requires_grad=True) for array in (x, kernel))
  table = torch.tensor(table, dtype=torch.long)
  pairs = [((rows >= 0).nonzero()[:, 0], rows[rows >= 0]) for rows in table]
  windows = (table.T % (len(x) + 1)).reshape(-1)  # -1 is the row of zeros.

  def call():
    if form == 'torch_whole':
      extended = torch.cat([x, torch.zeros_like(x[:1])])
      return extended[windows].reshape(len(x), -1) @ kernel.reshape(-1, kernel.shape[2])
    out = torch.zeros_like(x)
    for (to, of), matrix in zip(pairs, kernel, strict=True):
      out = out.index_add(0, to, x.index_select(0, of) @ matrix)
    return out

  def step():
    out = call()
    return torch.autograd.grad(out, (x, kernel), out.detach())

  def forward():
    with torch.no_grad():
      return call()

  return forward, step


def main() -> None:
  """Prints a line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('form', choices=[*OURS, *TORCH])
  parser.add_argument('--voxel', type=float, default=0.1)
  parser.add_argument('--channels', type=int, default=96)
  parser.add_argument('--repeats', type=int, default=7)
  args = parser.parse_args()
  arrays = operands(args.voxel, args.channels)
  make = torch_steps if args.form in TORCH else our_steps
  times = []
  for call in make(args.form, *arrays):
    call()  # Compiles.
    times.append(1e3 * point_tables.seconds(call, args.repeats))
  print(
    f'{args.form}: {len(arrays[0]):,} cells, {times[0]:.0f} ms, with gradients {times[1]:.0f} ms'
  )


if __name__ == '__main__':
  main()
