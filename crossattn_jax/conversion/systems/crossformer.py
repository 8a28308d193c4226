"""CrossFormer and CrossFormer++ beside their PyTorch original: cheerss/CrossFormer."""

from crossattn_jax.conversion import correspondence
from crossattn_jax.conversion.layouts import as_tokens, first_map
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.rules import affine, norm
from crossattn_jax.models import crossformer

POSITION_BIAS = [
  *affine('pos_proj', 'linear_0', 'linear'),
  *norm('pos{i:1|2|3}.0', 'norm_{i}'),
  *affine('pos{i:1|2|3}.2', 'linear_{i}', 'linear'),
]
ATTENTION = [
  *prefixed(POSITION_BIAS, 'pos.', 'position_bias/'),
  *affine('qkv', 'qkv', 'qkv'),
  *affine('proj', 'out', 'linear_heads_in'),
  # Buffers of the first release's files.
  Rule('biases', None),
  Rule('relative_position_index', None),
]
BLOCK = [
  *norm('norm{n:1|2}', 'norm{n}'),
  *prefixed(ATTENTION, 'attn.', 'attention/'),
  *affine('mlp.fc{n:1|2}', 'mlp/fc{n}', 'linear'),
  *affine('ex_conv', 'cooling', 'conv'),
  *norm('ex_ln', 'cooling_norm'),
]
# Of a block whose attention gets a convolution over the rows.
ROW_CONVOLUTION = [
  *affine('cpe', 'attention/row_convolution', 'conv'),
  *norm('norm_cpe', 'attention/row_norm'),
  *prefixed(ATTENTION, 'attn.', 'attention/attention/'),
]
STEM = [*affine('projs.{i}', 'conv_{i}', 'conv'), *norm('norm', 'norm')]
MERGING = [*affine('reductions.{i}', 'conv_{i}', 'conv'), *norm('norm', 'norm')]


@correspondence.register_backbone(crossformer.CrossFormer)
def model_rules(module: crossformer.CrossFormer) -> list[Rule]:
  """The rules of a whole model."""
  rules = [
    *prefixed(STEM, 'patch_embed.', 'embedding/'),
    *prefixed(BLOCK, 'layers.{s}.blocks.{b}.', 'stage_{s}/block_{b}/'),
  ]
  for stage in range(1, len(module.widths)):
    rules += prefixed(MERGING, f'layers.{stage - 1}.downsample.', f'downsampling_{stage}/')
  if module.backbone:
    # Dense predictors start from a classifier's weights.
    return [
      *rules,
      *(Rule(f'{name}.{part}', None) for name in ('norm', 'head') for part in ('weight', 'bias')),
    ]
  return [*rules, *norm('norm', 'norm'), *affine('head', 'head', 'linear')]


def model_taps(module: crossformer.CrossFormer) -> dict[str, correspondence.TapLike | None]:
  """The taps of a whole model."""
  taps: dict[str, correspondence.TapLike | None] = {
    'patch_embed': ('embedding', as_tokens),
    'norm': ('norm', as_tokens),
  }
  for s, depth in enumerate(module.depths):
    for b in range(depth):
      taps[f'layers.{s}.blocks.{b}'] = (f'stage_{s}/block_{b}', lambda result: as_tokens(result[0]))
    # The original's stages end with the next one's embedding; a backbone's return their map first.
    if module.backbone:
      taps[f'layers.{s}'] = (f'stage_{s}', first_map)
    elif s + 1 < len(module.depths):
      taps[f'layers.{s}'] = (f'downsampling_{s + 1}', as_tokens)
    else:
      taps[f'layers.{s}'] = (f'stage_{s}', lambda result: as_tokens(result[0]))
  return taps


def dense_settings(shapes: correspondence.Shapes) -> dict[str, str]:
  """The fields that no array of a dense predictor shows, by the shapes of its state dict."""
  # The first release keeps these, and its dense predictors group the whole map.
  first = any(key.endswith('.attn.biases') for key in shapes)
  return {'lda': 'global'} if first else {}


@correspondence.register_models('crossformer', 'crossformer_*')
def describe(module: crossformer.CrossFormer) -> correspondence.Correspondence:
  """Says how a registered CrossFormer corresponds to the official model."""
  return correspondence.Correspondence(
    rules=model_rules(module),
    call=correspondence.logits_or_maps,
    inputs={'image': correspondence.image_input(module)},
    taps=model_taps(module),
    heads=('head',) if module.num_classes and not module.backbone else (),
    fields=lambda shapes: {'backbone': 'norm.weight' not in shapes},
  )
