"""MIT beside its original, jimmy15923/mit, Minkowski Engine's networks and timm's image encoder."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.conversion import correspondence, layouts
from crossattn_jax.conversion.layouts import first_map
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.rules import affine, batch_norm, norm
from crossattn_jax.conversion.systems import crossvit
from crossattn_jax.geometry import points
from crossattn_jax.layers import sparse_convolution as sparse
from crossattn_jax.models import minkunet, mit
from crossattn_jax.models.backbones import preact_resnet

Arrays = dict[str, jax.Array]

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


# What a file of MIT has besides the network of points; of it a `MinkUNet` takes nothing.
BESIDE_POINTS = [
  Rule('{token:cls_token|cls_pos_emb|view_pos_emb}', None),
  Rule(
    '{part:net2d|(view|voxel)_encoder|interlance_decoder|pos_emb|cls_head_[23]d}.{rest:.*}', None
  ),
]


def example_cells() -> np.ndarray:
  """`[n, 4]` integers: scene 0 and x, y, z of the cells of a floor and two walls."""
  x, y, z = np.indices((20, 20, 6))
  cells = np.argwhere((x == 0) | (y == 0) | (z == 0)).astype(np.int32)
  return np.pad(cells, ((0, 0), (1, 0)))


def scene_inputs(
  levels: Sequence[points.Level], features: jax.Array
) -> tuple[jax.Array, list[sparse.Level]]:
  """What networks take of a scene: its windows, and the tables of its levels, a batch of one.

  Args:
    levels: of the scene.
    features: `[n, channels]` of its cells.
  """
  around = points.neighbours(levels[0].cells, 5)
  windows = jnp.pad(features, ((0, 1), (0, 0)))[around.T].reshape(1, around.shape[1], -1)
  return windows, [level_tables(level) for level in levels]


def level_tables(level: points.Level) -> sparse.Level:
  """What modules take of a level, a batch of one scene."""
  _, neighbours, link = level
  if link is None:
    return sparse.Level(neighbours[None])
  return sparse.Level(neighbours[None], link.children[None], (8 * link.parent + link.octant)[None])


@correspondence.register_models('mit', 'minkunet*')
def describe_minkunet(module: minkunet.MinkUNet) -> correspondence.Correspondence:
  """Says how a registered MinkUNet corresponds to the official one of MIT's second stage."""

  def call(network: nn.Module, inputs: Arrays) -> Arrays:
    levels = points.levels(inputs['coords'][:, 1:], 5)
    logits, _ = network(*scene_inputs(levels, inputs['feats']))
    return {'logits': logits[0]}

  def fields(shapes: correspondence.Shapes) -> dict[str, Any]:
    stem, head = shapes.get('conv0p1s1.kernel'), shapes.get('final.kernel')
    told = {} if stem is None else {'num_channels': stem[1], 'stem_width': stem[2]}
    return told | {'num_classes': 0 if head is None else head[1]}

  cells, rules = example_cells(), minkunet_rules()
  encoder = [rule for rule in rules if not rule.torch.startswith('final.')]
  return correspondence.Correspondence(
    rules=rules,
    call=call,
    inputs={
      'coords': cells,
      'feats': jax.ShapeDtypeStruct((len(cells), module.num_channels), jnp.float32),
    },
    starts={'MIT': [*prefixed(encoder, 'net3d.'), *BESIDE_POINTS]},
    fields=fields,
  )


# The image encoder.

PREACT_BLOCK = [
  *(rule for i in range(3) for rule in batch_norm(f'norm{i + 1}', f'norm_{i}')),
  *(Rule(f'conv{i + 1}.weight', f'conv_{i}/kernel', 'conv') for i in range(3)),
  Rule('downsample.conv.weight', 'shortcut/kernel', 'conv'),
]
# Of a `PreactResNet` without classifier.
PREACT_RESNET = [
  Rule('stem.conv.weight', 'stem/kernel', 'conv'),
  *prefixed(PREACT_BLOCK, 'stages.{s}.blocks.{b}.', 'stage_{s}/block_{b}/'),
  *batch_norm('norm', 'norm'),
]


@correspondence.register_backbone(preact_resnet.PreactResNet)
def preact_resnet_rules(module: preact_resnet.PreactResNet) -> list[Rule]:
  """The rules of timm's `resnetv2_*` with batch norm, its classifier included."""
  del module
  return [*PREACT_RESNET, *affine('head.fc', 'head', 'pointwise_conv')]


@correspondence.register_models('mit', 'resnetv2_*')
def describe_preact_resnet(module: preact_resnet.PreactResNet) -> correspondence.Correspondence:
  """Says how a registered ResNet with early norms corresponds to timm's."""
  taps = {f'stages.{s}': (f'stage_{s}', first_map) for s in range(len(module.depths))}
  # timm's norms end with the rectifier.
  norms = {'norm': 'norm'} | {
    f'stages.{s}.blocks.{b}.norm{i + 1}': f'stage_{s}/block_{b}/norm_{i}'
    for s, depth in enumerate(module.depths)
    for b in range(depth)
    for i in range(3)
  }
  taps |= {name: (path, lambda x: nn.relu(first_map(x))) for name, path in norms.items()}
  return correspondence.Correspondence(
    rules=preact_resnet_rules(module),
    call=correspondence.logits_or_maps,
    inputs={'image': correspondence.image_input(module)},
    taps=taps,
    heads=('head',) if module.num_classes else (),
  )


# MIT and its ablations.

# Of a class-skipping attention.
CROSS_ATTENTION = [
  *affine('q_map', 'query', 'linear_heads_out'),
  *affine('k_map', 'key', 'linear_heads_out'),
  *affine('v_map', 'value', 'linear_heads_out'),
  *affine('proj', 'out', 'linear_heads_in'),
]
# Of an `InterlacedBlock`.
INTERLACED_BLOCK = [
  *norm('norm{n:1|2}', 'norm{n}'),
  *norm('norm_q', 'norm_query'),
  *norm('norm_v', 'norm_key'),
  *prefixed(crossvit.SELF_ATTENTION, 'self_attn.', 'self_attention/'),
  *prefixed(CROSS_ATTENTION, 'attn.', 'cross_attention/'),
  *affine('mlp.fc{n:1|2}', 'mlp/fc{n}'),
]
# Of an `Encoder` and of an `InterlacedDecoder`.
ENCODER = prefixed(crossvit.TRANSFORMER_BLOCK, 'blocks.{i}.', 'block_{i}/')
DECODER = prefixed(INTERLACED_BLOCK, 'blocks.{i}.', 'block_{i}/')
# Of a `PositionMlp`.
POSITION_MLP = affine('layers.{i}', 'linear_{i}')

_ACTIVATION = layouts.pointwise(rank=1)  # A convolution of a sequence.
# Of both heads of an `MIT`.
ACTIVATION_HEADS = [
  *affine('cls_head_3d', 'head_voxels', _ACTIVATION),
  *affine('cls_head_2d', 'head_views', _ACTIVATION),
]


def mit_rules() -> list[Rule]:
  """Of an `MIT`."""
  return [
    Rule('cls_token', 'class_tokens', 'unbatched'),
    Rule('cls_pos_emb', 'class_positions', 'unbatched'),
    Rule('view_pos_emb', 'view_positions', 'unbatched'),
    *prefixed(PREACT_RESNET, 'net2d.resnet.', 'images/network/'),
    *affine('net2d.fc', 'images/out'),
    *prefixed(minkunet_rules(), 'net3d.', 'points/'),
    *prefixed(ENCODER, '{modality:voxel|view}_encoder.', '{modality}_encoder/'),
    *prefixed(DECODER, 'interlance_decoder.', 'decoder/'),
    *prefixed(POSITION_MLP, 'pos_emb.', 'positions/'),
    *ACTIVATION_HEADS,
  ]


def mit_points_rules() -> list[Rule]:
  """Of an `MITPoints`."""
  return [
    Rule('cls_token', 'class_tokens'),
    Rule('cls_pos_emb', 'class_positions'),
    *prefixed(minkunet_rules(), flax='points/'),
    *prefixed(ENCODER, 'encoder.', 'encoder/'),
    *affine('coord_emb.fc1', 'positions/linear_0'),
    *affine('coord_emb.fc2', 'positions/linear_1'),
    *affine('head', 'head_voxels', _ACTIVATION),
  ]


def mit_images_rules() -> list[Rule]:
  """Of an `MITImages`."""
  return [
    Rule('cls_token', 'class_tokens', 'unbatched'),
    Rule('cls_pos_emb', 'class_positions', 'unbatched'),
    *prefixed(PREACT_RESNET, 'resnet.', 'images/network/'),
    *affine('fc', 'images/out'),
    *prefixed(ENCODER, 'encoder.', 'encoder/'),
    *prefixed(POSITION_MLP, 'pos_emb_3d.', 'positions/'),
    *affine('head', 'head_views', _ACTIVATION),
  ]


# Networks that parts of them start from, without their classifiers.
_POINTS_START = {
  'MinkUNet': [
    *prefixed(minkunet_rules(), flax='points/'),
    Rule('final.{leaf:kernel|bias}', None),
  ]
}
_IMAGES_START = {
  'resnetv2': [
    *prefixed(PREACT_RESNET, flax='images/network/'),
    Rule('head.fc.{leaf:weight|bias}', None),
  ]
}


def original_outputs(outputs: Mapping[str, jax.Array]) -> Arrays:
  """What an `MIT` returns, with the original's names and layouts, scenes apart."""
  [of_scene] = [x for name, x in outputs.items() if name.startswith('voxel_cam_')]
  return {
    'cross_mct_logits': outputs['cross_logits'],
    'mct_logits_2d': outputs['view_class_logits'],
    'mct_logits_3d': outputs['voxel_class_logits'],
    'cam_logits_2d': outputs['view_cam_logits'],
    'cam_logits_3d': of_scene,
    'consistent_loss': outputs['consistency'].mean()[None],
    'token_sim_loss': outputs['token_similarity'].mean()[None],
    'view_cams': jnp.swapaxes(outputs['view_cams'], 1, 2),
  }


def original_images(images: jax.Array) -> jax.Array:
  """From the original's layout, `[batch, channels, height, width, views]`, to this library's."""
  return jnp.transpose(images, (0, 4, 2, 3, 1))


def _points_example(module: mit.MIT | mit.MITPoints) -> correspondence.Inputs:
  """A scene of two supervoxels."""
  cells = example_cells()
  return {
    'coords': cells,
    'supervoxel': (cells[:, 3] > 0).astype(np.int32),
    'feats': jax.ShapeDtypeStruct((len(cells), module.num_channels), jnp.float32),
  }


def _points_inputs(inputs: Arrays) -> tuple[Any, ...]:
  """What models take of points, of the original's inputs, which are arrays but for colours."""
  cells, ids = inputs['coords'][:, 1:], inputs['supervoxel']
  count = ids.max() + 1
  position = points.means(cells, ids, count)[None].astype(np.float32)
  windows, levels = scene_inputs(points.levels(cells, 5), inputs['feats'])
  return windows, levels, ids[None], np.array([count]), position


def _images_example(module: mit.MIT | mit.MITImages) -> correspondence.Inputs:
  shape = (1, module.num_channels, *module.image_size, module.num_views)
  return {'images': jax.ShapeDtypeStruct(shape, jnp.float32)}


@correspondence.register_models('mit', 'mit_[0-9]*')
def describe_mit(module: mit.MIT) -> correspondence.Correspondence:
  """Says how a registered MIT corresponds to the official model of the first stage."""

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    outputs, _ = model(*_points_inputs(inputs), original_images(inputs['images']))
    return original_outputs(outputs)

  def fields(shapes: correspondence.Shapes) -> dict[str, Any]:
    views = shapes.get('view_pos_emb')
    return {} if views is None else {'num_views': views[1]}

  return correspondence.Correspondence(
    rules=mit_rules(),
    call=call,
    inputs=_points_example(module) | _images_example(module),
    taps={
      'view_encoder': 'view_encoder',
      'voxel_encoder': 'voxel_encoder',
      'interlance_decoder': ('decoder', lambda result: result[0]),
    },
    heads=('head_views', 'head_voxels'),
    starts=_POINTS_START | _IMAGES_START,
    fields=fields,
  )


@correspondence.register_models('mit', 'mit_points')
def describe_mit_points(module: mit.MITPoints) -> correspondence.Correspondence:
  """Says how what sees points alone corresponds to the official ablation."""

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    outputs, _ = model(*_points_inputs(inputs))
    return {'cls_logits': outputs['voxel_cam_probabilities'], 'cams': outputs['cams']}

  return correspondence.Correspondence(
    rules=mit_points_rules(),
    call=call,
    inputs=_points_example(module),
    taps={'encoder': 'encoder'} if module.encoder_depth else {},
    heads=('head_voxels',),
    starts=_POINTS_START,
  )


@correspondence.register_models('mit', 'mit_images')
def describe_mit_images(module: mit.MITImages) -> correspondence.Correspondence:
  """Says how what sees photographs alone corresponds to the official ablation."""

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    outputs, _ = model(*(None,) * 5, original_images(inputs['images']))
    return {'scene_logits': outputs['view_cam_logits'], 'cams': outputs['view_cams']}

  return correspondence.Correspondence(
    rules=mit_images_rules(),
    call=call,
    inputs=_images_example(module),
    taps={'encoder': 'encoder'} if module.encoder_depth else {},
    heads=('head_views',),
    starts=_IMAGES_START,
  )
