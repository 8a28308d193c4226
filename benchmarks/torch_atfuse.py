"""ATFuse as a plain PyTorch module, of the original's structure: the other side of `vs_torch`.

  python -m benchmarks.torch_atfuse

checks that it computes what the library computes, weights converted both ways, and prints the
parameters. What the original creates and never uses is left out. State-dict keys are those of
`crossattn_jax.parity.atfuse`.
"""

import functools

import torch
from torch import nn
from torch.nn import functional

VARIANTS = {'atfuse': {}}

# Height and width of the recipe's crops; the module takes multiples of 4.
IMAGE_SIZE = (128, 128)


def conv3x3(width_in, width):
  """A convolution that keeps the size."""
  return nn.Conv2d(width_in, width, 3, padding=1)


class Stem(nn.Module):
  """From levels to features at half the size."""

  def __init__(self, width):
    super().__init__()
    self.conv = nn.Conv2d(1, width, 3, 2, 1, bias=False)
    self.bn = nn.BatchNorm2d(width)

  def forward(self, x):
    """Maps `[batch, 1, height, width]`."""
    return functional.hardswish(self.bn(self.conv(x)))


class PatchConv(nn.Module):
  """Depthwise and pointwise convolution."""

  def __init__(self, width):
    super().__init__()
    self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
    self.pwconv = nn.Conv2d(width, width, 1, bias=False)
    self.bn = nn.BatchNorm2d(width)

  def forward(self, x):
    """Maps `[batch, channels, height, width]`."""
    return functional.hardswish(self.bn(self.pwconv(self.dwconv(x))))


class Attention(nn.Module):
  """Factorised attention, or what is left of the values without it."""

  def __init__(self, width, heads, discrepancy):
    super().__init__()
    self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
    self.heads, self.discrepancy = heads, discrepancy

  def forward(self, x, context):
    """Maps `[batch, tokens, channels]`."""
    query, key, value = (
      projection(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
      for projection, tokens in ((self.q, x), (self.k, context), (self.v, context))
    )
    out = query @ (key.softmax(dim=2).transpose(2, 3) @ value)
    if self.discrepancy:
      out = value - out
    return self.proj(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
  """An injection: attention and an MLP, each added to its input."""

  def __init__(self, width, heads, ratio, discrepancy=False):
    super().__init__()
    self.factoratt_crpe = Attention(width, heads, discrepancy)
    self.norm2 = nn.LayerNorm(width, eps=1e-6)
    hidden = ratio * width
    self.mlp = nn.ModuleDict({'fc1': nn.Linear(width, hidden), 'fc2': nn.Linear(hidden, width)})

  def forward(self, x, context):
    """Maps two `[batch, channels, height, width]`."""
    tokens, context = (features.flatten(2).transpose(1, 2) for features in (x, context))
    tokens = tokens + self.factoratt_crpe(tokens, context)
    hidden = functional.gelu(self.mlp['fc1'](self.norm2(tokens)))
    tokens = tokens + self.mlp['fc2'](hidden)
    return tokens.transpose(1, 2).reshape(x.shape)


class Upsampling(nn.Module):
  """Joins two maps and doubles their size."""

  def __init__(self, width):
    super().__init__()
    self.conv11_headSum, self.conv12 = conv3x3(width, width), conv3x3(width, 2 * width)
    self.conv11_tail = conv3x3(width // 2, width // 2)

  def forward(self, x, skip):
    """Maps `[batch, channels, height, width]`."""
    x = self.conv11_headSum(x + skip) + x
    return self.conv11_tail(functional.relu(functional.pixel_shuffle(self.conv12(x), 2)))


class ResidualHead(nn.Module):
  """Two convolutions; the first one's result is added."""

  def __init__(self, width_in, width):
    super().__init__()
    self.conv1, self.conv2 = conv3x3(width_in, width), conv3x3(width, width)

  def forward(self, x):
    """Maps `[batch, channels, height, width]`."""
    # The original, too, computes the first one twice.
    return self.conv2(functional.relu(self.conv1(x))) + self.conv1(x)


class ATFuse(nn.Module):
  """Fuses pairs of images of one band."""

  def __init__(self, width=64, heads=4, ratio=3):
    super().__init__()
    # The infrared image's first.
    self.stem1 = nn.ModuleList(Stem(width) for _ in range(2))
    embeddings = [nn.ModuleDict({'patch_conv': PatchConv(width)}) for _ in range(2)]
    self.patch_embed_stages1 = nn.ModuleDict({'patch_embeds': nn.ModuleList(embeddings)})
    self.mhca_stage = Block(width, heads, ratio, discrepancy=True)
    self.mhca_stage1_2, self.mhca_stage2 = (Block(width, heads, ratio) for _ in range(2))
    self.up_scale1_aggregate = Upsampling(width)
    self.head = ResidualHead(width // 2, width // 4)
    self.head_final = ResidualHead(width // 4, 1)

  def forward(self, visible, infrared):
    """Maps levels `[batch, 1, height, width]` of both images to those of the fused one."""
    infrared, visible = (
      embedding['patch_conv'](stem(image))
      for stem, embedding, image in zip(
        self.stem1, self.patch_embed_stages1['patch_embeds'], (infrared, visible), strict=True
      )
    )
    skip = self.mhca_stage(visible, infrared)
    x = self.mhca_stage2(self.mhca_stage1_2(skip, visible), infrared)
    return self.head_final(self.head(self.up_scale1_aggregate(x, skip))).clamp(0, 255)


def gradient_strength(image):
  """|Sobel in x| + |Sobel in y|."""
  across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=image.device)
  kernels = torch.stack([across, -across.T])[:, None]
  return functional.conv2d(image, kernels.to(image.dtype), padding=1).abs().sum(1, keepdim=True)


def salient(image, share=0.2):
  """Where intensity times gradient is among the largest of the image."""
  scores = image * gradient_strength(image)
  flat = scores.flatten(1)
  threshold = flat.kthvalue(round((1 - share) * flat.shape[1]), dim=1).values
  return scores >= threshold[:, None, None, None]


def fusion_loss(fused, visible, infrared):
  """The loss of gradients and of intensities, segment by segment."""
  with torch.no_grad():
    strongest = torch.maximum(gradient_strength(visible), gradient_strength(infrared))
    mask = salient(visible) | salient(infrared)
    largest = torch.maximum(visible, infrared)
  gradient = (gradient_strength(fused) - strongest).abs().mean()
  average = 0.5 * ((visible - fused).abs() + (infrared - fused).abs())
  intensity = torch.where(mask, (largest - fused).abs(), average).mean()
  return 20 * gradient + 20 * intensity


def problem(batch, device='cpu'):
  """Visible and infrared levels of so many pairs, and the loss of the images fused of them."""
  images = tuple(255 * torch.rand(batch, 1, *IMAGE_SIZE, device=device) for _ in range(2))
  return images, functools.partial(fusion_loss, visible=images[0], infrared=images[1])


def create_model(name):
  """Builds a variant."""
  return ATFuse(**VARIANTS[name])


def main():
  import jax
  import numpy as np

  import crossattn_jax
  from crossattn_jax.conversion import convert
  from crossattn_jax.tasks.image_fusion import losses as image_fusion_losses

  torch.manual_seed(0)
  model = create_model('atfuse').eval()
  print(f'atfuse: {sum(parameter.numel() for parameter in model.parameters()):,} parameters')
  state = {key: value.numpy() for key, value in model.state_dict().items()}
  variables = convert.to_flax('atfuse', state).variables
  back = convert.to_torch('atfuse', variables)
  model.load_state_dict({key: torch.from_numpy(value) for key, value in back.items()}, strict=False)
  images, objective = problem(2)
  with torch.inference_mode():
    theirs = model(*images)
    their_loss = objective(theirs).item()
  visible, infrared = (image.permute(0, 2, 3, 1).numpy() for image in images)
  ours, _ = jax.jit(crossattn_jax.create_model('atfuse').apply)(variables, visible, infrared)
  loss = float(image_fusion_losses.fusion_loss(ours, visible, infrared).total.mean())
  theirs = theirs.permute(0, 2, 3, 1).numpy()
  error = np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs)
  print(f'fused images differ by {error:.1e}, losses by {abs(loss / their_loss - 1):.1e}')
  if error > 1e-4 or abs(loss / their_loss - 1) > 1e-4:
    raise SystemExit('not the same model')


if __name__ == '__main__':
  main()
