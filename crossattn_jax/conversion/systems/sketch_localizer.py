"""The sketch localizer beside its PyTorch original: vcl-iisc/locformer-SGOL."""

from collections.abc import Mapping
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.conversion import correspondence
from crossattn_jax.conversion import rules as rules_lib
from crossattn_jax.conversion.layouts import as_tokens, channels_first, channels_last
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.rules import affine, batch_norm, norm
from crossattn_jax.models.sketch_localizer import model as model_lib

Arrays = dict[str, jax.Array]

# Of a `PositionedAttention`.
ATTENTION = [
  Rule('in_proj_weight', 'qkv/kernel', 'qkv'),
  Rule('in_proj_bias', 'qkv/bias', 'qkv'),
  *affine('out_proj', 'out', 'linear_heads_in'),
]
# Of a `GuidedFusion`.
GUIDED_FUSION = [
  *prefixed(ATTENTION, 'self_attn.', 'attention/'),
  *affine('linear1', 'mlp/fc1'),
  *affine('linear2', 'mlp/fc2'),
  *norm('norm3', 'norm'),
]
# What the original's module has and never uses.
UNUSED_OF_GUIDED_FUSION = r'(.*\.)?(norm[12]|self_attn_sk)\..*'
# Of a `ProjectionNorm`.
PROJECTION_NORM = [*affine('0', 'linear', 'pointwise_conv'), *norm('1', 'norm')]
# Of a `SketchCrossAttention`.
SKETCH_CROSS_ATTENTION = [
  *prefixed(PROJECTION_NORM, 'attention_proj.', 'projection/'),
  *prefixed(GUIDED_FUSION, 'attention.', 'fusion/'),
]
# Of a `SketchFusion`.
SKETCH_FUSION = prefixed(GUIDED_FUSION, 'multi_sketch_fusion.', 'fusion/')

# Of a `ReconfiguredAttention` and the block around it.
RECONFIGURED_BLOCK = [
  *norm('norm1', 'norm1'),
  *norm('norm2', 'norm2'),
  *affine('attn.qkv', 'attention/qkv', 'qkv'),
  *affine('attn.proj', 'attention/out', 'linear_heads_in'),
  Rule('attn.relative_position_bias_table', 'attention/relative_position_bias'),
  Rule('attn.relative_position_index', None),
  *affine('det_pos_linear', 'det_position'),
  *affine('mlp.fc1', 'mlp/fc1'),
  *affine('mlp.fc2', 'mlp/fc2'),
]
# Of a stage of the backbone.
STAGE = [
  *prefixed(RECONFIGURED_BLOCK, 'blocks.{j}.', 'block_{j}/'),
  *norm('downsample.norm', 'merging/norm'),
  Rule('downsample.reduction.weight', 'merging/reduction/kernel', 'linear'),
]
UNUSED_OF_STAGE = r'(.*\.)?downsample\.(expansion|norm2)\..*'

# Of a `DeformableAttention`.
DEFORMABLE_ATTENTION = [
  *affine('sampling_offsets', 'offsets'),
  *affine('attention_weights', 'weights'),
  *affine('value_proj', 'value', 'linear_heads_out'),
  *affine('output_proj', 'out', 'linear_heads_in'),
]
# Of a `DecoderLayer`.
DECODER_LAYER = [
  *prefixed(ATTENTION, 'self_attn.', 'attention/'),
  *prefixed(DEFORMABLE_ATTENTION, 'cross_attn.', 'deformable/'),
  *norm('norm1', 'norm_deformable'),
  *norm('norm2', 'norm_self'),
  *norm('norm3', 'norm_mlp'),
  *affine('linear1', 'mlp/fc1'),
  *affine('linear2', 'mlp/fc2'),
]
# Of a `DeformableDecoder`.
DECODER = [
  *prefixed(DECODER_LAYER, 'decoder.layers.{j}.', 'layer_{j}/'),
  *affine('reference_points', 'point'),
]
# Of a `Regressor`.
REGRESSOR = affine('layers.{j}', 'linear_{j}')
# Of a `CrossScaleFusion`.
CROSS_SCALE_FUSION = [
  *affine('layer_{i}_rn', 'projection_{i}/linear', 'pointwise_conv'),
  *norm('p_norm_{i}', 'projection_{i}/norm'),
  *affine('refinenet_{i}.smoothing', 'smoothing_{i}', 'pointwise_conv'),
  *affine('refinenet_{i}.resConfUnit1.conv{j}', 'lateral_{i}/conv_{j}', 'conv'),
  *affine('refinenet_{i}.resConfUnit2.conv{j}', 'output_{i}/conv_{j}', 'conv'),
  *batch_norm('refinenet_{i}.resConfUnit1.bn{j}', 'lateral_{i}/norm_{j}'),
  *batch_norm('refinenet_{i}.resConfUnit2.bn{j}', 'output_{i}/norm_{j}'),
]
# Of a `SketchProjection`.
SKETCH_PROJECTION = [
  *norm('gp_norm', 'norm'),
  *affine('sketch_proj', 'linear', 'pointwise_conv'),
]
# Of a `RefinementHead`, but for its boxes.
REFINEMENT_HEAD = [
  *affine('class_embed_v2.{l}', 'class_{l}'),
  *affine('trans.{l}.1', 'sketch_linear_{l}'),
  *prefixed(GUIDED_FUSION, 'query_fusion.{l}.', 'object_fusion_{l}/'),
  *prefixed(GUIDED_FUSION, 'query_fusion_sketch.{l}.', 'sketch_fusion_{l}/'),
]
# Of a `SketchGuidedSwin`.
BACKBONE = [
  Rule('det_token', 'det_token'),
  Rule('det_pos_embed', 'det_position'),
  *affine('patch_embed.proj', 'stem/conv', 'conv'),
  *norm('patch_embed.norm', 'stem/norm'),
  *prefixed(PROJECTION_NORM, 'attention_proj.{i}.', 'cross_attention_{i}/projection/'),
  *prefixed(GUIDED_FUSION, 'attention.{i}.', 'cross_attention_{i}/fusion/'),
  *prefixed(STAGE, 'layers.{i}.', 'stage_{i}/'),
]
# Of the whole model, but for what is never used.
MODEL = [
  *prefixed(rules_lib.resnet(), 'sketch_embedding.', 'sketch_encoder/'),
  *prefixed(SKETCH_PROJECTION, flax='sketch_projection/'),
  *prefixed(BACKBONE, 'backbone.', 'backbone/'),
  *prefixed(SKETCH_FUSION, flax='sketch_fusion/'),
  *prefixed(PROJECTION_NORM, 'input_proj.{l}.', 'map_projection_{l}/'),
  *prefixed(PROJECTION_NORM, 'tgt_proj.', 'query_projection/'),
  *prefixed(PROJECTION_NORM, 'query_pos_proj.', 'position_projection/'),
  *prefixed(DECODER, 'transformer.', 'decoder/'),
  *prefixed(REGRESSOR, 'bbox_embed.{l}.', 'boxes_{l}/'),
  *prefixed(REFINEMENT_HEAD, flax='head/'),
]
# Where the original has the box heads too.
BOXES_OF_DECODER = 'transformer.decoder.'


def unused_of_refinement_head(levels: int) -> str:
  """The keys that the original never uses: of the first levels, and the last level's sketch."""
  return (
    rf'query_fusion(_sketch)?\.[012]\..*|query_fusion_sketch\.{levels - 1}\..*|'
    + UNUSED_OF_GUIDED_FUSION
  )


def unused_shapes(module: model_lib.SketchLocalizer) -> dict[str, tuple[int, ...]]:
  """The shapes of what the original has and never uses, by their keys."""
  shapes: dict[str, tuple[int, ...]] = {}

  def add(key: str, *shape: int) -> None:
    """A linear map, a convolution or a norm."""
    shapes[f'{key}.weight'], shapes[f'{key}.bias'] = shape, shape[:1]

  def add_attention(key: str, channels: int) -> None:
    shapes[f'{key}.in_proj_weight'] = 3 * channels, channels
    shapes[f'{key}.in_proj_bias'] = (3 * channels,)
    add(f'{key}.out_proj', channels, channels)

  channels, levels = module.channels, module.num_layers + 1
  widths = [module.width << i for i in range(len(module.depths))]
  shapes['transformer.level_embed'] = len(widths), channels
  for i, width in enumerate(widths):
    for name in ('attention.{}.norm1', 'normalize_image.{}', 'normalize_sketch.{}'):
      add(f'backbone.{name.format(i)}', width)
    shapes[f'backbone.projection.{i}.weight'] = width, 2 * width, 1, 1
    merged = [*widths[1:], channels][i]
    shapes[f'backbone.layers.{i}.downsample.expansion.weight'] = merged, width
    add(f'backbone.layers.{i}.downsample.norm2', width)
    if i:
      add(f'backbone.norm{i}', width)
  add('backbone.op1', widths[1], widths[2], 1, 1)
  add('backbone.op3', widths[1], widths[1], 1, 1)
  add('backbone.bn_op', widths[1])
  for unit in ('backbone.resConfUnit1', 'backbone.resConfUnit2'):
    convolutions = (64, widths[1], 1, 1), (64, 64, 3, 3), (widths[1], 64, 1, 1)
    for i, shape in enumerate(convolutions, 1):
      shapes[f'{unit}.conv{i}.weight'] = shape
      add(f'{unit}.bn{i}', shape[0])
      shapes |= {f'{unit}.bn{i}.running_{leaf}': shape[:1] for leaf in ('mean', 'var')}
  add('sketch_proj_query', widths[-1], 4 * module.sketch_widths[-1], 1, 1)
  add('pos_proj', channels, channels)

  fusions = [
    f'{name}.{i}' for name in ('query_fusion', 'query_fusion_sketch') for i in range(levels)
  ]
  if module.sketch_fusion == 'trainable':
    fusions.append('multi_sketch_fusion')
  for fusion in fusions:
    add_attention(f'{fusion}.self_attn_sk', channels)
    add(f'{fusion}.norm1', channels)
    add(f'{fusion}.norm2', channels)
  whole = [
    f'{name}.{i}'
    for name in ('query_fusion', 'query_fusion_sketch')
    for i in range(min(module.first_level, levels))
  ]
  for fusion in [*whole, f'query_fusion_sketch.{levels - 1}']:
    add_attention(f'{fusion}.self_attn', channels)
    add(f'{fusion}.linear1', module.fusion_hidden, channels)
    add(f'{fusion}.linear2', channels, module.fusion_hidden)
    add(f'{fusion}.norm3', channels)
  return shapes


def model_rules(module: model_lib.SketchLocalizer) -> list[Rule]:
  """The rules of a whole model; what the original never uses, or has twice, is left out."""
  unused = '|'.join(map(re.escape, unused_shapes(module)))
  return [
    *MODEL,
    Rule(f'{{unused:{unused}}}', None),
    Rule(r'backbone.resConfUnit{unit}.bn{i}.num_batches_tracked', None),
    Rule(BOXES_OF_DECODER + r'{box:bbox_embed\..*}', None),
  ]


def start_rules(module: model_lib.SketchLocalizer) -> dict[str, list[Rule]]:
  """The rules of networks that parts of a model may start from, all of what these have for it."""
  # Swin's last stage merges nothing.
  merging = [rule for rule in STAGE if rule.torch.startswith('downsample.')]
  swin = [
    *(rule for rule in BACKBONE if rule.torch.startswith(('patch_embed.', 'layers.{i}.blocks.'))),
    *prefixed(merging, f'layers.{{i:[0-{len(module.depths) - 2}]}}.', 'stage_{i}/'),
    Rule('layers.{i}.blocks.{j}.attn_mask', None),
    Rule('{rest:norm|head}.{leaf:weight|bias}', None),
  ]
  of_vidt = r'backbone\.(patch_embed|det_|layers)|transformer|bbox|input_proj|tgt_|query_pos_'
  return {
    'Swin': prefixed(
      [rule for rule in swin if '.det_pos_linear.' not in rule.torch], flax='backbone/'
    ),
    'ViDT': [
      *(rule for rule in model_rules(module) if rule.flax is None or re.match(of_vidt, rule.torch)),
      Rule('class_embed.{l}.{leaf:weight|bias}', None),
    ],
    'ResNet': [
      *prefixed(rules_lib.resnet(len(module.sketch_depths)), flax='sketch_encoder/'),
      Rule('fc.{leaf:weight|bias}', None),
    ],
  }


def model_taps(module: model_lib.SketchLocalizer) -> dict[str, correspondence.TapLike]:
  """What the parts of the original return."""
  stages, levels = range(len(module.depths)), range(module.num_layers + 1)

  def first(result: Any) -> jax.Array:
    return result[0]

  def flat(x: jax.Array) -> jax.Array:
    return channels_first(x)[..., None]

  fused = {'multi_sketch_fusion': ('sketch_fusion', as_tokens)}
  return {
    **(fused if module.sketch_fusion == 'trainable' else {}),
    'sketch_proj': ('sketch_projection', channels_first),
    'backbone.patch_embed': ('backbone/stem', channels_first),
    'tgt_proj': ('query_projection', flat),
    'query_pos_proj': ('position_projection', flat),
    **{
      f'sketch_embedding.layer{i + 1}': (f'sketch_encoder/stage_{i}', channels_first)
      for i in range(len(module.sketch_depths))
    },
    **{
      f'backbone.attention.{i}': (f'backbone/cross_attention_{i}', lambda x: as_tokens(x[0]))
      for i in stages
    },
    **{f'backbone.layers.{i}': (f'backbone/stage_{i}', first) for i in stages},
    **{f'input_proj.{i}': (f'map_projection_{i}', channels_first) for i in stages},
    **{f'transformer.decoder.layers.{i}': f'decoder/layer_{i}' for i in levels[:-1]},
    **{
      f'query_fusion{torch}.{i}': (f'head/{flax}_fusion_{i}', first)
      for torch, flax, refined in (('', 'object', levels), ('_sketch', 'sketch', levels[:-1]))
      for i in refined[module.first_level :]
    },
  }


def call_model(model: nn.Module, inputs: Arrays, train: bool = False) -> Arrays:
  """Runs a model as the original: photos, a mask that is True in padding, sketches."""
  image, mask = channels_last(inputs['image']), inputs['mask']
  image_size = jnp.stack([(~mask[:, :, 0]).sum(axis=1), (~mask[:, 0]).sum(axis=1)], axis=-1)
  sketches = jnp.moveaxis(inputs['sketches'], 2, -1)
  outputs, _ = model(image, sketches, train, image_size=image_size)
  return {name: jnp.moveaxis(x, 1, 0) for name, x in outputs.items()}


def told_fields(shapes: correspondence.Shapes) -> Mapping[str, Any]:
  """The fields of a model that the shapes of a state dict tell, by their keys."""

  def count(pattern: str) -> int:
    found = (re.match(pattern, key) for key in shapes)
    return len({match[0] for match in found if match})

  if not {'backbone.det_token', 'class_embed_v2.0.weight'} <= shapes.keys():
    return {}
  _, queries, width = shapes['backbone.det_token']
  stages = range(count(r'backbone\.layers\.\d+\.'))
  table = 'backbone.layers.{}.blocks.0.attn.relative_position_bias_table'
  fused = 'multi_sketch_fusion.norm3.weight' in shapes
  return {
    'num_classes': shapes['class_embed_v2.0.weight'][0],
    'num_queries': queries,
    'width': width,
    'depths': tuple(count(rf'backbone\.layers\.{i}\.blocks\.\d+\.') for i in stages),
    'num_heads': tuple(shapes[table.format(i)][1] for i in stages),
    'num_layers': count(r'transformer\.decoder\.layers\.\d+\.'),
    'sketch_fusion': 'trainable' if fused else 'mean',
  }


def besides(module: model_lib.SketchLocalizer, state: correspondence.State) -> correspondence.State:
  """What the original has besides: box heads twice, tables of numbers, and what it never uses."""
  found = {BOXES_OF_DECODER + key: x for key, x in state.items() if key.startswith('bbox_embed.')}
  index = relative_position_index(module.window)
  for i, depth in enumerate(module.depths):
    for j in range(depth):
      found[f'backbone.layers.{i}.blocks.{j}.attn.relative_position_index'] = index
  zeros = {key: np.zeros(shape, np.float32) for key, shape in unused_shapes(module).items()}
  return found | zeros


def relative_position_index(window: int) -> np.ndarray:
  """Where Swin's table of biases has the one of each pair of a window's tokens."""
  rows, columns = np.divmod(np.arange(window**2), window)
  apart = [x[:, None] - x + window - 1 for x in (rows, columns)]
  return apart[0] * (2 * window - 1) + apart[1]


@correspondence.register_models('sketch_localizer', 'sketch_localizer_*')
def describe(module: model_lib.SketchLocalizer) -> correspondence.Correspondence:
  """Says how a registered sketch localizer corresponds to the official model."""
  image = (1, module.num_channels, *module.image_size)
  sketches = (1, 1, module.num_channels, module.sketch_size, module.sketch_size)
  return correspondence.Correspondence(
    rules=model_rules(module),
    call=call_model,
    inputs={
      'image': jax.ShapeDtypeStruct(image, jnp.float32),
      'mask': jax.ShapeDtypeStruct((1, *module.image_size), bool),
      'sketches': jax.ShapeDtypeStruct(sketches, jnp.float32),
    },
    taps=model_taps(module),
    starts=start_rules(module),
    fields=told_fields,
    besides=lambda state: besides(module, state),
  )
