"""Cases of whole CrossFormers: the classifier and the backbone of dense predictors."""

from collections.abc import Mapping, Sequence
from typing import Any

from crossattn_jax.conversion import correspondence
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.systems import crossformer as rules
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.parity.systems.crossformer import options

Manifest = Mapping[str, Any]


def _per_stage(value: int | float | Sequence[Any], stages: int) -> tuple[Any, ...]:
  """A value for each stage, as a constructor gives it: one for all, or a list of at least these."""
  return tuple(value)[:stages] if isinstance(value, Sequence) else (value,) * stages


def build_model(c: arguments.Arguments, **fields: Any) -> options.OfficialCrossFormer:
  """The model of an official constructor.

  Raises:
    arguments.ArgumentError: a value is none that the model has.
  """
  c.ignore_rates('drop_rate', 'attn_drop_rate', 'drop_path_rate')
  c.ignore('use_checkpoint', 'pretrained', 'norm_layer')
  patch_sizes = tuple(c.get('patch_size', (4, 8, 16, 32)))
  depths, width = tuple(c.get('depths', (2, 2, 6, 2))), c.get('embed_dim', 96)
  stages = len(depths)
  widths = tuple(width * 2**s for s in range(stages))
  heads = _per_stage(c.get('num_heads', (3, 6, 12, 24)), stages)
  merging = c.get('merge_size', [[2, 4]] * (stages - 1))
  if fields.get('backbone'):
    # Dense predictors take these words, too, and do nothing with them.
    c.ignore('pad_type', 'no_mask')
    if patch_sizes[0] != 4:
      raise arguments.ArgumentError(
        f'patch_size is {patch_sizes}; the first one, the stride, is 4 in a dense predictor'
      )
  else:
    fields['center_padding'] = c.get('pad_type', 0) == 1
    fields['mask_padding'] = not c.get('no_mask', False)
  side = c.get('img_size', 224)  # Growing group sizes are of this size, whatever the images'.
  rows = (side[0] if isinstance(side, Sequence) else side) // patch_sizes[0]
  return options.OfficialCrossFormer(
    image_size=(4 * rows, 4 * rows),
    num_channels=c.get('in_chans', 3),
    widths=widths,
    depths=depths,
    head_dim=tuple(width // count for width, count in zip(widths, heads, strict=True)),
    group_sizes=_per_stage(c.get('group_size', 7), stages),
    group_rule=c.get('group_type', 'constant'),
    intervals=_per_stage(c.get('crs_interval', (8, 4, 2, 1)), stages),
    adaptive_interval=c.get('adaptive_interval', False),
    patch_sizes=patch_sizes,
    merging_sizes=tuple(map(tuple, merging))[: stages - 1],
    mlp_ratio=_per_stage(c.get('mlp_ratio', 4), stages),
    cooling=c.get('use_acl', False),
    qkv_bias=c.get('qkv_bias', True),
    qk_scale=c.get('qk_scale'),
    use_cpe=c.get('use_cpe', False),
    ape=c.get('ape', False),
    patch_norm=c.get('patch_norm', True),
    first_stride=patch_sizes[0],
    **fields,
  )


def long_distance(manifest: Manifest) -> str:
  """How far long distance attention goes in a dense predictor: as in the code that it is of.

  Cases that do not say it are of the latest code, or of the branch `crossformer` that came before.
  """
  before = 'branch crossformer' in manifest['reference']
  return manifest['constructor'].get('lda', 'global' if before else 'region')


@correspondence.register_backbone(options.OfficialCrossFormer)
def model_rules(module: options.OfficialCrossFormer) -> list[Rule]:
  """The rules of a whole model, with what no published one has."""
  model_rules = [Rule('absolute_pos_embed', 'absolute_position'), *rules.model_rules(module)]
  if module.use_cpe:
    block = 'layers.{s}.blocks.{b}.', 'stage_{s}/block_{b}/'
    model_rules += prefixed(rules.ROW_CONVOLUTION, *block)
  return model_rules


def _model_adapter(manifest: Manifest, module: options.OfficialCrossFormer) -> adapters.Adapter:
  described = rules.describe(module)
  return adapters.module_adapter(
    manifest, module, rules=model_rules(module), call=described.call, taps=described.taps
  )


@adapters.register_adapter('crossformer', 'CrossFormer')
def _classifier(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  module = build_model(
    c,
    num_classes=c.get('num_classes', 1000),
  )
  return _model_adapter(manifest, module)


@adapters.register_adapter('crossformer', 'CrossFormerDense')
def _backbone(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('num_classes', 'frozen_stages', 'norm_eval')
  return _model_adapter(manifest, build_model(c, backbone=True, lda=long_distance(manifest)))
