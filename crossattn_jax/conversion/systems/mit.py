"""MIT beside its original, jimmy15923/mit, and Minkowski Engine's networks."""

from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.rules import batch_norm

# Of a sparse convolution.
KERNEL = [Rule('kernel', 'kernel')]
# Of a `ResidualBlock`. Kernels are laid out alike: place in the window, channels, features.
RESIDUAL_BLOCK = [
  Rule('conv1.kernel', 'conv_0/kernel'),
  *batch_norm('norm1.bn', 'norm_0'),
  Rule('conv2.kernel', 'conv_1/kernel'),
  *batch_norm('norm2.bn', 'norm_1'),
  Rule('downsample.0.kernel', 'shortcut/kernel'),
  *batch_norm('downsample.1.bn', 'shortcut_norm'),
]
# Of a `BottleneckBlock`.
BOTTLENECK_BLOCK = [
  *RESIDUAL_BLOCK,
  Rule('conv3.kernel', 'conv_2/kernel'),
  *batch_norm('norm3.bn', 'norm_2'),
]


def minkunet_rules() -> list[Rule]:
  """Of a `MinkUNet`, with a classifier or without."""
  rules = [Rule('conv0p1s1.kernel', 'stem/kernel'), *batch_norm('bn0.bn', 'stem_norm')]
  for i in range(4):
    stride = 2**i
    rules += [
      Rule(f'conv{i + 1}p{stride}s2.kernel', f'down_{i}/kernel'),
      *batch_norm(f'bn{i + 1}.bn', f'down_norm_{i}'),
      Rule(f'convtr{i + 4}p{16 // stride}s2.kernel', f'up_{i}/kernel'),
      *batch_norm(f'bntr{i + 4}.bn', f'up_norm_{i}'),
    ]
  for i in range(8):
    rules += prefixed(RESIDUAL_BLOCK, f'block{i + 1}.{{j}}.', f'stage_{i}/block_{{j}}/')
  return [
    *rules,
    Rule('final.kernel', 'head/kernel'),
    Rule('final.bias', 'head/bias', 'unbatched'),
  ]
