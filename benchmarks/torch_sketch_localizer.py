"""The sketch localizer in plain PyTorch, for the benchmark: its release does not run.

Written from the papers and from what is known of the layers' shapes, with PyTorch's own attention
and torchvision's ResNet, boxes and focal loss. The state dict has the original's keys, so

  python -m benchmarks.torch_sketch_localizer

checks with converted weights that both sides compute the same outputs and losses.
"""

import math

from scipy import optimize
import torch
from torch import nn
from torch.nn import functional
import torchvision
from torchvision import ops

# Depths, heads and drop-path rate of the backbone.
VARIANTS = {
  'sketch_localizer_tiny': ((2, 2, 6, 2), (3, 6, 12, 24), 0.2),
  'sketch_localizer_small': ((2, 2, 18, 2), (3, 6, 12, 24), 0.3),
}

SIZE, SKETCH_SIDE, OBJECTS = (480, 640), 224, 5
WIDTH, WINDOW, QUERIES, CHANNELS, HEADS, LAYERS, POINTS = 96, 7, 100, 256, 8, 6, 4
FIRST_REFINED, LEVELS = 3, LAYERS + 1


def waves(position, channels):
  """Sines and cosines of positions `[...]`, `[..., channels]`."""
  index = torch.arange(channels, dtype=torch.float32, device=position.device)
  angles = position[..., None] / 10_000 ** (2 * (index // 2) / channels)
  return torch.stack([angles[..., ::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


def sine_position(height, width, channels, device, scaled=False):
  """Of a map's cells, row by row: `[1, height * width, channels]`."""
  rows, columns = (
    torch.arange(1, n + 1, dtype=torch.float32, device=device) for n in (height, width)
  )
  if scaled:
    rows, columns = (2 * math.pi * x / (len(x) + 1e-6) for x in (rows, columns))
  rows, columns = (waves(x, channels // 2) for x in (rows, columns))
  size = height, width, channels // 2
  return torch.cat([rows[:, None].expand(size), columns.expand(size)], dim=-1).flatten(0, 1)[None]


class Fusion(nn.Module):
  """Tokens look at others, and add what a network makes of what they saw."""

  def __init__(self, channels):
    super().__init__()
    self.self_attn = nn.MultiheadAttention(channels, HEADS, dropout=0.4, batch_first=True)
    self.linear1, self.linear2 = nn.Linear(channels, 1024), nn.Linear(1024, channels)
    self.norm3, self.dropout = nn.LayerNorm(channels), nn.Dropout(0.4)

  def forward(self, x, guide, x_position, guide_position):
    """Maps `[batch, tokens, channels]` to the same shape."""
    seen, _ = self.self_attn(x + x_position, guide + guide_position, guide, need_weights=False)
    change = self.linear2(self.dropout(functional.relu(self.linear1(seen))))
    return self.norm3(x + self.dropout(change))


class Attention(nn.Module):
  """Of patches in windows, and of detection tokens among themselves or to all."""

  def __init__(self, channels, heads, shift):
    super().__init__()
    self.heads, self.shift = heads, shift
    self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
    table = torch.zeros((2 * WINDOW - 1) ** 2, heads)
    self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
    place = torch.cartesian_prod(torch.arange(WINDOW), torch.arange(WINDOW))
    offset = place[:, None] - place + WINDOW - 1
    index = offset[..., 0] * (2 * WINDOW - 1) + offset[..., 1]
    self.register_buffer('relative_position_index', index)

  def split(self, x):
    """Query, key and value `[batch, heads, tokens, head_dim]` of `[batch, tokens, channels]`."""
    return self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

  def join(self, x):
    """The inverse, and the last linear map."""
    return self.proj(x.transpose(1, 2).flatten(2))

  def forward(self, patches, det, position, mask):
    """Maps `[batch, height, width, channels]` and `[batch, tokens, channels]`."""
    batch, height, width, channels = patches.shape
    x = functional.pad(patches, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
    if self.shift:
      x = x.roll((-self.shift, -self.shift), (1, 2))
    rows, columns = x.shape[1] // WINDOW, x.shape[2] // WINDOW
    x = x.view(batch, rows, WINDOW, columns, WINDOW, channels)
    x = x.transpose(2, 3).reshape(-1, WINDOW**2, channels)
    bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]
    if self.shift:
      bias = (bias + mask[:, None]).repeat(batch, 1, 1, 1)
    x = self.join(functional.scaled_dot_product_attention(*self.split(x), attn_mask=bias))
    x = x.view(batch, rows, columns, WINDOW, WINDOW, channels).transpose(2, 3)
    x = x.reshape(batch, rows * WINDOW, columns * WINDOW, channels)
    if self.shift:
      x = x.roll((self.shift, self.shift), (1, 2))
    x = x[:, :height, :width]

    query, key, value = self.split(det)
    if position is not None:
      _, patch_key, patch_value = self.split(patches.flatten(1, 2) + position)
      key, value = torch.cat([patch_key, key], dim=2), torch.cat([patch_value, value], dim=2)
    return x, self.join(functional.scaled_dot_product_attention(query, key, value))


class Block(nn.Module):
  """Attention and an MLP."""

  def __init__(self, channels, heads, shift, drop_rate):
    super().__init__()
    self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
    self.attn = Attention(channels, heads, shift)
    self.det_pos_linear = nn.Linear(CHANNELS, channels)
    self.mlp = nn.Module()
    self.mlp.fc1, self.mlp.fc2 = (
      nn.Linear(channels, 4 * channels),
      nn.Linear(4 * channels, channels),
    )
    self.drop_path = ops.StochasticDepth(drop_rate, 'row')

  def forward(self, tokens, size, det_position, position, mask):
    """Maps `[batch, patches + detection tokens, channels]`."""
    patches, det = self.norm1(tokens).split([size[0] * size[1], QUERIES], dim=1)
    det = det + self.det_pos_linear(det_position)
    patches, det = self.attn(patches.unflatten(1, size), det, position, mask)
    tokens = tokens + self.drop_path(torch.cat([patches.flatten(1, 2), det], dim=1))
    change = self.mlp.fc2(functional.gelu(self.mlp.fc1(self.norm2(tokens))))
    return tokens + self.drop_path(change)


class Merging(nn.Module):
  """Four neighbours become one."""

  def __init__(self, channels, merged):
    super().__init__()
    self.norm = nn.LayerNorm(4 * channels)
    self.reduction = nn.Linear(4 * channels, merged, bias=False)

  def forward(self, tokens, size):
    """Returns the merged tokens, and the size of their map."""
    patches, det = tokens.split([size[0] * size[1], QUERIES], dim=1)
    x = functional.pad(patches.unflatten(1, size), (0, 0, 0, size[1] % 2, 0, size[0] % 2))
    corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    x = torch.cat(corners, dim=-1)
    tokens = torch.cat([x.flatten(1, 2), det.tile(1, 1, 4)], dim=1)
    return self.reduction(self.norm(tokens)), (x.shape[1], x.shape[2])


class Stage(nn.Module):
  """Blocks with shifted windows in turn, and merging."""

  def __init__(self, channels, heads, drop_rates, merged, crosses):
    super().__init__()
    self.crosses = crosses
    self.blocks = nn.ModuleList(
      Block(channels, heads, WINDOW // 2 * (i % 2), rate) for i, rate in enumerate(drop_rates)
    )
    self.downsample = Merging(channels, merged)

  def forward(self, tokens, size, det_position):
    """Returns the tokens, merged ones, and the size of their map."""
    device = tokens.device
    mask = shift_mask(size, device)
    position = None
    if self.crosses:
      position = sine_position(*size, tokens.shape[-1], device, scaled=True)
    for block in self.blocks:
      tokens = block(tokens, size, det_position, position, mask)
    return tokens, *self.downsample(tokens, size)


def shift_mask(size, device):
  """Of shifted windows, -100 where two tokens come from different sides: `[windows, 49, 49]`."""
  padded = [-(-n // WINDOW) * WINDOW for n in size]
  regions = []
  for n in padded:
    at = torch.arange(n, device=device)
    regions.append((at >= n - WINDOW).long() + (at >= n - WINDOW // 2))
  region = 3 * regions[0][:, None] + regions[1]
  rows, columns = (n // WINDOW for n in padded)
  region = region.view(rows, WINDOW, columns, WINDOW).transpose(1, 2).flatten(2).flatten(0, 1)
  return -100.0 * (region[:, None] != region[:, :, None]).float()


class Backbone(nn.Module):
  """The Swin transformer, a look at the sketch before every stage."""

  def __init__(self, depths, heads, drop_rate):
    super().__init__()
    self.patch_embed = nn.Module()
    self.patch_embed.proj = nn.Conv2d(3, WIDTH, 4, 4)
    self.patch_embed.norm = nn.LayerNorm(WIDTH)
    tokens = torch.zeros(1, QUERIES, WIDTH), torch.zeros(1, QUERIES, CHANNELS)
    self.det_token, self.det_pos_embed = (
      nn.Parameter(nn.init.trunc_normal_(x, std=0.02)) for x in tokens
    )
    widths = [WIDTH * 2**i for i in range(4)]
    rates = torch.linspace(0, drop_rate, sum(depths)).split(depths)
    self.layers = nn.ModuleList(
      Stage(width, heads[i], rates[i].tolist(), 2 * width if i < 3 else CHANNELS, i == 3)
      for i, width in enumerate(widths)
    )
    self.attention = nn.ModuleList(map(Fusion, widths))
    self.attention_proj = nn.ModuleList(projection(CHANNELS, width) for width in widths)

  def forward(self, image, sketches):
    """Maps an image and `[batch, sketches, channels, 7, 7]` to four maps and detection tokens."""
    batch = image.shape[0]
    image = functional.pad(image, (0, -image.shape[3] % 4, 0, -image.shape[2] % 4))
    x = self.patch_embed.proj(image)
    size, x = (x.shape[2], x.shape[3]), self.patch_embed.norm(x.flatten(2).transpose(1, 2))
    det, outs = self.det_token.expand(batch, -1, -1), []
    for stage, look, project in zip(self.layers, self.attention, self.attention_proj, strict=True):
      guide = project(sketches.flatten(0, 1)).unflatten(0, (batch, -1)).mean(1)
      guide = guide.flatten(2).transpose(1, 2)
      places = (sine_position(*n, x.shape[-1], x.device) for n in (size, sketches.shape[-2:]))
      x = look(x, guide, *places)
      tokens, merged, next_size = stage(torch.cat([x, det], dim=1), size, self.det_pos_embed)
      x, queries = tokens.split([size[0] * size[1], QUERIES], dim=1)
      outs.append(x.transpose(1, 2).unflatten(2, size))
      size = next_size
      x, det = merged.split([size[0] * size[1], QUERIES], dim=1)
    return [*outs[1:], x.transpose(1, 2).unflatten(2, size)], queries


def projection(channels_in, channels):
  """A linear map of every cell, and a group norm."""
  return nn.Sequential(nn.Conv2d(channels_in, channels, 1), nn.GroupNorm(32, channels))


def inverse_sigmoid(x):
  """Logits, of no less than 1e-5."""
  x = x.clamp(0, 1)
  return (x.clamp(min=1e-5) / (1 - x).clamp(min=1e-5)).log()


class DeformableAttention(nn.Module):
  """Queries sample maps around boxes, as deformable DETR does it without its CUDA kernel."""

  def __init__(self):
    super().__init__()
    samples = HEADS * 4 * POINTS
    self.sampling_offsets = nn.Linear(CHANNELS, 2 * samples)
    self.attention_weights = nn.Linear(CHANNELS, samples)
    self.value_proj, self.output_proj = (nn.Linear(CHANNELS, CHANNELS) for _ in range(2))
    nn.init.zeros_(self.sampling_offsets.weight)
    nn.init.zeros_(self.attention_weights.weight)
    nn.init.zeros_(self.attention_weights.bias)
    angle = 2 * math.pi * torch.arange(HEADS) / HEADS
    way = torch.stack([angle.cos(), angle.sin()], dim=-1)
    way = way / way.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, POINTS + 1)[:, None]
    bias = way[:, None, None] * steps.expand(4, POINTS, 1)
    self.sampling_offsets.bias = nn.Parameter(bias.flatten())

  def forward(self, query, boxes, memory, sizes):
    """Maps queries `[batch, queries, channels]`."""
    batch = query.shape[0]
    value = self.value_proj(memory).unflatten(-1, (HEADS, -1))
    offsets = self.sampling_offsets(query).unflatten(-1, (HEADS, 4, POINTS, 2))
    weights = self.attention_weights(query).unflatten(-1, (HEADS, -1)).softmax(-1)
    boxes = boxes[:, :, None, None, None]
    at = boxes[..., :2] + offsets / POINTS * boxes[..., 2:] * 0.5
    grids = (2 * at - 1).transpose(1, 2).flatten(0, 1).unbind(2)
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in sizes], dim=-1)
    samples = [
      functional.grid_sample(x.unflatten(-1, size), grid, align_corners=False)
      for x, size, grid in zip(maps, sizes, grids, strict=True)
    ]
    weights = weights.transpose(1, 2).flatten(0, 1)[:, None]
    out = (torch.cat(samples, dim=-1) * weights).sum(-1)
    return self.output_proj(out.view(batch, CHANNELS, -1).transpose(1, 2))


class DecoderLayer(nn.Module):
  """Self-attention, deformable attention and a network, normed after each."""

  def __init__(self):
    super().__init__()
    self.self_attn = nn.MultiheadAttention(CHANNELS, HEADS, dropout=0.1, batch_first=True)
    self.cross_attn = DeformableAttention()
    self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(CHANNELS) for _ in range(3))
    self.linear1, self.linear2 = nn.Linear(CHANNELS, 1024), nn.Linear(1024, CHANNELS)
    self.dropout = nn.Dropout(0.1)

  def forward(self, x, position, boxes, memory, sizes):
    """Maps queries `[batch, queries, channels]`."""
    query = x + position
    x = self.norm2(x + self.dropout(self.self_attn(query, query, x, need_weights=False)[0]))
    x = self.norm1(x + self.dropout(self.cross_attn(x + position, boxes, memory, sizes)))
    change = self.linear2(self.dropout(functional.relu(self.linear1(x))))
    return self.norm3(x + self.dropout(change))


class BoxHead(nn.Module):
  """Three linear maps."""

  def __init__(self, size_bias):
    super().__init__()
    widths = [CHANNELS] * 3 + [4]
    self.layers = nn.ModuleList(map(nn.Linear, widths, widths[1:]))
    nn.init.zeros_(self.layers[2].weight)
    self.layers[2].bias = nn.Parameter(torch.tensor([0, 0, size_bias, size_bias]))

  def forward(self, x):
    """Maps `[..., channels]` to `[..., 4]`."""
    for layer in self.layers[:2]:
      x = functional.relu(layer(x))
    return self.layers[2](x)


class SketchLocalizer(nn.Module):
  """The detector."""

  def __init__(self, depths, heads, drop_rate):
    super().__init__()
    self.sketch_embedding = torchvision.models.resnet50()
    del self.sketch_embedding.avgpool, self.sketch_embedding.fc
    self.gp_norm, self.sketch_proj = nn.GroupNorm(32, 2048), nn.Conv2d(2048, CHANNELS, 1)
    self.backbone = Backbone(depths, heads, drop_rate)
    widths = (2 * WIDTH, 4 * WIDTH, 8 * WIDTH, CHANNELS)
    self.input_proj = nn.ModuleList(projection(width, CHANNELS) for width in widths)
    self.tgt_proj = projection(8 * WIDTH, CHANNELS)
    self.query_pos_proj = projection(CHANNELS, CHANNELS)
    self.transformer = nn.Module()
    self.transformer.reference_points = nn.Linear(CHANNELS, 2)
    self.transformer.decoder = nn.Module()
    self.transformer.decoder.layers = nn.ModuleList(DecoderLayer() for _ in range(LAYERS))
    self.bbox_embed = nn.ModuleList(BoxHead(0.0 if i else -2.0) for i in range(LEVELS))
    self.class_embed_v2 = nn.ModuleList(nn.Linear(2 * CHANNELS, 2) for _ in range(LEVELS))
    for layer in self.class_embed_v2:
      nn.init.constant_(layer.bias, -math.log(99))
    self.trans = nn.ModuleList(
      nn.Sequential(nn.ReLU(), nn.Linear(CHANNELS, CHANNELS)) for _ in range(LEVELS)
    )
    refined = [str(level) for level in range(FIRST_REFINED, LEVELS)]
    self.query_fusion = nn.ModuleDict({level: Fusion(CHANNELS) for level in refined})
    self.query_fusion_sketch = nn.ModuleDict({level: Fusion(CHANNELS) for level in refined[:-1]})

  def encode(self, sketches):
    """Maps `[batch, sketches, 3, 224, 224]` to `[batch, sketches, channels, 7, 7]`."""
    x = sketches.flatten(0, 1)
    for layer in self.sketch_embedding.children():
      x = layer(x)
    return self.sketch_proj(self.gp_norm(x)).unflatten(0, sketches.shape[:2])

  def decode(self, maps, queries, position):
    """States of the queries, the first points and the boxes at every level."""
    sizes = [x.shape[2:] for x in maps]
    memory = torch.cat([x.flatten(2) for x in maps], dim=2).transpose(1, 2)
    point = self.transformer.reference_points(position).sigmoid()
    point = point.expand(*queries.shape[:2], 2)
    logits = functional.pad(inverse_sigmoid(point), (0, 2))
    boxes = [(self.bbox_embed[0](queries) + logits).sigmoid().detach()]
    states = [queries]
    for layer, head in zip(self.transformer.decoder.layers, self.bbox_embed[1:], strict=True):
      states.append(layer(states[-1], position, boxes[-1], memory, sizes))
      boxes.append((head(states[-1]) + inverse_sigmoid(boxes[-1])).sigmoid().detach())
    return states, point, boxes

  def forward(self, image, sketches):
    """Logits `[batch, levels, queries, 2]` and boxes `[batch, levels, queries, 4]`."""
    batch = image.shape[0]
    sketches = self.encode(sketches)
    maps, queries = self.backbone(image, sketches)
    maps = [project(x) for project, x in zip(self.input_proj, maps, strict=True)]

    def of_queries(project, x):
      return project(x.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)

    position = of_queries(self.query_pos_proj, self.backbone.det_pos_embed)
    states, point, boxes = self.decode(maps, of_queries(self.tgt_proj, queries), position)

    whole = sketches.amax((3, 4)).mean(1)
    cells = sine_position(*sketches.shape[3:], CHANNELS, image.device)
    sketch = sketches.mean(1).flatten(2).transpose(1, 2)
    found = []
    for level, state in enumerate(states):
      name, refined = str(level), state
      if name in self.query_fusion:
        refined = self.query_fusion[name](state, sketch, position, cells)
      if name in self.query_fusion_sketch:
        sketch = self.query_fusion_sketch[name](sketch, refined, cells, position)
      searched = self.trans[level](whole)[:, None].expand(batch, QUERIES, CHANNELS)
      logits = self.class_embed_v2[level](torch.cat([searched, refined], dim=-1))
      reference = boxes[level - 1] if level else point
      change = functional.pad(inverse_sigmoid(reference), (0, 4 - reference.shape[-1]))
      found.append((logits, (self.bbox_embed[level](state) + change).sigmoid()))
    logits, boxes = zip(*found, strict=True)
    return torch.stack(logits, dim=1), torch.stack(boxes, dim=1)


def corners(boxes):
  """Of boxes by centre and size."""
  return ops.box_convert(boxes, 'cxcywh', 'xyxy')


@torch.no_grad()
def match(logits, boxes, truths):
  """The queries of an image's objects, and these in the same order."""
  score = logits.sigmoid()[:, 1:]
  found = 0.25 * (1 - score) ** 2 * -(score + 1e-8).log()
  missed = 0.75 * score**2 * -(1 - score + 1e-8).log()
  overlap = ops.generalized_box_iou(corners(boxes), corners(truths))
  cost = 2 * (found - missed) + 5 * torch.cdist(boxes, truths, p=1) - 2 * overlap
  return map(torch.as_tensor, optimize.linear_sum_assignment(cost.cpu()))


def losses(outputs, truths):
  """The losses of classes, boxes and overlaps, of all levels and weighted.

  Args:
    outputs: logits `[batch, levels, queries, 2]` and boxes `[batch, levels, queries, 4]`.
    truths: `[batch, objects, 4]`, centres and sizes as fractions of the image.
  """
  all_logits, all_boxes = outputs
  count = truths.shape[0] * truths.shape[1]
  class_loss = box_loss = overlap_loss = 0
  for logits, boxes in zip(all_logits.unbind(1), all_boxes.unbind(1), strict=True):
    wanted, found, own = torch.zeros_like(logits), [], []
    for i, objects in enumerate(truths):
      queries, which = match(logits[i], boxes[i], objects)
      wanted[i, queries, 1] = 1
      found.append(boxes[i, queries])
      own.append(objects[which])
    found, own = torch.cat(found), torch.cat(own)
    class_loss += ops.sigmoid_focal_loss(logits, wanted, reduction='sum') / count
    box_loss += (found - own).abs().sum() / count
    overlap = torch.diag(ops.generalized_box_iou(corners(found), corners(own)))
    overlap_loss += (1 - overlap).sum() / count
  return 2 * class_loss, 5 * box_loss, 2 * overlap_loss


def truths(batch):
  """So many boxes `[batch, objects, 4]` by centre and size, fractions of the image."""
  size = 0.05 + 0.3 * torch.rand(batch, OBJECTS, 2)
  return torch.cat([size / 2 + torch.rand(batch, OBJECTS, 2) * (1 - size), size], dim=-1)


def images(batch, size):
  """Photos, and one sketch of each."""
  sketches = torch.randn(batch, 1, 3, SKETCH_SIDE, SKETCH_SIDE)
  return torch.randn(batch, 3, *size), sketches


def problem(batch, device='cpu'):
  """Photos and sketches, and the loss of what is found."""
  objects = truths(batch).to(device)
  inputs = tuple(x.to(device) for x in images(batch, SIZE))
  return inputs, lambda outputs: sum(losses(outputs, objects))


def create_model(name):
  """Builds a variant."""
  return SketchLocalizer(*VARIANTS[name])


def main():
  import jax
  import jax.numpy as jnp
  import numpy as np

  import crossattn_jax
  from crossattn_jax.conversion import convert
  from crossattn_jax.heads.detection import types
  from crossattn_jax.tasks.sketch_localization import losses as sketch_losses

  torch.manual_seed(0)
  name, batch, size = 'sketch_localizer_tiny', 2, (160, 224)
  model = create_model(name).eval()
  print(f'{name}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters')
  with torch.no_grad():
    for parameter in model.parameters():
      parameter += 0.01 * torch.randn_like(parameter)  # Nothing is 0.
  state = {key: value.numpy().copy() for key, value in model.state_dict().items()}
  variables = convert.to_flax(name, state).variables
  photos, sketches = images(batch, size)
  objects = truths(batch)
  with torch.inference_mode():
    theirs = model(photos, sketches)
    their_losses = losses(theirs, objects)
  network = crossattn_jax.create_model(name)
  weights = {'class_loss': 2.0, 'box_loss': 5.0, 'giou_loss': 2.0}

  @jax.jit
  def ours(variables, photos, sketches, boxes):
    outputs, _ = network.apply(variables, photos, sketches)
    sizes = jnp.tile(jnp.array(size), (batch, 1))
    labels = jnp.zeros(boxes.shape[:2], int)
    found = sketch_losses.localizer_losses(outputs, types.Truths(boxes, labels), sizes, weights)
    return outputs, found

  boxes = corners(objects) * torch.tensor([size[1], size[0]] * 2)
  inputs = (photos.permute(0, 2, 3, 1), sketches.permute(0, 1, 3, 4, 2), boxes)
  outputs, found = ours(variables, *(jnp.asarray(x.numpy()) for x in inputs))
  for key, expected in zip(('logits', 'boxes'), theirs, strict=True):
    error = np.linalg.norm(outputs[key] - expected.numpy()) / np.linalg.norm(expected.numpy())
    print(f'{key} differ by {error:.1e}')
    if not error < 1e-4:
      raise SystemExit('not the same model')
  total = float(sum(loss for key, loss in found.items() if key.endswith('_loss')))
  error = abs(total / sum(their_losses).item() - 1)
  print(f'loss: {total:.6f}, differs by {error:.1e}')
  if not error < 1e-4:
    raise SystemExit('not the same loss')


if __name__ == '__main__':
  main()
