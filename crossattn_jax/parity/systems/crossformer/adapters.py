"""Cases of whole CrossFormers: the classifier and the backbone of dense predictors."""

from collections.abc import Mapping, Sequence
from typing import Any

from crossattn_jax.conversion.systems import crossformer as rules
from crossattn_jax.models import crossformer
from crossattn_jax.parity import adapters, arguments

Manifest = Mapping[str, Any]


def _per_stage(value: int | float | Sequence[Any], stages: int) -> tuple[Any, ...]:
  """A value for each stage, as a constructor gives it: one for all, or a list of at least these."""
  return tuple(value)[:stages] if isinstance(value, Sequence) else (value,) * stages


def build_model(c: arguments.Arguments, **fields: Any) -> crossformer.CrossFormer:
  """The model of an official constructor.

  Raises:
    arguments.ArgumentError: a value is none that the model has.
  """
  c.ignore_rates('drop_rate', 'attn_drop_rate', 'drop_path_rate')
  c.ignore('use_checkpoint', 'pretrained', 'norm_layer')
  c.ignore('qkv_bias', 'patch_norm', only=(True,))
  c.ignore('ape', 'use_cpe', only=(False,))
  c.ignore('qk_scale', only=(None,))
  patch_sizes = tuple(c.get('patch_size', (4, 8, 16, 32)))
  if patch_sizes[0] != 4:
    raise arguments.ArgumentError(f'patch_size is {patch_sizes}; the first one, the stride, is 4')
  depths, width = tuple(c.get('depths', (2, 2, 6, 2))), c.get('embed_dim', 96)
  stages = len(depths)
  widths = tuple(width * 2**s for s in range(stages))
  heads = _per_stage(c.get('num_heads', (3, 6, 12, 24)), stages)
  merging = c.get('merge_size', [[2, 4]] * (stages - 1))
  if fields.get('backbone'):
    # Dense predictors take these words, too, and do nothing with them.
    c.ignore('pad_type', 'no_mask')
  else:
    fields['center_padding'] = c.get('pad_type', 0) == 1
    fields['mask_padding'] = not c.get('no_mask', False)
  side = c.get('img_size', 224)  # Growing group sizes are of this size, whatever the images'.
  return crossformer.CrossFormer(
    image_size=tuple(side) if isinstance(side, Sequence) else (side, side),
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
    **fields,
  )


def long_distance(manifest: Manifest) -> str:
  """How far long distance attention goes in a dense predictor: as in the code that it is of.

  Cases that do not say it are of the latest code, or of the branch `crossformer` that came before.
  """
  before = 'branch crossformer' in manifest['reference']
  return manifest['constructor'].get('lda', 'global' if before else 'region')


def _model_adapter(manifest: Manifest, module: crossformer.CrossFormer) -> adapters.Adapter:
  described = rules.describe(module)
  return adapters.module_adapter(
    manifest, module, rules=described.rules, call=described.call, taps=described.taps
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
