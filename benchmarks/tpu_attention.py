"""Static estimates of attention layers on a TPU, each alone: seconds in place of a model's minutes.

  python -m benchmarks.tpu_attention ['biformer*' ...]

Compiles a layer with its projections and all gradients for v5e:2x2, the batch over four chips, in
bfloat16. Prints thousands of cycles of what XLA makes (the kernels' own are in
`benchmarks.kernels`), the least time of its kernels, and its temporaries. Needs no TPU, but libtpu.
"""

import argparse
from collections.abc import Callable
import fnmatch
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from crossattn_jax import parallel
from crossattn_jax.attention import bi_level_routing, long_short_distance, pooled, self_attention
from crossattn_jax.training.compile import aot, hlo

TOPOLOGY = 'v5e:2x2'


def _short_distance(heads: int) -> nn.Module:
  return long_short_distance.LongShortDistanceAttention(heads, dtype=jnp.bfloat16)


def _long_distance(heads: int, interval: int, group: int = 7) -> nn.Module:
  return long_short_distance.LongShortDistanceAttention(
    heads, 'long', group, interval, dtype=jnp.bfloat16
  )


def _routed(heads: int, top_k: int) -> nn.Module:
  return bi_level_routing.BiLevelRoutingAttention(heads, top_k=top_k, dtype=jnp.bfloat16)


def _self(heads: int) -> nn.Module:
  return self_attention.SelfAttention(heads, dtype=jnp.bfloat16)


def _pooled(heads: int, channels: int, stride: int, query_stride: int | None = None) -> nn.Module:
  return pooled.PooledAttention(heads, stride, query_stride, channels, dtype=jnp.bfloat16)


# Name -> layer, shape of one image's tokens or map, images per chip, further arguments.
LAYERS = {
  'biformer, stage 1': (_routed(2, 1), (56, 56, 64), 64, {}),
  'biformer, stage 2': (_routed(4, 4), (28, 28, 128), 64, {}),
  'biformer, stage 3': (_routed(8, 16), (14, 14, 256), 64, {}),
  'crossformer, stage 1, short': (_short_distance(3), (56, 56, 96), 64, {}),
  'crossformer, stage 1, long': (_long_distance(3, 8), (56, 56, 96), 64, {}),
  'crossformer, stage 2, short': (_short_distance(6), (28, 28, 192), 64, {}),
  'crossformer++, stage 1, long, padded': (_long_distance(2, 4, 4), (56, 56, 64), 64, {}),
  'crossformer, stage 3, short': (_short_distance(12), (14, 14, 384), 64, {}),
  'crossvit, 401 tokens': (_self(4), (401, 128), 64, {}),
  'crossvit, 197 tokens': (_self(4), (197, 256), 64, {}),
  'crossvit, 1157 tokens': (_self(7), (1157, 224), 16, {}),
  'mmvit, stage 1': (_pooled(1, 96, 4), (3137, 96), 64, {'grid': (56, 56)}),
  'mmvit, to stage 2': (_pooled(2, 192, 4, 2), (3137, 96), 64, {'grid': (56, 56)}),
  'mmvit, to stage 3': (_pooled(4, 384, 2, 2), (785, 192), 64, {'grid': (28, 28)}),
}


def compiled(
  layer: nn.Module, shape: tuple[int, ...], images: int, arguments: dict[str, Any]
) -> jax.stages.Compiled:
  """A layer's result and all gradients, compiled for four chips."""
  inputs = jax.ShapeDtypeStruct((1, *shape), jnp.bfloat16)
  init = functools.partial(layer.init, **arguments)
  variables = jax.eval_shape(init, jax.random.key(0), inputs)
  apply = _first(functools.partial(layer.apply, **arguments))

  def run(variables, x, cotangent):
    out, pull_back = jax.vjp(apply, variables, x)
    return out, pull_back(cotangent)

  _, devices = aot.topology_devices(TOPOLOGY)
  mesh = parallel.create_mesh(devices=devices)
  batch = len(devices) * images

  def placed(x: jax.ShapeDtypeStruct, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

  def batched(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return placed(x.update(shape=(batch, *x.shape[1:])), PartitionSpec('data'))

  out = jax.eval_shape(apply, variables, inputs)
  variables = jax.tree.map(lambda x: placed(x, PartitionSpec()), variables)
  with jax.set_mesh(mesh):
    return jax.jit(run).lower(variables, batched(inputs), batched(out)).compile()


def _first(function: Callable[..., Any]) -> Callable[..., jax.Array]:
  return lambda *args: jax.tree.leaves(function(*args))[0]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('patterns', nargs='*', default=['*'], help='of names; all by default')
  parser.add_argument('--images', type=int, help='per chip, in place of those of the table')
  arguments = parser.parse_args()
  names = [
    name for name in LAYERS if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.patterns)
  ]
  if not names:
    parser.error(f'no layer matches {arguments.patterns}; known: {"; ".join(LAYERS)}')
  chip, _ = aot.topology_devices(TOPOLOGY)
  print('| layer | shape | images a chip | XLA, thousands of cycles | kernels, ms | MiB |')
  print('|---|---|---|---|---|---|')
  for name in names:
    layer, shape, images, keywords = LAYERS[name]
    images = arguments.images or images
    program = compiled(layer, shape, images, keywords)
    costs = hlo.program_costs(program.as_text())
    kernels = sum(
      times * max(kernel.flops / chip.peak_flops, kernel.bytes / chip.hbm_bandwidth)
      for kernel, times in costs.kernels.items()
    )
    temporaries = program.memory_analysis().temp_size_in_bytes
    print(
      f'| {name} | {" x ".join(map(str, shape))} | {images} | {costs.cycles / 1e3:,.0f} '
      f'| {kernels * 1e3:.2f} | {temporaries / 2**20:.0f} |',
      flush=True,
    )


if __name__ == '__main__':
  main()
