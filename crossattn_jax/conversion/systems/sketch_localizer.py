"""The sketch localizer beside its PyTorch original: vcl-iisc/locformer-SGOL."""

from crossattn_jax.conversion.rules import affine

# Of a `DeformableAttention`.
DEFORMABLE_ATTENTION = [
  *affine('sampling_offsets', 'offsets'),
  *affine('attention_weights', 'weights'),
  *affine('value_proj', 'value', 'linear_heads_out'),
  *affine('output_proj', 'out', 'linear_heads_in'),
]
