"""BiFormer beside its PyTorch original: rayleizhu/BiFormer."""

from crossattn_jax.conversion import correspondence, layouts
from crossattn_jax.conversion.layouts import channels_first
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.rules import affine, batch_norm
from crossattn_jax.models import biformer


def _affine(torch: str, flax: str, layout: str, pointwise: bool = False) -> list[Rule]:
  """The rules of a linear map, which the original may keep as a convolution."""
  return affine(torch, flax, layouts.pointwise(layout) if pointwise else layout)


def routed_rules(split_heads: bool = True) -> list[Rule]:
  """The rules of bi-level routing attention in NHWC.

  Args:
    split_heads: whether queries and keys are as wide as values, so that Flax keeps them as heads.
  """
  return [
    *_affine('qkv.qkv', 'qkv', 'qkv' if split_heads else 'linear'),
    *_affine('router.emb', 'router/embedding', 'linear'),
    *_affine('lepe', 'lepe', 'conv'),
    *_affine('wo', 'out', 'linear_heads_in'),
  ]


ROUTED_NCHW = [
  *_affine('qkv_linear', 'qkv', 'qkv', pointwise=True),
  *_affine('lepe', 'lepe', 'conv'),
  *_affine('output_linear', 'out', 'linear_heads_in', pointwise=True),
]
CONVOLUTION = [
  *_affine('1', 'linear_0', 'linear', pointwise=True),
  *_affine('2', 'depthwise', 'conv'),
  *_affine('3', 'linear_1', 'linear', pointwise=True),
]
BLOCK_GRID = [
  *_affine('qkv', 'qkv', 'qkv', pointwise=True),
  Rule('rel_pos.relative_position_bias_table', 'relative_position_bias'),
  *_affine('proj', 'out', 'linear_heads_in', pointwise=True),
]


def global_rules(pointwise: bool = False) -> list[Rule]:
  """The rules of global attention; `pointwise` in NCHW."""
  return [
    *_affine('qkv', 'qkv', 'qkv', pointwise),
    *_affine('proj', 'out', 'linear_heads_in', pointwise),
    *_affine('lepe', 'lepe', 'conv'),
  ]


def block_rules(options: biformer.Options, stage: int = 0) -> list[Rule]:
  """The rules of a block of one stage."""
  kind, nchw = options.attentions[stage], options.torch_linear
  match kind:
    case 'routed':
      same = options.qk_dims is None or options.qk_dims[stage] == options.widths[stage]
      attention = ROUTED_NCHW if nchw else routed_rules(same)
    case 'convolution':
      attention = CONVOLUTION
    case 'block_grid':
      attention = BLOCK_GRID
    case _:
      attention = global_rules(nchw)
  if kind == 'block_grid':
    mlp = _affine('mlp.fc{n:1|2}', 'mlp/fc{n}', 'linear', pointwise=True)
  else:
    mlp = [
      *_affine('mlp.0', 'mlp/fc1', 'linear', nchw),
      *_affine('mlp.1.dwconv', 'mlp/depthwise', 'conv'),
      *_affine('mlp.3' if options.overlapping else 'mlp.2', 'mlp/fc2', 'linear', nchw),
    ]
  return [
    Rule('gamma{n:1|2}', 'scale{n}'),
    *_affine('pos_embed', 'position', 'conv'),
    *batch_norm('norm{n:1|2}', 'norm{n}'),
    *prefixed(attention, 'attn.', 'attention/'),
    *mlp,
  ]


@correspondence.register_backbone(biformer.BiFormer)
def model_rules(module: biformer.BiFormer) -> list[Rule]:
  """The rules of a whole model."""
  if module.options.overlapping:
    rules = [
      *_affine('downsample_layers.0.0', 'stem/conv_0', 'conv'),
      *batch_norm('downsample_layers.0.1', 'stem/norm_0'),
      *_affine('downsample_layers.0.3', 'stem/conv_1', 'conv'),
      *batch_norm('downsample_layers.0.4', 'stem/norm_1'),
      *_affine('downsample_layers.{s}.0', 'downsampling_{s}/conv', 'conv'),
      *batch_norm('downsample_layers.{s}.1', 'downsampling_{s}/norm'),
    ]
  else:
    rules = [
      *_affine('downsample_layers.0.0', 'stem/conv', 'conv'),
      *batch_norm('downsample_layers.0.1', 'stem/norm'),
      *batch_norm('downsample_layers.{s}.0', 'downsampling_{s}/norm'),
      *_affine('downsample_layers.{s}.1', 'downsampling_{s}/conv', 'conv'),
    ]
  blocks = '' if module.options.overlapping else 'blocks.'
  for stage in range(len(module.options.widths)):
    rules += prefixed(
      block_rules(module.options, stage),
      f'stages.{stage}.{blocks}{{b}}.',
      f'stage_{stage}/block_{{b}}/',
    )
  return [
    *rules,
    *batch_norm('extra_norms.{s}', 'output_norm_{s}'),
    *batch_norm('norm', 'norm'),
    *_affine('head', 'head', 'linear'),
  ]


def model_taps(module: biformer.BiFormer) -> dict[str, correspondence.TapLike | None]:
  """The taps of a whole model."""
  taps: dict[str, correspondence.TapLike | None] = {'norm': ('norm', channels_first)}
  for s, depth in enumerate(module.options.depths):
    taps[f'downsample_layers.{s}'] = (f'downsampling_{s}' if s else 'stem', channels_first)
    taps[f'stages.{s}'] = (f'stage_{s}', lambda result: channels_first(result[0]))
    blocks = f'stages.{s}.' if module.options.overlapping else f'stages.{s}.blocks.'
    for b in range(depth):
      taps[f'{blocks}{b}'] = (f'stage_{s}/block_{b}', lambda result: channels_first(result[0]))
  return taps


@correspondence.register_models('biformer', 'biformer_*')
@correspondence.register_models('biformer', 'maxvit_stl')
def describe(module: biformer.BiFormer) -> correspondence.Correspondence:
  """Says how a registered BiFormer corresponds to the official model."""
  return correspondence.Correspondence(
    rules=model_rules(module),
    call=correspondence.logits_or_maps,
    inputs={'image': correspondence.image_input(module)},
    taps=model_taps(module),
    heads=('head',) if module.num_classes and not module.options.backbone else (),
    fields=lambda shapes: {'backbone': 'norm.weight' not in shapes},
  )
