"""CrossFormer in plain PyTorch, for the benchmark: the original is no package.

Written from the paper's description. The state dict has the official keys, so `python -m
benchmarks.torch_crossformer crossformer_small` checks with converted weights that both sides
compute the same.
"""

import argparse

import torch
from torch import nn

# name: widths of the first stage, depths, group sizes, intervals, cooling layers
VARIANTS = {
  'crossformer_tiny': (64, (1, 1, 8, 6), (7, 7, 7, 7), (8, 4, 2, 1), False),
  'crossformer_small': (96, (2, 2, 6, 2), (7, 7, 7, 7), (8, 4, 2, 1), False),
  'crossformer_base': (96, (2, 2, 18, 2), (7, 7, 7, 7), (8, 4, 2, 1), False),
  'crossformer_large': (128, (2, 2, 18, 2), (7, 7, 7, 7), (8, 4, 2, 1), False),
  'crossformer_pp_small': (64, (2, 2, 18, 2), (4, 4, 14, 7), (4, 2, 1, 1), True),
  'crossformer_pp_base': (96, (2, 2, 18, 2), (4, 4, 14, 7), (4, 2, 1, 1), True),
  'crossformer_pp_large': (128, (2, 2, 18, 2), (4, 4, 14, 7), (4, 2, 1, 1), True),
  'crossformer_pp_huge': (128, (6, 6, 18, 2), (4, 4, 14, 7), (4, 2, 1, 1), True),
}


class Embedding(nn.Module):
  """The first cross-scale embedding; maps NCHW images to NHWC maps."""

  def __init__(self, width):
    super().__init__()
    shares = (width // 2, width // 4, width // 8, width // 8)
    self.projs = nn.ModuleList(
      nn.Conv2d(3, share, side, 4, (side - 4) // 2)
      for share, side in zip(shares, (4, 8, 16, 32), strict=True)
    )
    self.norm = nn.LayerNorm(width)

  def forward(self, x):
    """Maps images `[batch, 3, height, width]` to `[batch, height / 4, width / 4, width]`."""
    return self.norm(torch.cat([conv(x).permute(0, 2, 3, 1) for conv in self.projs], dim=-1))


class Merging(nn.Module):
  """The cross-scale embedding between stages."""

  def __init__(self, width):
    super().__init__()
    self.reductions = nn.ModuleList(
      nn.Conv2d(width, width, side, 2, (side - 2) // 2) for side in (2, 4)
    )
    self.norm = nn.LayerNorm(width)

  def forward(self, x):
    """Maps `[batch, height, width, channels]` to half the size and twice the channels."""
    x = self.norm(x).permute(0, 3, 1, 2)
    return torch.cat([conv(x).permute(0, 2, 3, 1) for conv in self.reductions], dim=-1)


class PositionBias(nn.Module):
  """The network from offsets to biases."""

  def __init__(self, hidden, heads):
    super().__init__()
    self.pos_proj = nn.Linear(2, hidden)

    def layer(width):
      return nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, width))

    self.pos1, self.pos2, self.pos3 = layer(hidden), layer(hidden), layer(heads)

  def forward(self, offsets):
    """Maps `[offsets, 2]` to `[offsets, heads]`."""
    return self.pos3(self.pos2(self.pos1(self.pos_proj(offsets))))


class Attention(nn.Module):
  """Attention within groups, `[groups, tokens, width]`."""

  def __init__(self, width, heads, group):
    super().__init__()
    self.heads, self.scale = heads, (width // heads) ** -0.5
    self.pos = PositionBias(width // 16, heads)
    self.qkv = nn.Linear(width, 3 * width)
    self.proj = nn.Linear(width, width)
    line = torch.arange(1 - group, group)
    offsets = torch.stack(torch.meshgrid(line, line, indexing='ij'), -1).reshape(-1, 2)
    place = torch.stack(
      torch.meshgrid(torch.arange(group), torch.arange(group), indexing='ij'), -1
    ).reshape(-1, 2)
    between = place[:, None] - place[None] + group - 1
    index = between[..., 0] * (2 * group - 1) + between[..., 1]
    self.register_buffer('offsets', offsets.float(), persistent=False)
    self.register_buffer('index', index, persistent=False)

  def forward(self, x, mask=None):
    """Attends; `mask` is `[groups of an image, tokens, tokens]`."""
    groups, tokens, width = x.shape
    qkv = self.qkv(x).reshape(groups, tokens, 3, self.heads, width // self.heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    scores = (query * self.scale) @ key.transpose(-2, -1)
    bias = self.pos(self.offsets)[self.index.view(-1)].view(tokens, tokens, self.heads)
    scores = scores + bias.permute(2, 0, 1)
    if mask is not None:
      scores = scores.view(-1, len(mask), self.heads, tokens, tokens) + mask[None, :, None]
      scores = scores.view(groups, self.heads, tokens, tokens)
    out = (scores.softmax(-1) @ value).transpose(1, 2).reshape(groups, tokens, width)
    return self.proj(out)


class Mlp(nn.Module):
  """Linear, GELU, linear."""

  def __init__(self, width):
    super().__init__()
    self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

  def forward(self, x):
    """Maps `[..., width]` to the same shape."""
    return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
  """Attention and MLP with residuals, and a cooling layer on request."""

  def __init__(self, width, heads, side, group, interval, long, cooling, drop):
    super().__init__()
    if side <= group:
      long, group = False, side
    self.group, self.interval, self.drop = group, interval if long else 1, drop
    self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
    self.attn, self.mlp = Attention(width, heads, group), Mlp(width)
    if cooling:
      self.ex_conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
      self.ex_ln = nn.LayerNorm(width)
    self.padding = -side % (group * self.interval)
    mask = None
    if self.padding:
      real = torch.zeros(1, side + self.padding, side + self.padding, 1)
      real[:, :side, :side] = 1
      mask = self.split(real)[..., 0]
      mask = ((1 - mask) * -1e6)[:, None, :].repeat(1, group * group, 1)
    self.register_buffer('mask', mask, persistent=False)

  def split(self, x):
    """Sorts a padded map into `[batch * groups, tokens, channels]`."""
    batch, height, width, channels = x.shape
    g, i = self.group, self.interval
    x = x.reshape(batch, height // (g * i), g, i, width // (g * i), g, i, channels)
    return x.permute(0, 1, 4, 3, 6, 2, 5, 7).reshape(-1, g * g, channels)

  def join(self, x, batch, height, width):
    """The inverse of `split`."""
    g, i = self.group, self.interval
    x = x.reshape(batch, height // (g * i), width // (g * i), i, i, g, g, -1)
    return x.permute(0, 1, 5, 3, 2, 6, 4, 7).reshape(batch, height, width, -1)

  def drop_path(self, x):
    """Drops whole images."""
    if not self.training or self.drop == 0:
      return x
    kept = x.new_empty(len(x), 1, 1, 1).bernoulli_(1 - self.drop)
    return x * (kept / (1 - self.drop))

  def forward(self, x):
    """Maps `[batch, height, width, channels]` to the same shape."""
    batch, height, width, _ = x.shape
    y = self.norm1(x)
    if self.padding:
      y = nn.functional.pad(y, (0, 0, 0, self.padding, 0, self.padding))
    y = self.join(self.attn(self.split(y), self.mask), batch, *y.shape[1:3])
    x = x + self.drop_path(y[:, :height, :width])
    x = x + self.drop_path(self.mlp(self.norm2(x)))
    if hasattr(self, 'ex_conv'):
      x = self.ex_ln(self.ex_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    return x


class Stage(nn.Module):
  """Blocks, and the embedding of the next stage."""

  def __init__(self, blocks, downsample):
    super().__init__()
    self.blocks = nn.ModuleList(blocks)
    self.downsample = downsample

  def forward(self, x):
    """Maps a map to that of the next stage."""
    for block in self.blocks:
      x = block(x)
    return x if self.downsample is None else self.downsample(x)


class CrossFormer(nn.Module):
  """The classifier of NCHW images of 224 x 224."""

  def __init__(self, variant, num_classes=1000, drop_path_rate=0.0):
    super().__init__()
    width, depths, groups, intervals, cooling = VARIANTS[variant]
    rates = iter(torch.linspace(0, drop_path_rate, sum(depths)).tolist())
    self.patch_embed = Embedding(width)
    stages = []
    for s, depth in enumerate(depths):
      channels, side = width * 2**s, 56 // 2**s
      blocks = [
        Block(
          channels,
          channels // 32,
          side,
          groups[s],
          intervals[s],
          long=i % 2 == 1,
          cooling=cooling and i % 3 == 2 and i < depth - 1,
          drop=next(rates),
        )
        for i in range(depth)
      ]
      stages.append(Stage(blocks, Merging(channels) if s < 3 else None))
    self.layers = nn.ModuleList(stages)
    self.norm = nn.LayerNorm(8 * width)
    self.head = nn.Linear(8 * width, num_classes)
    self.num_classes, self.default_cfg = num_classes, {'input_size': (3, 224, 224)}

  def forward(self, x):
    """Maps `[batch, 3, 224, 224]` to logits."""
    x = self.patch_embed(x)
    for stage in self.layers:
      x = stage(x)
    return self.head(self.norm(x).mean(dim=(1, 2)))


def create_model(variant: str) -> CrossFormer:
  """Builds a variant as timm would."""
  return CrossFormer(variant)


def difference(variant: str) -> float:
  """The relative difference of both sides' logits for the same weights and images."""
  import jax.numpy as jnp
  import numpy as np

  from crossattn_jax.conversion import convert
  from crossattn_jax.models import registry

  torch.manual_seed(0)
  theirs = CrossFormer(variant).eval()
  # Weights of the size that training gives them: every part matters.
  for parameter in theirs.parameters():
    torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.05)
  image = torch.randn(2, 3, 224, 224)
  with torch.inference_mode():
    expected = theirs(image).numpy()
  state = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
  variables = convert.to_flax(variant, state).variables
  model = registry.create_model(variant)
  ours, _ = model.apply(variables, jnp.asarray(image.permute(0, 2, 3, 1).numpy()))
  return float(np.linalg.norm(ours - expected) / np.linalg.norm(expected))


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('variants', nargs='+', choices=VARIANTS)
  for name in parser.parse_args().variants:
    print(f'{name}: logits differ by {difference(name):.1e}')
