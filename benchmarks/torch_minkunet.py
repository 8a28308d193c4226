"""MinkUNet in plain PyTorch, for the benchmark: Minkowski Engine has no build for CPUs of today.

Written from the papers. A convolution multiplies the pairs of cells that there are, place by place
of its window: `index_select`, a product, `index_add_`. The state dict has the official keys, so

  python -m benchmarks.torch_minkunet

checks with converted weights that both sides compute the same, layer by layer.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks import point_tables
from crossattn_jax.geometry import points

# Blocks of the stages, and widths.
VARIANTS = {
  'minkunet18a': ((2,) * 8, (32, 64, 128, 256, 128, 128, 96, 96)),
  'minkunet34c': ((2, 3, 4, 6, 2, 2, 2, 2), (32, 64, 128, 256, 256, 128, 96, 96)),
}

CLASSES = 20


class Pairs(NamedTuple):
  """Rows of results and of inputs that meet, for each place of a window, and how many results."""

  pairs: list[tuple[torch.Tensor, torch.Tensor]]
  count: int

  @classmethod
  def of(cls, table: np.ndarray) -> 'Pairs':
    """Of `[window, n]` rows, -1 for none."""
    found = [(np.flatnonzero(rows >= 0), rows[rows >= 0]) for rows in table]
    return cls([tuple(map(torch.from_numpy, pair)) for pair in found], table.shape[1])

  def turned(self, count: int) -> 'Pairs':
    """From results to inputs, of which there are so many."""
    return Pairs([(of, to) for to, of in self.pairs], count)


class Level(NamedTuple):
  """The cells at one resolution: their neighbours, and the finer cells of each of them."""

  neighbours: Pairs
  children: Pairs | None


def tables(cells: np.ndarray) -> tuple[np.ndarray, list[Level]]:
  """The neighbours of cells in windows of 5, `[125, n]`, and their five levels."""
  levels, link = [], None
  for level in points.levels(cells, 5):
    children = None if link is None else Pairs.of(link.children.astype(np.int64))
    levels.append(Level(Pairs.of(level.neighbours.astype(np.int64)), children))
    link = level.coarsening
  return points.neighbours(cells, 5), levels


class SparseConv(nn.Module):
  """Products of the pairs of cells, added up."""

  def __init__(self, window, channels_in, channels):
    super().__init__()
    std = math.sqrt(2 / (window * channels))
    self.kernel = nn.Parameter(std * torch.randn(window, channels_in, channels))

  def forward(self, x, pairs):
    """Maps `[n, channels_in]` to `[count, channels]`."""
    middle = len(self.kernel) // 2 if len(self.kernel) % 2 else None  # Every cell meets itself.
    if middle is None:
      total = x.new_zeros(pairs.count, self.kernel.shape[2])
    else:
      total = x @ self.kernel[middle]
    for place, (to, of) in enumerate(pairs.pairs):
      if place != middle and len(to):
        total.index_add_(0, to, x.index_select(0, of) @ self.kernel[place])
    return total


class Product(nn.Module):
  """A product of each cell alone, or of what is around it already."""

  def __init__(self, *shape, bias=False):
    super().__init__()
    self.kernel = nn.Parameter(math.sqrt(2 / shape[-2]) * torch.randn(*shape))
    if bias:
      self.bias = nn.Parameter(torch.zeros(1, shape[-1]))

  def forward(self, x):
    """Maps `[n, channels_in]`."""
    y = x @ self.kernel.reshape(-1, self.kernel.shape[-1])
    return y + self.bias if hasattr(self, 'bias') else y


class Norm(nn.Module):
  """A batch norm over all cells."""

  def __init__(self, channels):
    super().__init__()
    self.bn = nn.BatchNorm1d(channels)

  def forward(self, x):
    """Maps `[n, channels]`."""
    return self.bn(x)


class Block(nn.Module):
  """Two convolutions, added to the input."""

  def __init__(self, channels_in, width):
    super().__init__()
    self.conv1, self.norm1 = SparseConv(27, channels_in, width), Norm(width)
    self.conv2, self.norm2 = SparseConv(27, width, width), Norm(width)
    self.downsample = None
    if channels_in != width:
      self.downsample = nn.Sequential(Product(channels_in, width), Norm(width))

  def forward(self, x, level):
    """Maps `[n, channels_in]` to `[n, width]`."""
    y = functional.relu(self.norm1(self.conv1(x, level.neighbours)))
    y = self.norm2(self.conv2(y, level.neighbours))
    return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class Stage(nn.Sequential):
  """Blocks at one resolution."""

  def __init__(self, channels_in, width, depth):
    super().__init__(*(Block(width if i else channels_in, width) for i in range(depth)))

  def forward(self, x, level):
    """Maps `[n, channels_in]` to `[n, width]`."""
    for block in self:
      x = block(x, level)
    return x


class MinkUNet(nn.Module):
  """The whole network."""

  def __init__(self, depths, widths, stem=32):
    super().__init__()
    self.conv0p1s1, self.bn0 = Product(125, 3, stem), Norm(stem)
    skips, width = [], stem
    for i, (depth, channels) in enumerate(zip(depths[:4], widths[:4], strict=True)):
      skips.append(width)
      setattr(self, f'conv{i + 1}p{2**i}s2', SparseConv(8, width, width))
      setattr(self, f'bn{i + 1}', Norm(width))
      setattr(self, f'block{i + 1}', Stage(width, channels, depth))
      width = channels
    for i, (depth, channels) in enumerate(zip(depths[4:], widths[4:], strict=True), 4):
      setattr(self, f'convtr{i}p{2 ** (8 - i)}s2', SparseConv(8, width, channels))
      setattr(self, f'bntr{i}', Norm(channels))
      setattr(self, f'block{i + 1}', Stage(channels + skips.pop(), channels, depth))
      width = channels
    self.final = Product(width, CLASSES, bias=True)

  def forward(self, windows, levels):
    """Maps windows of colours `[n, 375]` to logits `[n, 20]`."""
    x, skips = functional.relu(self.bn0(self.conv0p1s1(windows))), []
    for i in range(4):
      skips.append(x)
      level = levels[i + 1]
      x = getattr(self, f'conv{i + 1}p{2**i}s2')(x, level.children)
      x = functional.relu(getattr(self, f'bn{i + 1}')(x))
      x = getattr(self, f'block{i + 1}')(x, level)
    for i in range(4, 8):
      skip, level = skips.pop(), levels[7 - i]
      up = levels[8 - i].children.turned(len(skip))
      x = getattr(self, f'convtr{i}p{2 ** (8 - i)}s2')(x, up)
      x = torch.cat([functional.relu(getattr(self, f'bntr{i}')(x)), skip], dim=1)
      x = getattr(self, f'block{i + 1}')(x, level)
    return self.final(x)


class OfCells(MinkUNet):
  """The network as Minkowski Engine calls it, for `crossattn_jax.parity compare`."""

  def forward(self, coords, feats):
    """Maps cells `[n, 4]`, the scene first, and colours `[n, 3]` to logits."""
    around, levels = tables(coords[:, 1:].numpy())
    feats = torch.cat([feats, torch.zeros_like(feats[:1])])
    return super().forward(feats[torch.from_numpy(around.T)].flatten(1), levels)


def create_model(name):
  """Builds a variant."""
  return MinkUNet(*VARIANTS[name])


def problem(batch, device):
  """So many copies of the room beside each other, and the loss of the result and labels."""
  cells, colors = point_tables.colored_cells()
  step = 64 * (-(-np.ptp(cells[:, 0]) // 64) + 1)
  cells = np.concatenate([cells + [i * step, 0, 0] for i in range(batch)])
  around, levels = tables(cells)
  windows = torch.from_numpy(points.gather(np.tile(colors, (batch, 1)), around)).to(device)
  labels = torch.randint(0, CLASSES, (len(cells),), device=device)
  on_device = [
    Level(
      *(
        moved and Pairs([(a.to(device), b.to(device)) for a, b in moved.pairs], moved.count)
        for moved in level
      )
    )
    for level in levels
  ]
  return (windows, on_device), lambda logits: functional.cross_entropy(logits, labels)


def main():
  from crossattn_jax.parity import compare, report

  torch.manual_seed(0)
  for name, fields in VARIANTS.items():
    network = OfCells(*fields)
    compare.fill_generated(network)
    comparison = compare.compare(name, network, against='plain PyTorch')
    report.print_comparison(report.Printer(), comparison)
    if comparison.first_outside is not None:
      raise SystemExit('not the same model')


if __name__ == '__main__':
  main()
