"""Rules that several systems need: linear maps, convolutions and norms, with PyTorch's names."""

from crossattn_jax.conversion.layouts import Layout
from crossattn_jax.conversion.mapping import Rule, prefixed


def affine(
  torch: str,
  flax: str,
  layout: str | Layout = 'linear',
  bias_layout: str | Layout | None = None,
  spelling: str = '',
) -> list[Rule]:
  """The rules of a linear map or convolution; its bias is laid out like its weight by default."""
  return [
    Rule(f'{torch}.weight', f'{flax}/kernel', layout, spelling=spelling),
    Rule(f'{torch}.bias', f'{flax}/bias', bias_layout or layout, spelling=spelling),
  ]


def norm(
  torch: str, flax: str, names: tuple[str, str] = ('weight', 'bias'), spelling: str = ''
) -> list[Rule]:
  """The rules of a norm without statistics; `names` are those of its scale and bias in torch."""
  return [
    Rule(f'{torch}.{name}', f'{flax}/{leaf}', spelling=spelling)
    for name, leaf in zip(names, ('scale', 'bias'), strict=True)
  ]


def batch_norm(torch: str, flax: str, spelling: str = '') -> list[Rule]:
  """The rules of a batch norm; the counter of batches is dropped."""
  return [
    *norm(torch, flax, spelling=spelling),
    *(
      Rule(f'{torch}.running_{leaf}', f'{flax}/{leaf}', 'identity', 'batch_stats', spelling)
      for leaf in ('mean', 'var')
    ),
    Rule(f'{torch}.num_batches_tracked', None, spelling=spelling),
  ]


def conv_norm(conv: str, norm: str, flax: str) -> list[Rule]:
  """The rules of a `ConvNorm`: a convolution and its batch norm."""
  return [*affine(conv, f'{flax}/conv', 'conv'), *batch_norm(norm, f'{flax}/norm')]


BOTTLENECK = [
  *(rule for i in range(3) for rule in conv_norm(f'conv{i + 1}', f'bn{i + 1}', f'conv_{i}')),
  *conv_norm('downsample.0', 'downsample.1', 'shortcut'),
]


def resnet(stages: int = 4, deep_stem: bool = False) -> list[Rule]:
  """The rules of a ResNet without its classifier, with torchvision's names."""
  rules = conv_norm('conv1', 'bn1', 'stem/conv')
  if deep_stem:
    rules = [x for i in range(3) for x in conv_norm(f'conv{i + 1}', f'bn{i + 1}', f'stem/conv_{i}')]
  for s in range(stages):
    rules += prefixed(BOTTLENECK, f'layer{s + 1}.{{b}}.', f'stage_{s}/block_{{b}}/')
  return rules
