"""Cases of sparse convolutions and of networks of them."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from crossattn_jax.conversion.mapping import Rule
from crossattn_jax.conversion.systems import mit as rules
from crossattn_jax.geometry import points
from crossattn_jax.layers import linear
from crossattn_jax.layers import sparse_convolution as sparse
from crossattn_jax.models import minkunet
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.parity.systems.mit import scenes as scenes_lib

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

# Any scene gives the parameters their shapes.
_EXAMPLE = {'coords': np.zeros((1, 4), np.int32)}

# Of one layer.
_LAYER = [*rules.KERNEL, Rule('bias', 'bias', 'unbatched')]


def _is_training(manifest: Manifest) -> bool:
  return manifest['mode'] == 'train'


def _scenes_adapter(
  manifest: Manifest,
  module: nn.Module,
  call: Callable[[nn.Module, scenes_lib.Scenes, Arrays], Arrays],
  num_levels: int,
  **options: Any,
) -> adapters.Adapter:
  """Of a module whose call takes scenes, and a scene more of all inputs that are no cells."""

  def on_scenes(module: nn.Module, inputs: Arrays) -> Arrays:
    scenes = scenes_lib.Scenes(inputs['coords'], num_levels)
    given = {name: x for name, x in inputs.items() if name != 'coords'}
    if module.is_initializing():  # With one example cell, whatever the inputs are.
      given = {name: x[:1] for name, x in given.items()}
    coarser = {f'coords_s{2**i}': jnp.asarray(scenes.coords(i)) for i in range(1, num_levels)}
    return call(module, scenes, given) | coarser

  return adapters.module_adapter(manifest, module, call=on_scenes, static=_EXAMPLE, **options)


@adapters.register_adapter('mit', 'sparse_conv')
def _convolution(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('op', only=('MinkowskiConvolution',))
  c.ignore('stride', only=(1,))
  c.ignore('in_channels')
  size, use_bias = c['kernel_size'], c.get('bias', False)
  if size == 1:  # A product, whose kernel is a matrix.
    return _scenes_adapter(
      manifest,
      linear.Dense(c['out_channels'], use_bias=use_bias),
      lambda product, scenes, inputs: {'y': product(inputs['feats'])},
      1,
      rules=_LAYER,
    )

  if size % 2 == 0:  # Windows start at the cell, and are the last corner of symmetric ones.
    c.ignore('bias', only=(False,))

    def from_corners(product: nn.Module, scenes: scenes_lib.Scenes, inputs: Arrays) -> Arrays:
      around = points.neighbours(scenes.levels[0].cells, 2 * size - 1)
      around = around.reshape(*(2 * size - 1,) * 3, -1)[size - 1 :, size - 1 :, size - 1 :]
      feats = jnp.pad(inputs['feats'], ((0, 1), (0, 0)))  # Absent cells are row -1.
      windows = feats[around.reshape(size**3, -1).T]
      return {'y': product(windows.reshape(1, len(windows), -1))[0]}

    product = sparse.WindowProjection(c['out_channels'], size**3)
    return _scenes_adapter(manifest, product, from_corners, 1, rules=_LAYER)

  def call(convolution: nn.Module, scenes: scenes_lib.Scenes, inputs: Arrays) -> Arrays:
    level = sparse.Level(points.neighbours(scenes.levels[0].cells, size)[None])
    return {'y': convolution(inputs['feats'][None], level)[0]}

  return _scenes_adapter(
    manifest, sparse.SparseConv(c['out_channels'], use_bias), call, 1, rules=_LAYER
  )


def _check_strided(c: Any, op: str) -> None:
  c.ignore('op', only=(op,))
  c.ignore('kernel_size', 'stride', only=(2,))
  c.ignore('in_channels')


@adapters.register_adapter('mit', 'sparse_down')
def _downsampling(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  _check_strided(c, 'MinkowskiConvolution')

  def call(down: nn.Module, scenes: scenes_lib.Scenes, inputs: Arrays) -> Arrays:
    return {'y': down(inputs['feats'][None], rules.level_tables(scenes.levels[0]))[0]}

  module = sparse.SparseDownsampling(c['out_channels'], c.get('bias', False))
  return _scenes_adapter(manifest, module, call, 2, rules=_LAYER)


@adapters.register_adapter('mit', 'sparse_up')
def _upsampling(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  _check_strided(c, 'MinkowskiConvolutionTranspose')

  def call(up: nn.Module, scenes: scenes_lib.Scenes, inputs: Arrays) -> Arrays:
    return {'y': up(inputs['coarse_feats'][None], rules.level_tables(scenes.levels[0]))[0]}

  module = sparse.SparseUpsampling(c['out_channels'], c.get('bias', False))
  return _scenes_adapter(manifest, module, call, 2, rules=_LAYER)


def _block(kind: type[nn.Module], expansion: int, block_rules: Any) -> Any:
  def make(manifest: Manifest) -> adapters.Adapter:
    c = manifest['constructor']
    c.ignore('op')
    projects = c['inplanes'] != expansion * c['planes']
    c.ignore('downsample', only=('1x1x1 conv + BN',) if projects else (None, False))

    def call(block: nn.Module, scenes: scenes_lib.Scenes, inputs: Arrays) -> Arrays:
      return {
        'y': block(
          inputs['feats'][None], rules.level_tables(scenes.levels[0]), _is_training(manifest)
        )[0]
      }

    return _scenes_adapter(manifest, kind(c['planes']), call, 1, rules=block_rules)

  return make


adapters.register_adapter('mit', 'basic_block')(
  _block(minkunet.ResidualBlock, 1, rules.RESIDUAL_BLOCK)
)
adapters.register_adapter('mit', 'bottleneck')(
  _block(minkunet.BottleneckBlock, 4, rules.BOTTLENECK_BLOCK)
)


@adapters.register_adapter('mit', 'MinkUNet')
def _minkunet(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('D', only=(3,))
  variant = c['arch'].removeprefix('MinkUNet').lower()
  if variant not in minkunet.VARIANTS:
    known = ', '.join(f'MinkUNet{name.upper()}' for name in minkunet.VARIANTS)
    raise arguments.ArgumentError(f'arch is {c["arch"]!r}; known are {known}')
  depths, widths = minkunet.VARIANTS[variant]
  ignored = c['ignore_label']
  module = minkunet.MinkUNet(widths, depths, c['out_channels'], num_channels=c['in_channels'])

  def call(network: nn.Module, scenes: scenes_lib.Scenes, inputs: Arrays) -> Arrays:
    arrays = rules.scene_inputs(scenes.levels, inputs['feats'])
    logits = network(*arrays, _is_training(manifest))[0][0]
    counts = inputs['target'] != ignored
    target = jnp.where(counts, inputs['target'], 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    return {'logits': logits, 'loss': losses.mean(where=counts)}

  paths = {'bn0': 'stem_norm', **{f'block{i + 1}': f'stage_{i}' for i in range(8)}}
  return _scenes_adapter(
    manifest,
    module,
    call,
    5,
    rules=rules.minkunet_rules(),
    taps={name: (path, lambda x: x[0]) for name, path in paths.items()},
  )
