"""MMCA as a plain PyTorch module, after the specification: the other side of `vs_torch`.

  python -m benchmarks.torch_mmca

checks that it computes what the library computes, weights converted both ways, and prints the
parameters. State-dict keys are those of `crossattn_jax.parity.mmca`.
"""

import torch
from torch import nn
from torch.nn import functional

VARIANTS = {'mmca': {}}

REGIONS, WORDS = 36, 32


class Attention(nn.Module):
  """Multi-head self-attention with a mask of the keys."""

  def __init__(self, width, heads, drop):
    super().__init__()
    self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
    self.heads, self.drop = heads, drop

  def forward(self, x, mask):
    """Maps `[batch, tokens, width]`."""
    q, k, v = (
      projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
      for projection in (self.q, self.k, self.v)
    )
    out = functional.scaled_dot_product_attention(
      q, k, v, mask[:, None, None], self.drop if self.training else 0.0
    )
    return self.o(out.transpose(1, 2).flatten(2))


class Unit(nn.Module):
  """Post-norm transformer unit."""

  def __init__(self, width, heads, hidden, drop):
    super().__init__()
    self.attn = Attention(width, heads, drop)
    self.ln1, self.ln2 = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))
    self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
    self.drop = nn.Dropout(drop)

  def forward(self, x, mask):
    """Maps `[batch, tokens, width]`."""
    x = self.ln1(self.drop(self.attn(x, mask)) + x)
    return self.ln2(self.drop(self.fc2(functional.gelu(self.fc1(x)))) + x)


class PhraseCNN(nn.Module):
  """Convolutions of words, maxima over the phrases within the sentence."""

  def __init__(self, width_in, width, channels, drop):
    super().__init__()
    self.convs = nn.ModuleList(nn.Conv1d(width_in, channels, size) for size in (1, 2, 3))
    self.fc, self.drop = nn.Linear(3 * channels, width), nn.Dropout(drop)

  def forward(self, x, mask):
    """Maps `[batch, words, width_in]` to `[batch, width]`."""
    count, maxima = mask.sum(1, keepdim=True), []
    for size, conv in enumerate(self.convs, 1):
      phrases = functional.relu(conv(x.transpose(1, 2)))
      start = torch.arange(phrases.shape[-1], device=x.device)
      competes = (start + size <= count) | (start == 0)
      maxima.append(phrases.masked_fill(~competes[:, None], -torch.inf).amax(-1))
    return functional.normalize(self.fc(self.drop(torch.cat(maxima, dim=1))), dim=-1)


class MMCA(nn.Module):
  """Scores all pairs of the images and the sentences of a batch, every pair as a row of it."""

  def __init__(self, width=256, heads=16, hidden=2048, channels=512, drop=0.1):
    super().__init__()
    self.img_fc, self.txt_fc = nn.Linear(2048, width), nn.Linear(768, width)
    self.img_self = Unit(width, heads, hidden, drop)
    self.txt_cnn = PhraseCNN(768, width, channels, drop)
    self.cross = nn.ModuleList([Unit(width, heads, hidden, drop)])
    self.cross_cnn = PhraseCNN(width, width, channels, drop)

  def forward(self, regions, words, mask):
    """Maps `[images, 36, 2048]`, `[texts, 32, 768]` and a bool `[texts, 32]` to scores."""
    images, texts = len(regions), len(words)
    regions_mask = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
    r, e = self.img_fc(regions), self.txt_fc(words)
    i0 = functional.normalize(self.img_self(r, regions_mask).mean(1), dim=-1)
    c0 = self.txt_cnn(words, mask)
    r, regions_mask = (x.repeat_interleave(texts, 0) for x in (r, regions_mask))
    e, mask = e.repeat(images, 1, 1), mask.repeat(images, 1)
    y = torch.cat([r, e], dim=1)
    for unit in self.cross:
      y = unit(y, torch.cat([regions_mask, mask], dim=1))
    r, e = y.split([r.shape[1], e.shape[1]], dim=1)
    i1 = functional.normalize(r.mean(1), dim=-1)
    return i0 @ c0.T + (i1 * self.cross_cnn(e, mask)).sum(-1).view(images, texts)


def triplet_loss(scores, margin=0.2):
  """The loss with the hardest negatives of either kind, summed."""
  matching = scores.diagonal()
  itself = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
  texts = (margin + scores - matching[:, None]).clamp(min=0).masked_fill(itself, 0)
  images = (margin + scores - matching).clamp(min=0).masked_fill(itself, 0)
  return texts.amax(1).sum() + images.amax(0).sum()


def problem(batch, device='cpu'):
  """Regions, words and mask of so many pairs, and their loss; sentences of 8 words and more."""
  length = torch.randint(8, WORDS + 1, (batch, 1))
  mask = torch.arange(WORDS) < length
  drawn = torch.randn(batch, REGIONS, 2048).abs(), torch.randn(batch, WORDS, 768), mask
  return tuple(x.to(device) for x in drawn), triplet_loss


def create_model(name):
  """Builds a variant."""
  return MMCA(**VARIANTS[name])


def main():
  import jax
  import numpy as np

  import crossattn_jax
  from crossattn_jax.conversion import convert
  from crossattn_jax.tasks.retrieval import losses as retrieval_losses

  torch.manual_seed(0)
  model = create_model('mmca').eval()
  print(f'mmca: {sum(parameter.numel() for parameter in model.parameters()):,} parameters')
  state = {key: value.numpy() for key, value in model.state_dict().items()}
  variables = convert.to_flax('mmca', state).variables
  back = convert.to_torch('mmca', variables)
  model.load_state_dict({key: torch.from_numpy(value) for key, value in back.items()})
  (regions, words, mask), objective = problem(4)
  with torch.inference_mode():
    theirs = model(regions, words, mask)
    their_loss = objective(theirs).item()
  given = {'regions': regions.numpy(), 'words': words.numpy(), 'word_mask': mask.numpy()}
  ours, _ = jax.jit(crossattn_jax.create_model('mmca').apply)(variables, given)
  loss = float(retrieval_losses.triplet_loss(ours).sum())
  error = np.linalg.norm(np.asarray(ours) - theirs.numpy()) / np.linalg.norm(theirs.numpy())
  print(f'scores differ by {error:.1e}, losses by {abs(loss / their_loss - 1):.1e}')
  if error > 1e-4:
    raise SystemExit('not the same model')


if __name__ == '__main__':
  main()
