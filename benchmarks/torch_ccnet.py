"""CCNet on ResNet-50 in plain PyTorch, for the benchmark: the official repository is no package.

Written from the paper and from what is known of the layers' shapes; the attention is the official
formulation, written anew (`criss_cross_vs_torch`). The state dict has the official keys, so

  python -m benchmarks.torch_ccnet

checks with converted weights that both sides compute the same. The auxiliary head is left out.
"""

import torch
from torch import nn
from torch.nn import functional

VARIANTS = {'ccnet_resnet50': (3, 4, 6, 3)}

CLASSES, CROP = 19, 769


class ActivatedNorm(nn.BatchNorm2d):
  """Batch norm and leaky ReLU."""

  def forward(self, x):
    """Maps `[batch, channels, height, width]`."""
    return functional.leaky_relu(super().forward(x), 0.01)


class Bottleneck(nn.Module):
  """1 x 1, 3 x 3 and 1 x 1 convolutions with batch norms."""

  def __init__(self, channels, width, stride, dilation):
    super().__init__()
    self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
    self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
    self.bn2 = nn.BatchNorm2d(width)
    self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
    self.downsample = None
    if stride > 1 or channels != 4 * width:
      shortcut = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
      self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

  def forward(self, x):
    """Maps `[batch, channels, height, width]`."""
    y = functional.relu(self.bn1(self.conv1(x)))
    y = functional.relu(self.bn2(self.conv2(y)))
    x = x if self.downsample is None else self.downsample(x)
    return functional.relu(x + self.bn3(self.conv3(y)))


class CrissCrossAttention(nn.Module):
  """Attention of every pixel over its column and its row, one softmax over both."""

  def __init__(self, channels):
    super().__init__()
    self.query_conv = nn.Conv2d(channels, channels // 8, 1)
    self.key_conv = nn.Conv2d(channels, channels // 8, 1)
    self.value_conv = nn.Conv2d(channels, channels, 1)
    self.gamma = nn.Parameter(torch.zeros(1))

  def forward(self, x):
    """Maps `[batch, channels, height, width]`."""
    batch, _, height, width = x.shape

    def by_column(y):
      return y.permute(0, 3, 1, 2).reshape(batch * width, -1, height)

    def by_row(y):
      return y.permute(0, 2, 1, 3).reshape(batch * height, -1, width)

    query, key, value = self.query_conv(x), self.key_conv(x), self.value_conv(x)
    itself = torch.full((height,), float('-inf'), device=x.device, dtype=query.dtype).diag()
    column = torch.bmm(by_column(query).transpose(1, 2), by_column(key)) + itself
    row = torch.bmm(by_row(query).transpose(1, 2), by_row(key))
    column = column.view(batch, width, height, height).transpose(1, 2)
    row = row.view(batch, height, width, width)
    weights = torch.softmax(torch.cat([column, row], dim=3), dim=3)
    column = weights[..., :height].transpose(1, 2).reshape(batch * width, height, height)
    row = weights[..., height:].reshape(batch * height, width, width)
    column = torch.bmm(by_column(value), column.transpose(1, 2)).view(batch, width, -1, height)
    row = torch.bmm(by_row(value), row.transpose(1, 2)).view(batch, height, -1, width)
    return self.gamma * (column.permute(0, 2, 3, 1) + row.permute(0, 2, 1, 3)) + x


class Head(nn.Module):
  """Criss-cross attention, applied twice, between convolutions."""

  def __init__(self, channels, width):
    super().__init__()

    def unit(channels):
      return nn.Conv2d(channels, width, 3, 1, 1, bias=False), ActivatedNorm(width)

    self.conva, self.convb = nn.Sequential(*unit(channels)), nn.Sequential(*unit(width))
    self.cca = CrissCrossAttention(width)
    classifier = nn.Dropout2d(0.1), nn.Conv2d(width, CLASSES, 1)
    self.bottleneck = nn.Sequential(*unit(channels + width), *classifier)

  def forward(self, x):
    """Returns logits of `[batch, channels, height, width]`."""
    y = self.conva(x)
    for _ in range(2):
      y = self.cca(y)
    return self.bottleneck(torch.cat([x, self.convb(y)], dim=1))


class CCNet(nn.Module):
  """A dilated ResNet with a deep stem, and the head."""

  def __init__(self, depths):
    super().__init__()
    channels = 3
    for i, (width, stride) in enumerate([(64, 2), (64, 1), (128, 1)], 1):
      setattr(self, f'conv{i}', nn.Conv2d(channels, width, 3, stride, 1, bias=False))
      setattr(self, f'bn{i}', nn.BatchNorm2d(width))
      channels = width
    settings = zip((64, 128, 256, 512), depths, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)
    for i, (width, depth, stride, dilation) in enumerate(settings, 1):
      blocks = []
      for b in range(depth):
        blocks.append(Bottleneck(channels, width, stride if b == 0 else 1, dilation))
        channels = 4 * width
      setattr(self, f'layer{i}', nn.Sequential(*blocks))
    self.head = Head(channels, channels // 4)

  def forward(self, x):
    """Returns logits at stride 8 of `[batch, 3, height, width]`."""
    for i in range(1, 4):
      x = functional.relu(getattr(self, f'bn{i}')(getattr(self, f'conv{i}')(x)))
    x = functional.max_pool2d(x, 3, 2, 1, ceil_mode=True)
    for i in range(1, 5):
      x = getattr(self, f'layer{i}')(x)
    return self.head(x)


def problem(batch, device='cpu', side=CROP):
  """Returns random crops, and the loss of the logits of each cell."""
  cells = (side - 1) // 8 + 1
  image = torch.randn(batch, 3, side, side, device=device)
  labels = torch.randint(0, CLASSES, (batch, cells, cells), device=device)
  return (image,), lambda logits: functional.cross_entropy(logits.float(), labels)


def create_model(name):
  """Builds a variant."""
  return CCNet(VARIANTS[name])


def main():
  from benchmarks import same_model

  torch.manual_seed(0)
  model = create_model('ccnet_resnet50').eval()
  torch.nn.init.constant_(model.head.cca.gamma, 0.5)
  # Inplace-ABN adds 1e-5 to the scale of every norm.
  same_model.check('ccnet_resnet50', model, side=97, bound=1e-3, auxiliary=False)


if __name__ == '__main__':
  main()
