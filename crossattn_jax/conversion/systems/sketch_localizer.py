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
