"""MMViT as a plain PyTorch module, after the specification: the other side of `vs_torch`.

  python -m benchmarks.torch_mmvit

checks that it computes what the library computes, weights converted, and prints the parameters of
each variant. State-dict keys are those of `crossattn_jax.parity.mmvit`.
"""

import torch
from torch import nn
from torch.nn import functional

VARIANTS = {
  'mmvit_tiny': {'embed_dim': 48, 'depths': (1, 1, 4, 1)},
  'mmvit_small': {'embed_dim': 64, 'depths': (1, 1, 5, 1)},
  'mmvit_base': {},
}


class Pool(nn.Module):
  """Depthwise convolution of each head's map, and a layer norm."""

  def __init__(self, head_dim, stride):
    super().__init__()
    self.conv = nn.Conv2d(head_dim, head_dim, 3, stride, 1, groups=head_dim, bias=False)
    self.norm = nn.LayerNorm(head_dim, eps=1e-6)

  def forward(self, x, grid):
    """Pools `[batch, heads, tokens, head_dim]`."""
    batch, heads, tokens, width = x.shape
    extra = tokens - grid[0] * grid[1]
    image = x[:, :, extra:].reshape(batch * heads, *grid, width).permute(0, 3, 1, 2)
    pooled = self.conv(image).flatten(2).transpose(1, 2).reshape(batch, heads, -1, width)
    if extra:
      pooled = torch.cat([x[:, :, :extra], pooled], dim=2)
    return self.norm(pooled)


class Mlp(nn.Module):
  """Linear, GELU, linear."""

  def __init__(self, width):
    super().__init__()
    self.fc1 = nn.Linear(width, 4 * width)
    self.fc2 = nn.Linear(4 * width, width)

  def forward(self, x):
    """Maps `[batch, tokens, width]`."""
    return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
  """Pooling self-attention and MLP; with `scale` at half the resolution and twice the width."""

  def __init__(self, width, heads, stride, scale=False):
    super().__init__()
    out = 2 * width if scale else width
    self.heads, self.scale, head_dim = heads, scale, out // heads
    self.norm1 = nn.LayerNorm(width, eps=1e-6)
    self.qkv = nn.Linear(width, 3 * out)
    self.proj = nn.Linear(out, out)
    self.pool_k = Pool(head_dim, stride)
    self.pool_v = Pool(head_dim, stride)
    if scale:
      self.pool_q = Pool(head_dim, 2)
      self.skip = nn.Linear(width, out)
    self.norm2 = nn.LayerNorm(out, eps=1e-6)
    self.mlp = Mlp(out)

  def forward(self, x, grid):
    """Maps `[batch, tokens, width]`."""
    batch, tokens, _ = x.shape
    normed = self.norm1(x)
    q, k, v = self.qkv(normed).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
    k, v = self.pool_k(k, grid), self.pool_v(v, grid)
    if self.scale:
      q = self.pool_q(q, grid)
      x = self.skip(normed)
      extra = tokens - grid[0] * grid[1]
      image = x[:, extra:].transpose(1, 2).reshape(batch, -1, *grid)
      image = functional.max_pool2d(image, 3, 2, 1).flatten(2).transpose(1, 2)
      x = torch.cat([x[:, :extra], image], dim=1) if extra else image
    out = functional.scaled_dot_product_attention(q, k, v)
    x = x + self.proj(out.transpose(1, 2).flatten(2))
    return x + self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
  """Attention over the tokens of both views, whose keys and values are pooled view by view."""

  def __init__(self, width, heads, strides):
    super().__init__()
    self.heads = heads
    self.norm1 = nn.LayerNorm(width, eps=1e-6)
    self.qkv = nn.Linear(width, 3 * width)
    self.proj = nn.Linear(width, width)
    self.pool_k = nn.ModuleList(Pool(width // heads, stride) for stride in strides)
    self.pool_v = nn.ModuleList(Pool(width // heads, stride) for stride in strides)
    self.norm2 = nn.LayerNorm(width, eps=1e-6)
    self.mlp = Mlp(width)

  def forward(self, views, grids):
    """Maps the tokens of each view."""
    sizes = [view.shape[1] for view in views]
    x = torch.cat(views, dim=1)
    batch, tokens, _ = x.shape
    qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    k, v = (
      torch.cat(
        [
          pool(part, grid) for pool, part, grid in zip(pools, y.split(sizes, 2), grids, strict=True)
        ],
        dim=2,
      )
      for pools, y in ((self.pool_k, k), (self.pool_v, v))
    )
    out = functional.scaled_dot_product_attention(q, k, v)
    x = x + self.proj(out.transpose(1, 2).flatten(2))
    x = x + self.mlp(self.norm2(x))
    return list(x.split(sizes, 1))


class Stage(nn.Module):
  """Blocks in each view, a block across the views, a scaled block in each view."""

  def __init__(self, width, heads, depth, strides, last):
    super().__init__()
    self.blocks = nn.ModuleList(
      nn.ModuleList(Block(width, heads, stride) for stride in strides) for _ in range(depth)
    )
    self.cross = CrossBlock(width, heads, strides)
    if not last:
      self.scale = nn.ModuleList(
        Block(width, 2 * heads, max(stride // 2, 1), scale=True) for stride in strides
      )

  def forward(self, views, grids):
    """Maps the tokens and the grid of each view."""
    for blocks in self.blocks:
      views = [block(x, grid) for block, x, grid in zip(blocks, views, grids, strict=True)]
    views = self.cross(views, grids)
    if hasattr(self, 'scale'):
      views = [block(x, grid) for block, x, grid in zip(self.scale, views, grids, strict=True)]
      grids = [tuple((length + 1) // 2 for length in grid) for grid in grids]
    return views, grids


class MMViT(nn.Module):
  """The image classifier with joint positions and a class token."""

  def __init__(self, embed_dim=96, depths=(1, 1, 10, 1), image_size=224, num_classes=1000):
    super().__init__()
    self.grids = [(image_size // 4,) * 2, (image_size // 8,) * 2]
    self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
    self.pos0 = nn.Parameter(0.02 * torch.randn(1, 1 + self.grids[0][0] ** 2, embed_dim))
    self.pos1 = nn.Parameter(0.02 * torch.randn(1, self.grids[1][0] ** 2, embed_dim))
    self.patch = nn.ModuleList(
      [nn.Conv2d(3, embed_dim, 7, 4, 3), nn.Conv2d(3, embed_dim, 15, 8, 7)]
    )
    strides, stages = (4, 2), []
    for s, depth in enumerate(depths):
      width = embed_dim * 2**s
      stages.append(Stage(width, 2**s, depth, strides, s == len(depths) - 1))
      strides = tuple(max(stride // 2, 1) for stride in strides)
    self.stages = nn.ModuleList(stages)
    self.norm = nn.LayerNorm(width, eps=1e-6)
    self.head = nn.Linear(width, num_classes)

  def forward(self, image):
    """Classifies `[batch, 3, height, width]`."""
    views = [patch(image).flatten(2).transpose(1, 2) for patch in self.patch]
    views[0] = torch.cat([self.cls_token.expand(len(image), -1, -1), views[0]], dim=1)
    views, grids = [views[0] + self.pos0, views[1] + self.pos1], self.grids
    for stage in self.stages:
      views, grids = stage(views, grids)
    return self.head(self.norm(views[0][:, 0]))


def create_model(name):
  """Builds a variant; `default_cfg` is timm's name for what `vs_torch` asks of a model."""
  model = MMViT(**VARIANTS[name])
  model.num_classes = 1000
  model.default_cfg = {'input_size': (3, 224, 224)}
  return model


def main():
  from benchmarks import same_model

  for name in VARIANTS:
    count = sum(parameter.numel() for parameter in create_model(name).parameters())
    print(f'{name}: {count:,} parameters')
  torch.manual_seed(0)
  same_model.check('mmvit_tiny', create_model('mmvit_tiny').eval(), side=224)


if __name__ == '__main__':
  main()
