"""RetinaNet on ResNet-50 in plain PyTorch, for the benchmark: mmdetection cannot be installed.

Written from the papers. The state dict has mmdetection's keys, so

  python -m benchmarks.torch_retinanet

checks with converted weights that both sides compute the same losses.
"""

import math

import torch
from torch import nn
from torch.nn import functional

VARIANTS = {'resnet50_deep_stem+retinanet': (3, 4, 6, 3)}

CLASSES, OBJECTS = 80, 12
SCALES, RATIOS = [4 * 2 ** (k / 3) for k in range(3)], (0.5, 1.0, 2.0)


class Bottleneck(nn.Module):
  """1 x 1, 3 x 3 and 1 x 1 convolutions with batch norms."""

  def __init__(self, channels_in, width, stride, project):
    super().__init__()
    self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
    self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
    self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
    self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(c) for c in (width, width, 4 * width))
    self.downsample = None
    if project:
      self.downsample = nn.Sequential(
        nn.Conv2d(channels_in, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
      )

  def forward(self, x):
    """Maps `[batch, channels, height, width]`."""
    y = functional.relu(self.bn1(self.conv1(x)))
    y = functional.relu(self.bn2(self.conv2(y)))
    y = self.bn3(self.conv3(y))
    return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
  """The backbone, with a stem of three convolutions."""

  def __init__(self, depths):
    super().__init__()
    layers, channels = [], 3
    for width, stride in ((64, 2), (64, 1), (128, 1)):
      conv = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
      layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
      channels = width
    self.stem = nn.Sequential(*layers)
    for stage, depth in enumerate(depths):
      width = 64 * 2**stage
      blocks = []
      for i in range(depth):
        blocks.append(Bottleneck(channels, width, 2 if stage and i == 0 else 1, i == 0))
        channels = 4 * width
      setattr(self, f'layer{stage + 1}', nn.Sequential(*blocks))

  def forward(self, x):
    """Maps images to the maps at strides 8, 16 and 32."""
    x = self.layer1(functional.max_pool2d(self.stem(x), 3, 2, 1))
    maps = []
    for layer in (self.layer2, self.layer3, self.layer4):
      x = layer(x)
      maps.append(x)
    return maps


class Unit(nn.Module):
  """A convolution under the key that mmdetection has it."""

  def __init__(self, channels_in, channels, side, stride=1):
    super().__init__()
    self.conv = nn.Conv2d(channels_in, channels, side, stride, side // 2)

  def forward(self, x):
    """Maps `[batch, channels_in, height, width]`."""
    return self.conv(x)


class Pyramid(nn.Module):
  """The feature pyramid, with two levels more by convolution."""

  def __init__(self, widths, channels):
    super().__init__()
    self.lateral_convs = nn.ModuleList(Unit(width, channels, 1) for width in widths)
    self.fpn_convs = nn.ModuleList(
      [Unit(channels, channels, 3) for _ in widths]
      + [Unit(widths[-1], channels, 3, 2), Unit(channels, channels, 3, 2)]
    )

  def forward(self, maps):
    """Maps the backbone's maps to five levels."""
    levels = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
    for i in (1, 0):
      levels[i] = levels[i] + functional.interpolate(levels[i + 1], levels[i].shape[2:])
    outputs = [conv(x) for conv, x in zip(self.fpn_convs, levels, strict=False)]
    outputs.append(self.fpn_convs[3](maps[-1]))
    outputs.append(self.fpn_convs[4](outputs[-1]))
    return outputs


class Head(nn.Module):
  """Classes and boxes of every anchor."""

  def __init__(self, channels):
    super().__init__()
    self.cls_convs = nn.ModuleList(Unit(channels, channels, 3) for _ in range(4))
    self.reg_convs = nn.ModuleList(Unit(channels, channels, 3) for _ in range(4))
    self.retina_cls = nn.Conv2d(channels, 9 * CLASSES, 3, padding=1)
    self.retina_reg = nn.Conv2d(channels, 9 * 4, 3, padding=1)
    for parameter in self.parameters():
      nn.init.normal_(parameter, 0, 0.01) if parameter.ndim > 1 else nn.init.zeros_(parameter)
    nn.init.constant_(self.retina_cls.bias, -math.log(99))

  def forward(self, levels):
    """Maps the levels to `[batch, anchors, classes]` and `[batch, anchors, 4]`."""
    results = []
    for convs, last, channels in (
      (self.cls_convs, self.retina_cls, CLASSES),
      (self.reg_convs, self.retina_reg, 4),
    ):
      rows = []
      for x in levels:
        for conv in convs:
          x = functional.relu(conv(x))
        rows.append(last(x).permute(0, 2, 3, 1).reshape(len(x), -1, channels))
      results.append(torch.cat(rows, dim=1))
    return tuple(results)


class RetinaNet(nn.Module):
  """The detector."""

  def __init__(self, depths):
    super().__init__()
    self.backbone = ResNet(depths)
    self.neck = Pyramid((512, 1024, 2048), 256)
    self.bbox_head = Head(256)

  def forward(self, x):
    """Maps `[batch, 3, height, width]` to logits and deltas."""
    return self.bbox_head(self.neck(self.backbone(x)))


def anchors(side, device):
  """The anchors of a square input, `[anchors, 4]`."""
  levels = []
  for stride in (8, 16, 32, 64, 128):
    sizes = torch.tensor(
      [
        (stride * scale / ratio**0.5, stride * scale * ratio**0.5)
        for ratio in RATIOS
        for scale in SCALES
      ]
    )
    cell = torch.cat([-sizes / 2, sizes / 2], dim=1)
    places = torch.arange(-(-side // stride)) * stride
    y, x = torch.meshgrid(places, places, indexing='ij')
    shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    levels.append((shifts + cell).reshape(-1, 4))
  return torch.cat(levels).to(device)


def overlaps(boxes, others):
  """IoU `[boxes, others]`."""
  low = torch.maximum(boxes[:, None, :2], others[:, :2])
  high = torch.minimum(boxes[:, None, 2:], others[:, 2:])
  shared = (high - low).clamp(min=0).prod(-1)
  areas = [(each[:, 2:] - each[:, :2]).prod(-1) for each in (boxes, others)]
  return shared / (areas[0][:, None] + areas[1] - shared).clamp(min=1e-6)


def assign(boxes, grid):
  """The box that each anchor is to find; -1 for background, -2 for ignored ones."""
  overlap = overlaps(boxes, grid)
  best, index = overlap.max(dim=0)
  assigned = torch.full_like(index, -2)
  assigned[best < 0.4] = -1
  assigned[best >= 0.5] = index[best >= 0.5]
  for k, best_of_box in enumerate(overlap.amax(dim=1)):
    assigned[overlap[k] == best_of_box] = k
  return assigned


def encode(references, boxes):
  """Boxes relative to references."""
  size, center = references[:, 2:] - references[:, :2], (references[:, 2:] + references[:, :2]) / 2
  box_size, box_center = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
  return torch.cat([(box_center - center) / size, torch.log(box_size / size)], dim=1)


def losses(outputs, boxes, labels, grid):
  """The focal and the box loss of a batch."""
  logits, deltas = outputs
  number = class_loss = box_loss = 0
  for i in range(len(logits)):
    assigned = assign(boxes[i], grid)
    found, counts = assigned >= 0, assigned >= -1
    targets = torch.zeros_like(logits[i])
    targets[found, labels[i][assigned[found]]] = 1
    entropy = functional.binary_cross_entropy_with_logits(logits[i], targets, reduction='none')
    probability = torch.sigmoid(logits[i])
    wrong = torch.where(targets > 0, 1 - probability, probability)
    weights = (0.25 * targets + 0.75 * (1 - targets)) * wrong**2 * counts[:, None]
    class_loss = class_loss + (weights * entropy).sum()
    encoded = encode(grid[found], boxes[i][assigned[found]])
    box_loss = box_loss + (deltas[i][found] - encoded).abs().sum()
    number = number + found.sum().clamp(min=1)
  return class_loss / number, box_loss / number


def truths(batch, side):
  """So many boxes `[batch, objects, 4]` and labels `[batch, objects]`, by chance."""
  low = torch.rand(batch, OBJECTS, 2) * 0.7 * side
  high = low + 16 + torch.rand(batch, OBJECTS, 2) * (0.3 * side - 16)
  boxes = torch.cat([low, high], dim=-1)
  return boxes, torch.randint(CLASSES, (batch, OBJECTS))


def problem(batch, device='cpu', side=320):
  """Images, and the loss of what is found in them."""
  boxes, labels = (x.to(device) for x in truths(batch, side))
  grid = anchors(side, device)
  images = torch.randn(batch, 3, side, side, device=device)
  return (images,), lambda outputs: sum(losses(outputs, boxes, labels, grid))


def create_model(name):
  """Builds a variant."""
  return RetinaNet(VARIANTS[name])


def main():
  import jax
  import jax.numpy as jnp
  import numpy as np

  import crossattn_jax
  from crossattn_jax.conversion import convert
  from crossattn_jax.heads.detection import types
  from crossattn_jax.tasks.detection import losses as detection_losses

  torch.manual_seed(0)
  name, batch, side = 'resnet50_deep_stem+retinanet', 2, 320
  model = create_model(name).train()
  print(f'{name}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters')
  state = {key: value.numpy().copy() for key, value in model.state_dict().items()}
  variables = convert.to_flax(name, state).variables
  images, (boxes, labels) = torch.randn(batch, 3, side, side), truths(batch, side)
  with torch.inference_mode():
    theirs = losses(model(images), boxes, labels, anchors(side, 'cpu'))
  network = crossattn_jax.create_model(name)

  @jax.jit
  def ours(variables, image, objects):
    (outputs, _), _ = network.apply(variables, image, train=True, mutable=['batch_stats'])
    grid = network.anchors().of_input(image.shape[1:3])
    sizes = jnp.full((batch, 2), side)
    return detection_losses.retinanet_losses(outputs, objects, sizes, grid)

  objects = types.Truths(jnp.asarray(boxes.numpy()), jnp.asarray(labels.numpy(), jnp.int32))
  found = ours(variables, jnp.asarray(images.permute(0, 2, 3, 1).numpy()), objects)
  for key, expected in zip(('class_loss', 'box_loss'), theirs, strict=True):
    error = abs(float(found[key]) / expected.item() - 1)
    print(f'{key}: {expected.item():.6f}, differs by {error:.1e}')
    if not error < 1e-4 or not np.isfinite(error):
      raise SystemExit('not the same model')


if __name__ == '__main__':
  main()
