"""The sketch localizer beside its PyTorch original: vcl-iisc/locformer-SGOL."""

from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.rules import affine, norm

# Of a `GuidedFusion`.
GUIDED_FUSION = [
  Rule('self_attn.in_proj_weight', 'qkv/kernel', 'qkv'),
  Rule('self_attn.in_proj_bias', 'qkv/bias', 'qkv'),
  *affine('self_attn.out_proj', 'out', 'linear_heads_in'),
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
  Rule('self_attn.in_proj_weight', 'qkv/kernel', 'qkv'),
  Rule('self_attn.in_proj_bias', 'qkv/bias', 'qkv'),
  *affine('self_attn.out_proj', 'out', 'linear_heads_in'),
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
# Of a `BoxRegressor`.
BOX_REGRESSOR = affine('layers.{j}', 'linear_{j}')
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


def unused_of_refinement_head(levels: int) -> str:
  """The keys that the original never uses: of the first levels, and the last level's sketch."""
  return (
    rf'query_fusion(_sketch)?\.[012]\..*|query_fusion_sketch\.{levels - 1}\..*|'
    + UNUSED_OF_GUIDED_FUSION
  )
