"""ICAFusion on CSPDarknet in plain PyTorch, for the benchmark: the original's licence is not ours.

Written from the papers and from what is known of the layers' shapes. The state dict has the
original's keys, so

  python -m benchmarks.torch_icafusion

checks with converted weights that both sides compute the same outputs and losses.
"""

import math

import torch
from torch import nn
from torch.nn import functional

# Depth and width of YOLOv5, relative to its largest model.
VARIANTS = {'icafusion_n': (0.33, 0.25), 'icafusion_s': (0.33, 0.5)}

CLASSES, OBJECTS = 3, 12
STRIDES, GRIDS, HEADS = (8, 16, 32), (20, 16, 10), 8
ANCHORS = torch.tensor(
  [
    [(10, 13), (16, 30), (33, 23)],
    [(30, 61), (62, 45), (59, 119)],
    [(116, 90), (156, 198), (373, 326)],
  ],
  dtype=torch.float32,
)


class Unit(nn.Module):
  """A convolution, a batch norm and SiLU."""

  def __init__(self, channels_in, channels, side=1, stride=1):
    super().__init__()
    self.conv = nn.Conv2d(channels_in, channels, side, stride, (side - 1) // 2, bias=False)
    self.bn = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)

  def forward(self, x):
    """Maps `[batch, channels_in, height, width]`."""
    return functional.silu(self.bn(self.conv(x)), inplace=True)


class Bottleneck(nn.Module):
  """A 1 x 1 and a 3 x 3 convolution, residual or not."""

  def __init__(self, channels, shortcut):
    super().__init__()
    self.cv1, self.cv2 = Unit(channels, channels), Unit(channels, channels, 3)
    self.shortcut = shortcut

  def forward(self, x):
    """Maps `[batch, channels, height, width]`."""
    y = self.cv2(self.cv1(x))
    return x + y if self.shortcut else y


class Stage(nn.Module):
  """Bottlenecks beside a 1 x 1 convolution."""

  def __init__(self, channels_in, channels, depth, shortcut=True):
    super().__init__()
    half = channels // 2
    self.cv1, self.cv2 = Unit(channels_in, half), Unit(channels_in, half)
    self.cv3 = Unit(channels, channels)
    self.m = nn.Sequential(*(Bottleneck(half, shortcut) for _ in range(depth)))

  def forward(self, x):
    """Maps `[batch, channels_in, height, width]`."""
    return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], dim=1))


class Pooled(nn.Module):
  """Maxima over windows of 5, 9 and 13 beside each other."""

  def __init__(self, channels):
    super().__init__()
    self.cv1, self.cv2 = Unit(channels, channels // 2), Unit(2 * channels, channels)

  def forward(self, x):
    """Maps `[batch, channels, height, width]`."""
    maps = [self.cv1(x)]
    for _ in range(3):
      maps.append(functional.max_pool2d(maps[-1], 5, 1, 2))
    return self.cv2(torch.cat(maps, dim=1))


class Coefficient(nn.Module):
  """A scalar."""

  def __init__(self):
    super().__init__()
    self.bias = nn.Parameter(torch.ones(1))


class PoolWeights(nn.Module):
  """The weights of average and maximum."""

  def __init__(self):
    super().__init__()
    self.w1, self.w2 = (nn.Parameter(torch.full((1,), 0.5)) for _ in range(2))


class Attention(nn.Module):
  """Each modality's values, mixed by the other's queries."""

  def __init__(self, channels):
    super().__init__()
    for modality in ('vis', 'ir'):
      for name in ('que', 'key', 'val', 'out'):
        linear = nn.Linear(channels, channels)
        nn.init.normal_(linear.weight, std=0.001)
        nn.init.zeros_(linear.bias)
        setattr(self, f'{name}_proj_{modality}', linear)
    self.LN1, self.LN2 = nn.LayerNorm(channels), nn.LayerNorm(channels)

  def forward(self, rgb, thermal):
    """Maps two `[batch, tokens, channels]`."""
    batch, tokens, channels = rgb.shape
    rgb, thermal = self.LN1(rgb), self.LN2(thermal)

    def project(name, x):
      return getattr(self, name)(x).view(batch, tokens, HEADS, -1).transpose(1, 2)

    results = []
    for modality, other, x, y in (('vis', 'ir', rgb, thermal), ('ir', 'vis', thermal, rgb)):
      mixed = functional.scaled_dot_product_attention(
        project(f'que_proj_{other}', y),
        project(f'key_proj_{modality}', x),
        project(f'val_proj_{modality}', x),
        dropout_p=0.1 if self.training else 0.0,
      )
      mixed = mixed.transpose(1, 2).reshape(batch, tokens, channels)
      mixed = getattr(self, f'out_proj_{modality}')(mixed)
      results.append(functional.dropout(mixed, 0.1, self.training))
    return results


class Block(nn.Module):
  """Attention and MLPs of both modalities, with learnt residual coefficients."""

  def __init__(self, channels):
    super().__init__()
    self.crossatt = Attention(channels)
    self.LN2 = nn.LayerNorm(channels)
    for modality in ('vis', 'ir'):
      layers = nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
      setattr(self, f'mlp_{modality}', nn.Sequential(*layers, nn.Dropout(0.1)))
    for i in range(1, 9):
      setattr(self, f'coefficient{i}', Coefficient())

  def forward(self, rgb, thermal):
    """Maps two `[batch, tokens, channels]`."""
    c = [None, *(getattr(self, f'coefficient{i}').bias for i in range(1, 9))]
    new_rgb, new_thermal = self.crossatt(rgb, thermal)
    rgb, thermal = c[1] * rgb + c[2] * new_rgb, c[3] * thermal + c[4] * new_thermal
    rgb = c[5] * rgb + c[6] * self.mlp_vis(self.LN2(rgb))
    return rgb, c[7] * thermal + c[8] * self.mlp_ir(self.LN2(thermal))


class Fusion(nn.Module):
  """Two maps to one: through tokens on a coarse grid, and a 1 x 1 convolution of both."""

  def __init__(self, channels, grid):
    super().__init__()
    self.grid = grid
    for modality in ('vis', 'ir'):
      positions = nn.Parameter(torch.zeros(1, grid * grid, channels))
      setattr(self, f'pos_emb_{modality}', positions)
      setattr(self, f'{modality}_coefficient', PoolWeights())
    self.crosstransformer = nn.Sequential(Block(channels))
    self.conv1x1_out = Unit(2 * channels, channels)

  def forward(self, rgb, thermal):
    """Maps two `[batch, channels, height, width]` to one."""
    maps, size = (rgb, thermal), rgb.shape[2:]
    tokens = []
    for modality, x in zip(('vis', 'ir'), maps, strict=True):
      strides = [length // self.grid for length in size]
      sides = [n - (self.grid - 1) * step for n, step in zip(size, strides, strict=True)]
      weights = getattr(self, f'{modality}_coefficient')
      x = weights.w1 * functional.avg_pool2d(x, sides, strides) + weights.w2 * (
        functional.max_pool2d(x, sides, strides)
      )
      tokens.append(x.flatten(2).transpose(1, 2) + getattr(self, f'pos_emb_{modality}'))
    tokens = self.crosstransformer[0](*tokens)
    options = {'mode': 'nearest'} if self.training else {'mode': 'bilinear'}
    grown = []
    for x, new in zip(maps, tokens, strict=True):
      new = new.transpose(1, 2).unflatten(2, (self.grid, self.grid))
      grown.append(functional.interpolate(new, size, **options) + x)
    return self.conv1x1_out(torch.cat(grown, dim=1))


class Head(nn.Module):
  """A convolution a level."""

  def __init__(self, widths):
    super().__init__()
    self.m = nn.ModuleList(nn.Conv2d(width, 3 * (5 + CLASSES), 1) for width in widths)

  def forward(self, levels):
    """Maps the levels to `[batch, 3, height, width, 5 + classes]` each."""
    rows = []
    for conv, x in zip(self.m, levels, strict=True):
      x = conv(x).unflatten(1, (3, 5 + CLASSES))
      rows.append(x.permute(0, 1, 3, 4, 2).contiguous())
    return rows


class ICAFusion(nn.Module):
  """The detector. Layers have the numbers that they have in the original."""

  def __init__(self, depth, width):
    super().__init__()

    def scaled(channels):
      return 8 * math.ceil(channels * width / 8)

    widths = [scaled(64 * 2**i) for i in range(5)]
    depths = [max(round(n * depth), 1) for n in (3, 6, 9, 3)]
    layers = []
    for _ in range(2):
      layers.append(Unit(3, widths[0], 6, 2))
      for i, n in enumerate(depths):
        layers += [Unit(widths[i], widths[i + 1], 3, 2), Stage(widths[i + 1], widths[i + 1], n)]
      layers.append(Pooled(widths[-1]))
    small, middle, large = widths[2:]
    layers += [Fusion(n, grid) for n, grid in zip(widths[2:], GRIDS, strict=True)]
    n = depths[0]
    layers += [
      Unit(large, middle),
      *(nn.Identity(), nn.Identity()),
      Stage(2 * middle, middle, n, shortcut=False),
      Unit(middle, small),
      *(nn.Identity(), nn.Identity()),
      Stage(2 * small, small, n, shortcut=False),
      Unit(small, small, 3, 2),
      nn.Identity(),
      Stage(2 * small, middle, n, shortcut=False),
      Unit(middle, middle, 3, 2),
      nn.Identity(),
      Stage(2 * middle, large, n, shortcut=False),
      Head((small, middle, large)),
    ]
    self.model = nn.ModuleList(layers)

  def forward(self, rgb, thermal):
    """Maps two `[batch, 3, height, width]` to the maps of three levels."""
    layer, streams = self.model, []
    for first, x in ((0, rgb), (10, thermal)):
      maps = []
      for i in range(10):
        x = layer[first + i](x)
        maps.append(x)
      streams.append([maps[4], maps[6], maps[9]])
    fused = [layer[20 + i](*maps) for i, maps in enumerate(zip(*streams, strict=True))]
    beside = [layer[23](fused[2])]
    x = layer[26](torch.cat([functional.interpolate(beside[0], scale_factor=2), fused[1]], 1))
    beside.append(layer[27](x))
    levels = [
      layer[30](torch.cat([functional.interpolate(beside[1], scale_factor=2), fused[0]], 1))
    ]
    levels.append(layer[33](torch.cat([layer[31](levels[0]), beside[1]], 1)))
    levels.append(layer[36](torch.cat([layer[34](levels[1]), beside[0]], 1)))
    return layer[37](levels)


def assign(boxes, level, size):
  """Indices of image, object, anchor, row and column of what learns on a level of a square map."""
  objects = boxes.shape[1]
  boxes = (boxes / STRIDES[level]).reshape(-1, 4)
  ratio = boxes[None, :, 2:] / (ANCHORS[level].to(boxes) / STRIDES[level])[:, None]
  anchor, found = torch.where(torch.maximum(ratio, 1 / ratio).amax(-1) < 4)
  center = boxes[found, :2]
  steps = torch.tensor([(0, 0), (0.5, 0), (0, 0.5), (-0.5, 0), (0, -0.5)]).to(boxes)
  sides = torch.cat([center, size - center], dim=1)
  near = (sides % 1 < 0.5) & (sides > 1)
  near = torch.cat([torch.ones_like(near[:, :1]), near], dim=1)
  step, slot = torch.where(near.T)
  cell = (center[slot] - steps[step]).trunc().clamp(0, size - 1)
  found, anchor = found[slot], anchor[slot]
  wanted = torch.cat([boxes[found, :2] - cell, boxes[found, 2:]], dim=1)
  column, row = cell.long().unbind(1)
  return (found // objects, anchor, row, column), wanted, found


def ciou(boxes, others):
  """Complete IoU of boxes by centre and size."""
  (x, y, width, height), (u, v, w, h) = boxes.unbind(1), others.unbind(1)
  low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
  other_low, other_high = others[:, :2] - others[:, 2:] / 2, others[:, :2] + others[:, 2:] / 2
  shared = torch.minimum(high, other_high) - torch.maximum(low, other_low)
  shared = shared.clamp(min=0).prod(dim=1)
  hull = torch.maximum(high, other_high) - torch.minimum(low, other_low)
  hull = hull.square().sum(dim=1)
  overlap = shared / (width * height + w * h - shared + 1e-7)
  distance = ((x - u) ** 2 + (y - v) ** 2) / (hull + 1e-7)
  shape = 4 / math.pi**2 * (torch.atan(w / h) - torch.atan(width / height)) ** 2
  with torch.no_grad():
    weight = shape / (shape - overlap + 1 + 1e-7)
  return overlap - distance - weight * shape


def losses(outputs, boxes, labels):
  """The losses of boxes (by centre and size), objectness and classes, with YOLOv5's gains."""
  entropy = functional.binary_cross_entropy_with_logits
  box_loss = object_loss = class_loss = 0
  for level, (x, balance) in enumerate(zip(outputs, (4.0, 1.0, 0.4), strict=True)):
    size = x.shape[2]
    place, wanted, found = assign(boxes, level, size)
    objectness = torch.zeros_like(x[..., 0])
    if len(found):
      rows = x[place]
      anchors = ANCHORS[level].to(x)[place[1]] / STRIDES[level]
      center, sides = 2 * rows[:, :2].sigmoid() - 0.5, (2 * rows[:, 2:4].sigmoid()) ** 2 * anchors
      overlap = ciou(torch.cat([center, sides], dim=1), wanted)
      box_loss = box_loss + (1 - overlap).mean()
      overlap, order = overlap.detach().clamp(min=0).sort()  # The largest one is written last.
      objectness[tuple(index[order] for index in place)] = overlap
      classes = functional.one_hot(labels.flatten()[found], CLASSES).to(x)
      class_loss = class_loss + entropy(rows[:, 5:], classes)
    object_loss = object_loss + balance * entropy(x[..., 4], objectness)
  scale = (STRIDES[0] * outputs[0].shape[2] / 640) ** 2
  return 0.05 * box_loss, scale * object_loss, 0.5 * CLASSES / 80 * class_loss


def truths(batch, side):
  """So many boxes `[batch, objects, 4]`, by centre and size, and labels, by chance."""
  sides = 16 + torch.rand(batch, OBJECTS, 2) * (0.3 * side - 16)
  center = sides / 2 + torch.rand(batch, OBJECTS, 2) * (side - sides)
  return torch.cat([center, sides], dim=-1), torch.randint(CLASSES, (batch, OBJECTS))


def problem(batch, device='cpu', side=640):
  """Pairs of images, and the loss of what is found in them."""
  boxes, labels = (x.to(device) for x in truths(batch, side))
  images = tuple(torch.rand(batch, 3, side, side, device=device) for _ in range(2))
  return images, lambda outputs: sum(losses(outputs, boxes, labels))


def create_model(name):
  """Builds a variant."""
  return ICAFusion(*VARIANTS[name])


def main():
  import jax
  import jax.numpy as jnp
  import numpy as np

  import crossattn_jax
  from crossattn_jax.conversion import convert
  from crossattn_jax.tasks.detection import yolo_losses

  torch.manual_seed(0)
  batch, side = 2, 320
  for name in VARIANTS:
    model = create_model(name).eval()
    print(f'{name}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters')
    with torch.no_grad():
      for parameter in model.parameters():
        parameter += 0.01 * torch.randn_like(parameter)  # Nothing is 0.
    state = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    variables = convert.to_flax(name, state).variables
    images = torch.rand(2, batch, 3, side, side)
    boxes, labels = truths(batch, side)
    with torch.inference_mode():
      theirs = model(*images)
      their_losses = losses(theirs, boxes, labels)
    network = crossattn_jax.create_model(name)

    @jax.jit
    def ours(variables, images, boxes, labels, network=network):
      outputs, _ = network.apply(variables, *images)
      grid = network.anchors().of_input((side, side))
      positives = yolo_losses.assign_centers(boxes, labels, grid)
      gains = yolo_losses.scaled_gains(network.num_classes, (side, side))
      return outputs, yolo_losses.yolo_losses(outputs, positives, grid, gains=gains)

    given = (images.permute(0, 1, 3, 4, 2), boxes, labels.int())
    outputs, found = ours(variables, *(jnp.asarray(x.numpy()) for x in given))
    expected = [x.permute(0, 2, 3, 1, 4).reshape(batch, -1, 5 + CLASSES) for x in theirs]
    expected = torch.cat(expected, dim=1).numpy()
    ours_in_a_row = np.concatenate(
      [outputs['box_logits'], outputs['objectness'][..., None], outputs['logits']], axis=-1
    )
    error = np.linalg.norm(ours_in_a_row - expected) / np.linalg.norm(expected)
    print(f'outputs differ by {error:.1e}')
    if not error < 1e-4:
      raise SystemExit('not the same model')
    for key, value in zip(('box_loss', 'objectness_loss', 'class_loss'), their_losses, strict=True):
      error = abs(float(found[key]) / value.item() - 1)
      print(f'{key}: {value.item():.6f}, differs by {error:.1e}')
      if not error < 1e-4:
        raise SystemExit('not the same loss')


if __name__ == '__main__':
  main()
