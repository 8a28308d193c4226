"""What takes the time of a block of a narrow model on a TPU: minutes in place of a model's hour.

  python -m benchmarks.tpu_blocks ['biformer*' ...] [--images 128] [--top 10]

Compiles a block as it is trained, with all gradients, for one chip of a v5e, in bfloat16. Prints
thousands of cycles of what XLA makes, per image too, and which share of them goes into copies and
changes of layout, depthwise convolutions, attention, MLP and norms; then the costliest operations.
What is fused counts where its result is from. Needs no TPU, but libtpu.
"""

import argparse
import collections
import fnmatch
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from crossattn_jax import parallel
from crossattn_jax.layers import activations
from crossattn_jax.models import biformer, mmvit
from crossattn_jax.training.compile import aot, hlo

TOPOLOGY = 'v5e:1x1'
_BIFORMER = biformer.Options(dtype=jnp.bfloat16)
_MMVIT = mmvit.Options(dtype=jnp.bfloat16)


class _Gelu(nn.Module):
  """One pass over memory."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    return activations.gelu(x)


def _routed(stage: int) -> nn.Module:
  return biformer.Block(_BIFORMER.stage_attentions(stage)[0], 0.1, _BIFORMER)


def _views(heads: int, strides: tuple[int, ...]) -> nn.Module:
  return mmvit.ParallelBlocks(heads, strides, 0.1, _MMVIT)


# Name -> block, shapes of one image's map or tokens, further arguments.
BLOCKS = {
  'biformer_small, stage 1': (_routed(0), (56, 56, 64), ()),
  'biformer_small, stage 2': (_routed(1), (28, 28, 128), ()),
  'biformer_small, stage 3': (_routed(2), (14, 14, 256), ()),
  'biformer_small, stage 4': (_routed(3), (7, 7, 512), ()),
  'mmvit_base, stage 1': (
    _views(1, (4, 2)),
    ((3137, 96), (784, 96)),
    (((56, 56), (28, 28)),),
  ),
  'mmvit_base, stage 3': (
    _views(4, (1, 1)),
    ((197, 384), (49, 384)),
    (((14, 14), (7, 7)),),
  ),
  'gelu': (_Gelu(), (3137, 384), ()),
}
# Words of an operation's name or source, the first that fits, and its kind.
KINDS = (
  (('copy', 'slice', 'pad', 'concat'), 'copies'),
  (('conv_general',), 'depthwise'),
  (('mlp',), 'MLP'),
  (('norm',), 'norms'),
  (('attention',), 'attention'),
)


def compiled(block: nn.Module, shapes: Any, images: int, arguments: Any) -> jax.stages.Compiled:
  """A block's result and all gradients, compiled for one chip."""
  shapes = shapes if isinstance(shapes[0], tuple) else (shapes,)
  maps = [jax.ShapeDtypeStruct((images, *shape), jnp.bfloat16) for shape in shapes]
  inputs = tuple(maps) if len(maps) > 1 else maps[0]
  rngs = {'drop_path': jax.random.key(0)}

  def init(x):
    return block.init({'params': jax.random.key(0), **rngs}, x, *arguments, train=True)

  def apply(variables, x):
    out = jax.tree.leaves(block.apply(variables, x, *arguments, train=True, rngs=rngs))
    return out[: len(maps)]  # Without the routing.

  def run(variables, x, cotangents):
    out, pull_back = jax.vjp(apply, variables, x)
    return out, pull_back(cotangents)

  _, devices = aot.topology_devices(TOPOLOGY)
  mesh = parallel.create_mesh(devices=devices)
  sharding = NamedSharding(mesh, PartitionSpec())
  variables = jax.eval_shape(init, inputs)
  placed = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    (variables, inputs, jax.eval_shape(apply, variables, inputs)),
  )
  with jax.set_mesh(mesh):
    return jax.jit(run).lower(*placed).compile()


def kind(operation: hlo.Operation) -> str:
  """What an operation is counted as."""
  for words, name in KINDS:
    where = operation.name.startswith(words) if name == 'copies' else None
    if where or (where is None and any(word in operation.source for word in words)):
      return name
  return 'other'


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('patterns', nargs='*', default=['*'], help='of names; all by default')
  parser.add_argument('--images', type=int, default=64, help='per chip')
  parser.add_argument('--top', type=int, default=0, help='operations to list of each block')
  arguments = parser.parse_args()
  names = [
    name for name in BLOCKS if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.patterns)
  ]
  if not names:
    parser.error(f'no block matches {arguments.patterns}; known: {"; ".join(BLOCKS)}')
  kinds = [name for _, name in KINDS] + ['other']
  print(f'| block | images | thousand cycles | per image | {" | ".join(kinds)} |')
  print('|---' * (4 + len(kinds)) + '|')
  for name in names:
    block, shapes, further = BLOCKS[name]
    program = compiled(block, shapes, arguments.images, further)
    costs = hlo.program_costs(program.as_text())
    shares = collections.Counter()
    estimated = {each: cycles for each, cycles in costs.operations.items() if not each.kernel}
    for operation, cycles in estimated.items():
      shares[kind(operation)] += cycles
    cells = [f'{shares[each] / costs.cycles:.0%}' for each in kinds]
    thousands = costs.cycles / 1e3
    print(
      f'| {name} | {arguments.images} | {thousands:,.0f} | {thousands / arguments.images:,.0f} '
      f'| {" | ".join(cells)} |',
      flush=True,
    )
    for operation, cycles in collections.Counter(estimated).most_common(arguments.top):
      print(
        f'  {cycles / costs.cycles:6.1%} {cycles / 1e3:8,.0f} {operation.name}: {operation.source}'
      )


if __name__ == '__main__':
  main()
