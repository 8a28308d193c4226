"""BiFormer in plain PyTorch, for the benchmark: the original is no package.

Written from the paper, with PyTorch's own attention over the gathered keys. The state dict has the
official keys, so `python -m benchmarks.torch_biformer` checks with converted weights that both
sides compute the same.
"""

import itertools

import torch
from torch import nn
from torch.nn import functional

# Depths of the stages.
VARIANTS = {'biformer_tiny': (2, 2, 8, 2), 'biformer_small': (4, 4, 18, 4)}

WIDTHS, TOP_K, HEAD_DIM, REGIONS = (64, 128, 256, 512), (1, 4, 16, 0), 32, 7


def depthwise(width, side):
  """A convolution of each channel that keeps the size."""
  return nn.Conv2d(width, width, side, 1, side // 2, groups=width)


def on_map(conv, x):
  """Applies a convolution to `[batch, height, width, channels]`."""
  return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def attend(query, key, value, heads, scale):
  """Attention of `[batch, tokens, channels]`."""
  query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
  out = functional.scaled_dot_product_attention(query, key, value, scale=scale)
  return out.transpose(1, 2).flatten(2)


class Routed(nn.Module):
  """Attention to the tokens of the regions that suit one's own best."""

  def __init__(self, width, top_k):
    super().__init__()
    self.heads, self.top_k, self.scale = width // HEAD_DIM, top_k, width**-0.5
    self.qkv = nn.ModuleDict({'qkv': nn.Linear(width, 3 * width)})
    self.lepe, self.wo = depthwise(width, 5), nn.Linear(width, width)

  def forward(self, x):
    """Maps `[batch, height, width, channels]`."""
    batch, height, width, channels = x.shape
    rows, columns = height // REGIONS, width // REGIONS
    query, key, value = self.qkv['qkv'](x).chunk(3, dim=-1)

    def by_region(y):
      y = y.reshape(batch, REGIONS, rows, REGIONS, columns, channels).transpose(2, 3)
      return y.reshape(batch, REGIONS**2, rows * columns, channels)

    queries, keys, values = by_region(query), by_region(key), by_region(value)
    with torch.no_grad():
      scores = queries.mean(2) @ keys.mean(2).transpose(1, 2)
      chosen = scores.topk(self.top_k, dim=-1).indices
      example = torch.arange(batch, device=x.device)[:, None, None]
    keys, values = (y[example, chosen].flatten(0, 1).flatten(1, 2) for y in (keys, values))
    out = attend(queries.flatten(0, 1), keys, values, self.heads, self.scale)
    out = out.reshape(batch, REGIONS, REGIONS, rows, columns, channels).transpose(2, 3)
    return self.wo(out.reshape(x.shape) + on_map(self.lepe, value))


class Global(nn.Module):
  """Attention to all tokens."""

  def __init__(self, width):
    super().__init__()
    self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
    self.lepe = depthwise(width, 5)

  def forward(self, x):
    """Maps `[batch, height, width, channels]`."""
    query, key, value = self.qkv(x).flatten(1, 2).chunk(3, dim=-1)
    out = attend(query, key, value, 8, (x.shape[-1] // 8) ** -0.5).reshape(x.shape)
    return self.proj(out + on_map(self.lepe, x))


class Block(nn.Module):
  """A depthwise convolution, attention and an MLP, each added to its input."""

  def __init__(self, width, top_k):
    super().__init__()
    self.pos_embed = depthwise(width, 3)
    self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
    self.attn = Routed(width, top_k) if top_k else Global(width)
    layers = nn.Linear(width, 3 * width), nn.Identity(), nn.GELU(), nn.Linear(3 * width, width)
    self.mlp = nn.Sequential(*layers)

  def forward(self, x):
    """Maps `[batch, channels, height, width]`."""
    x = (x + self.pos_embed(x)).permute(0, 2, 3, 1)
    x = x + self.attn(self.norm1(x))
    return (x + self.mlp(self.norm2(x))).permute(0, 3, 1, 2)


class BiFormer(nn.Module):
  """The image classifier."""

  def __init__(self, depths):
    super().__init__()

    def halving(channels, width):
      return nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width)

    first = WIDTHS[0]
    stem = *halving(3, first // 2), nn.GELU(), *halving(first // 2, first)
    pairs = itertools.pairwise(WIDTHS)
    layers = [nn.Sequential(*stem), *(nn.Sequential(*halving(*pair)) for pair in pairs)]
    self.downsample_layers = nn.ModuleList(layers)
    settings = zip(depths, WIDTHS, TOP_K, strict=True)
    self.stages = nn.ModuleList(
      nn.Sequential(*(Block(width, top_k) for _ in range(depth)))
      for depth, width, top_k in settings
    )
    self.norm, self.head = nn.BatchNorm2d(WIDTHS[-1]), nn.Linear(WIDTHS[-1], 1000)

  def forward(self, x):
    """Classifies `[batch, 3, height, width]`."""
    for halve, stage in zip(self.downsample_layers, self.stages, strict=True):
      x = stage(halve(x))
    return self.head(self.norm(x).mean((2, 3)))


def create_model(name):
  """Builds a variant; `default_cfg` is timm's name for what `vs_torch` asks of a model."""
  model = BiFormer(VARIANTS[name])
  model.num_classes = 1000
  model.default_cfg = {'input_size': (3, 224, 224)}
  return model


def main():
  from benchmarks import same_model

  torch.manual_seed(0)
  same_model.check('biformer_tiny', create_model('biformer_tiny').eval(), side=224)


if __name__ == '__main__':
  main()
