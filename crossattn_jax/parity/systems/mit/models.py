"""Cases of MIT, and of what it is compared with."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.conversion.layouts import channels_first
from crossattn_jax.conversion.systems import mit as rules
from crossattn_jax.layers import pooling
from crossattn_jax.models import minkunet, mit
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.parity.systems.mit import attention
from crossattn_jax.parity.systems.mit.scenes import PaddedScenes
from crossattn_jax.tasks.scene_labels import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]
# What a tap is in the original: of what our module returned, the cells, and how many supervoxels
# the first scene has. Modules that run scene by scene there were recorded for the first one.
Trim = Callable[[Any, PaddedScenes, int], jax.Array]

_IMAGE_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def _points_options(c: arguments.Arguments, manifest: Manifest) -> dict[str, Any]:
  name = c['arch_3d'].removeprefix('MinkUNet').lower()
  if name not in minkunet.VARIANTS:
    raise arguments.ArgumentError(f'arch_3d is {c["arch_3d"]!r}, which no MinkUNet is called')
  depths, widths = minkunet.VARIANTS[name]
  return {
    'points_depths': depths,
    'points_widths': widths,
    'num_channels': manifest['inputs']['feats']['shape'][1],
  }


def _image_options(c: arguments.Arguments) -> dict[str, Any]:
  if c['layers_2d'] not in _IMAGE_DEPTHS:
    raise arguments.ArgumentError(f'layers_2d is {c["layers_2d"]}; known are 50 and 101')
  return {'image_depths': _IMAGE_DEPTHS[c['layers_2d']]}


def _points_taps(prefix: str) -> dict[str, tuple[str, Trim]]:
  """The parts of a `MinkUNet`, whose rows the original has without padding."""
  paths = {'bn0': ('stem_norm', 0)}
  for i in range(4):
    paths |= {f'bn{i + 1}': (f'down_norm_{i}', i + 1), f'bntr{i + 4}': (f'up_norm_{i}', 3 - i)}
  for i in range(8):
    paths[f'block{i + 1}'] = (f'stage_{i}', i + 1 if i < 4 else 7 - i)
  return {
    prefix + name: (f'points/{path}', lambda x, scenes, _, level=level: scenes.join(x, level))
    for name, (path, level) in paths.items()
  }


def _scenes_adapter(
  manifest: Manifest,
  module: nn.Module,
  call: Callable[[nn.Module, PaddedScenes, Arrays], Arrays],
  taps: Mapping[str, tuple[str, Trim]],
  **options: Any,
) -> adapters.Adapter:
  """Of a model whose call takes scenes, and all inputs."""
  names = [name for name in manifest['inputs'] if name.startswith(('supervoxel', 'label'))]
  # One scene of one cell gives the parameters their shapes.
  first = {name: np.zeros(1, np.int32) for name in names if name.endswith('_0')}
  example = {'coords': np.zeros((1, 4), np.int32), **first}

  def on_scenes(module: nn.Module, inputs: Arrays) -> Arrays:
    if module.is_initializing():
      inputs = {name: x if name in example else x[:1] for name, x in inputs.items()}
    scenes = PaddedScenes(inputs['coords'])
    coarser = {f'coords_s{2**i}': jnp.asarray(scenes.coords(i)) for i in range(1, 5)}
    return call(module, scenes, inputs) | coarser

  adapter = adapters.module_adapter(
    manifest,
    module,
    call=on_scenes,
    taps={name: path for name, (path, _) in taps.items()},
    static=example,
    **options,
  )

  def run(variables: Any, inputs: Arrays) -> tuple[Arrays, Arrays]:
    outputs, found = adapter.run(variables, inputs)
    scenes = PaddedScenes(inputs['coords'])
    count = inputs['supervoxel_0'].max() + 1 if 'supervoxel_0' in inputs else 0
    return outputs, {name: taps[name][1](x, scenes, count) for name, x in found.items()}

  return dataclasses.replace(adapter, run=run, static=frozenset(['coords', *names]))


def _points_inputs(scenes: PaddedScenes, inputs: Arrays) -> tuple[Any, ...]:
  """What models take of points."""
  supervoxels = (None, None, None)
  if 'supervoxel_0' in inputs:
    supervoxels = scenes.supervoxels(_of_scenes('supervoxel', scenes, inputs))
  return scenes.windows(inputs['feats']), scenes.tables(), *supervoxels


def _of_scenes(kind: str, scenes: PaddedScenes, inputs: Arrays) -> list[np.ndarray]:
  """The inputs 'KIND_0', 'KIND_1', ..."""
  return [inputs[f'{kind}_{scene}'] for scene in range(len(scenes.rows))]


def _cams(cams: jax.Array, scenes: PaddedScenes, inputs: Arrays) -> Arrays:
  """Those of each scene's supervoxels, or cells, without padding."""
  counts = [len(rows) for rows in scenes.rows]
  if 'supervoxel_0' in inputs:
    counts = [ids.max() + 1 for ids in _of_scenes('supervoxel', scenes, inputs)]
  pairs = zip(cams, counts, strict=True)
  return {f'cams_{scene}': own[:count] for scene, (own, count) in enumerate(pairs)}


def _scalar(values: jax.Array) -> jax.Array:
  """A mean over scenes, as PyTorch's scalars were recorded."""
  return values.mean()[None]


def _tags(scenes: PaddedScenes, inputs: Arrays, num_classes: int, ignored: int) -> np.ndarray:
  """Which classes each scene's labels have, `[batch, classes]`."""
  labels = _of_scenes('label', scenes, inputs)
  present = [np.setdiff1d(own, ignored)[:, None] == np.arange(num_classes) for own in labels]
  return np.stack([own.any(axis=0) for own in present])


def _mit(manifest: Manifest) -> adapters.Adapter:
  """The model, and where there are labels its loss."""
  c = manifest['constructor']
  classes, ignored = c['classes'], c['ignore_label']
  options = _points_options(c, manifest) | _image_options(c)
  c.ignore('embed_dim', only=(options['points_widths'][-1],))
  weights = {'consistency': c['alpha'], 'token_similarity': float(c['is_pair_loss'])}
  module = mit.MIT(
    num_classes=classes,
    num_views=c['viewNum'],
    encoder_depth=c['depth'],
    cams_of='encoded' if c['cam_on_attn'] else 'pooled',
    pool=attention.pool_of(c['pool']),
    remat=True,  # In float64 images of the official size take more memory than there is.
    **attention.encoder_options(c),
    **options,
  )

  def call(module: mit.MIT, scenes: PaddedScenes, inputs: Arrays) -> Arrays:
    images, train = rules.original_images(inputs['images']), manifest['mode'] == 'train'
    outputs, features = module(*_points_inputs(scenes, inputs), images, train)
    results = rules.original_outputs(outputs) | _cams(outputs['cams'], scenes, inputs)
    results['token_sim_loss'] *= weights['token_similarity']
    results['view_cams_last_scene'] = results.pop('view_cams')[-1:]
    blocks = [features[f'attention_{i}'] for i in range(module.decoder_depth)]
    for i, block in enumerate(attention.class_blocks(blocks, classes)):
      results |= {f'cls_logits_{scene}_{i}': own for scene, own in enumerate(block)}
    if 'label_0' in inputs:
      parts = losses.scene_losses(outputs, _tags(scenes, inputs, classes, ignored))
      parts = {name: _scalar(x) for name, x in parts.items()}
      results['loss'] = losses.total(parts, dict.fromkeys(parts, 1.0) | weights)
    return results

  return _scenes_adapter(
    manifest, module, call, _mit_taps(manifest, module), rules=rules.mit_rules()
  )


adapters.register_adapter('mit', 'MIT+loss')(_mit)


def _mit_taps(manifest: Manifest, module: mit.MIT) -> dict[str, tuple[str, Trim]]:
  """What each part of the model returns."""
  seen = manifest['shapes'].get('tap/net2d.resnet.stem', [0])[0]  # The first images.
  classes = module.num_classes
  whole = lambda x, scenes, count: x
  images = lambda x, scenes, count: channels_first(x[:seen])
  voxels = lambda x, scenes, count: x[:1, : classes + count]
  taps = {
    'net2d': ('images', lambda x, scenes, count: x.reshape(-1, x.shape[-1])),
    'net2d.resnet.stem': (
      'images/network/stem',
      lambda x, scenes, count: images(pooling.max_pool(x, 3, 2, padding=1), scenes, count),
    ),
    'view_encoder': ('view_encoder', whole),
    'voxel_encoder': ('voxel_encoder', voxels),
    'pos_emb': ('positions', lambda x, scenes, count: x[0, :count]),
    'interlance_decoder': ('decoder', lambda x, scenes, count: x[0][:1]),
    **_points_taps('net3d.'),
  }
  for s in range(len(module.image_depths)):
    taps[f'net2d.resnet.stages.{s}'] = (f'images/network/stage_{s}', images)
  for i in range(module.decoder_depth):
    trim = voxels if i % 2 else lambda x, scenes, count: x[:1]
    taps[f'interlance_decoder.blocks.{i}'] = (
      f'decoder/block_{i}',
      lambda x, *about, trim=trim: trim(x[0], *about),
    )
  return taps


def _points_only(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('is_cls', only=(False,))
  c.ignore('overseg_maxpool', only=(False,))
  pools, smooths, depth = c['overseg_pool'], c['feat_smooth'], c['depth']
  module = mit.MITPoints(
    num_classes=c['classes'],
    encoder_depth=depth if c['encoder'] else 0,
    position_embedding=c['pos_emb'],
    pool=attention.pool_of(c['pool']),
    **attention.encoder_options(c),
    **_points_options(c, manifest),
  )

  def call(module: mit.MITPoints, scenes: PaddedScenes, inputs: Arrays) -> Arrays:
    if not pools:
      inputs = {name: x for name, x in inputs.items() if not name.startswith('supervoxel')}
    train = manifest['mode'] == 'train'
    outputs, _ = module(*_points_inputs(scenes, inputs), None, train)
    results = {
      'cls_logits': outputs['voxel_cam_probabilities'],
      'smooth_loss': _scalar(outputs['consistency']) if pools and smooths else jnp.zeros(1),
      **_cams(outputs['cams'], scenes, inputs),
    }
    if 'voxel_class_logits' in outputs:
      results['cls_mct_logits'] = outputs['voxel_class_logits']
    return results

  classes = module.num_classes
  taps = {
    'head': ('head_voxels', lambda x, scenes, count: channels_first(x[:1, : count or None])),
    'encoder': ('encoder', lambda x, scenes, count: x[:1, : classes + count]),
    **_points_taps(''),
  }
  return _scenes_adapter(manifest, module, call, taps, rules=rules.mit_points_rules())


def _images_only(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  depth = c['depth']
  module = mit.MITImages(
    num_classes=c['classes'],
    width=c['embed_dim'],
    encoder_depth=depth if c['use_attn'] else 0,
    **attention.encoder_options(c),
    **_image_options(c),
  )

  def call(module: mit.MITImages, inputs: Arrays) -> Arrays:
    # The original reads positions of views from memory that has them axis by axis.
    poses = jnp.swapaxes(inputs['poses'], 1, 2).reshape(inputs['poses'].shape)
    train = manifest['mode'] == 'train'
    outputs, _ = module(*(None,) * 5, rules.original_images(inputs['images']), train, poses)
    results = {
      'scene_logits': outputs['view_cam_logits'],
      'cams': jnp.swapaxes(outputs['view_cams'], 1, 2),
    }
    if 'view_class_logits' in outputs:
      results['scene_mct_logits'] = outputs['view_class_logits']
    return results

  taps = {
    'fc': ('images', lambda x: x.reshape(-1, x.shape[-1])),
    'encoder': 'encoder',
    **{
      f'resnet.stages.{s}': (f'images/network/stage_{s}', channels_first)
      for s in range(len(module.image_depths))
    },
  }
  return adapters.module_adapter(
    manifest, module, rules=rules.mit_images_rules(), call=call, taps=taps
  )


@adapters.register_adapter('mit', 'MIT')
def _model(manifest: Manifest) -> adapters.Adapter:
  """The model or one of its ablations, which their inputs tell."""
  if 'feats' not in manifest['inputs']:
    return _images_only(manifest)
  if 'images' not in manifest['inputs']:
    return _points_only(manifest)
  return _mit(manifest)
