"""CrossViT and its PyTorch originals: IBM/CrossViT (on timm 0.4.12) and timm's own `CrossVit`."""

from collections.abc import Sequence
import contextlib
import functools
import math
from typing import Any

from einops import rearrange
import jax
import jax.numpy as jnp

from crossattn_jax.conversion import correspondence
from crossattn_jax.conversion.layouts import channels_first
from crossattn_jax.conversion.mapping import MappingError, Rule, prefixed
from crossattn_jax.conversion.rules import affine, norm
from crossattn_jax.models import crossvit

# The correspondence of names, from the inside out.


SELF_ATTENTION = [
  *affine('qkv', 'qkv', 'qkv'),
  *affine('proj', 'out', 'linear_heads_in'),
]
CLASS_TOKEN_ATTENTION = [
  *affine('wq', 'query', 'linear_heads_out'),
  *affine('wk', 'key', 'linear_heads_out'),
  *affine('wv', 'value', 'linear_heads_out'),
  *affine('proj', 'out', 'linear_heads_in'),
]
_NORMS_AND_MLP = [
  *norm('norm{n:1|2}', 'norm{n}'),
  *affine('mlp.fc{n:1|2}', 'mlp/fc{n}', 'linear'),
]
TRANSFORMER_BLOCK = [*_NORMS_AND_MLP, *prefixed(SELF_ATTENTION, 'attn.', 'attention/')]
CROSS_ATTENTION_BLOCK = [*_NORMS_AND_MLP, *prefixed(CLASS_TOKEN_ATTENTION, 'attn.', 'attention/')]
PROJECTIONS = [
  *norm('projs.{d}.0', 'projection_{d}/norm'),
  *affine('projs.{d}.2', 'projection_{d}/linear', 'linear'),
  *norm('revert_projs.{d}.0', 'back_projection_{d}/norm'),
  *affine('revert_projs.{d}.2', 'back_projection_{d}/linear', 'linear'),
]
FUSIONS = {
  'cross_attention': [
    *PROJECTIONS,
    *prefixed(CROSS_ATTENTION_BLOCK, 'fusion.{d}.', 'cross_attention_{d}/'),
    *prefixed(CROSS_ATTENTION_BLOCK, 'fusion.{d}.{j}.', 'cross_attention_{d}_{j}/'),
  ],
  'all_attention': [
    *PROJECTIONS,
    *norm('norm1', 'norm'),
    *prefixed(SELF_ATTENTION, 'attn.', 'attention/'),
  ],
  'class_token': PROJECTIONS,
  'pairwise': PROJECTIONS,
  'none': [],
}
_TOKEN_TRANSFORMER = [
  *_NORMS_AND_MLP,
  Rule('attn.qkv.weight', 'qkv/kernel', 'qkv'),
  *affine('attn.proj', 'out', 'linear_heads_in'),
]
_TOKEN_PERFORMER = [
  *norm('norm{n:1|2}', 'norm{n}'),
  Rule('w', 'directions', collection='constants'),
  *affine('kqv', 'kqv', 'linear_heads_out'),
  *affine('proj', 'out', 'linear'),
  *affine('mlp.0', 'mlp/fc1', 'linear'),
  *affine('mlp.2', 'mlp/fc2', 'linear'),
]
PATCH_EMBEDDINGS = {
  'linear': affine('proj', 'conv', 'conv'),
  'conv': [
    *affine('proj.0', 'conv_0', 'conv'),
    *affine('proj.2', 'conv_1', 'conv'),
    *affine('proj.4', 'conv_2', 'conv'),
  ],
  't2t': [
    *prefixed(_TOKEN_TRANSFORMER, 'attention{b:1|2}.', 'token_block_{b}/'),
    *affine('project', 'project', 'linear'),
  ],
  'performer': [
    *prefixed(_TOKEN_PERFORMER, 'attention{b:1|2}.', 'token_block_{b}/'),
    *affine('project', 'project', 'linear'),
  ],
}


def encoder_rules(fusion: str) -> list[Rule]:
  """The rules of one multi-scale encoder."""
  # The other fusions were recorded under a name of their own.
  prefix = '' if fusion == 'cross_attention' else 'fuse.'
  return [
    *prefixed(TRANSFORMER_BLOCK, 'blocks.{d}.{i}.', 'branch_{d}/block_{i}/'),
    *prefixed(FUSIONS[fusion], prefix, 'fusion/'),
  ]


def model_rules(module: crossvit.CrossViT) -> list[Rule]:
  """The rules of a whole model, in the official spelling and in timm's."""
  return [
    *prefixed(
      PATCH_EMBEDDINGS[module.patch_embedding], 'patch_embed.{d}.', 'embedding_{d}/patch_embedding/'
    ),
    Rule('pos_embed.{d}', 'embedding_{d}/position_embedding'),
    Rule('pos_embed_{d}', 'embedding_{d}/position_embedding', spelling='timm'),
    Rule('cls_token.{d}', 'embedding_{d}/class_token'),
    Rule('cls_token_{d}', 'embedding_{d}/class_token', spelling='timm'),
    *prefixed(encoder_rules(module.fusion), 'blocks.{k}.', 'encoder_{k}/'),
    *norm('norm.{d}', 'norm_{d}'),
    *affine('head.{d}', 'head_{d}', 'linear'),
  ]


# Where the original's submodules are found, and in which layout.


def side_by_side(parts: tuple[jax.Array, ...]) -> jax.Array:
  """The projections to query, key and value as the original's one."""
  return jnp.concatenate(parts, axis=-1)


def merged_heads(x: jax.Array) -> jax.Array:
  """From `[batch, tokens, heads, head_dim]` to the original's keys and values."""
  return rearrange(x, 'b n h d -> b n (h d)')


def query_token(x: jax.Array) -> jax.Array:
  """From `[batch, heads, head_dim]` to the original's query of one token."""
  return rearrange(x, 'b h d -> b 1 (h d)')


def _cross_attention_taps(torch: str, flax: str) -> dict[str, correspondence.TapLike | None]:
  """The taps of a cross-attention block, which returns the class token and its weights."""
  return {
    torch: (flax, lambda result: result[0]),
    f'{torch}.attn': (f'{flax}/attention', lambda result: result[0]),
    f'{torch}.attn.wq': (f'{flax}/attention/query', query_token),
    # Keys and values are not computed in the folded form.
    f'{torch}.attn.wk': None,
    f'{torch}.attn.wv': None,
  }


def encoder_taps(
  module: crossvit.encoder.MultiScaleEncoder | crossvit.CrossViT, depths: Sequence[int]
) -> dict[str, correspondence.TapLike | None]:
  """The taps of one multi-scale encoder with `depths` as in `MultiScaleEncoder`."""
  *branch_depths, fusion_depth = depths
  taps = {}
  for d, depth in enumerate(branch_depths):
    taps[f'blocks.{d}'] = f'branch_{d}'
    for i in range(depth):
      taps[f'blocks.{d}.{i}.attn.qkv'] = (
        f'branch_{d}/block_{i}/attention/qkv',
        side_by_side,
      )
    if module.fusion != 'cross_attention':
      continue
    taps[f'projs.{d}'] = f'fusion/projection_{d}'
    taps[f'revert_projs.{d}'] = f'fusion/back_projection_{d}'
    if fusion_depth == 0:
      taps |= _cross_attention_taps(f'fusion.{d}', f'fusion/cross_attention_{d}')
    for j in range(fusion_depth):
      taps |= _cross_attention_taps(f'fusion.{d}.{j}', f'fusion/cross_attention_{d}_{j}')
    if fusion_depth:
      last = f'fusion/cross_attention_{d}_{fusion_depth - 1}'
      taps[f'fusion.{d}'] = (last, lambda result: result[0])
  return taps


def model_taps(module: crossvit.CrossViT) -> dict[str, correspondence.TapLike | None]:
  """The taps of a whole model."""
  taps = {}
  for d in range(len(module.widths)):
    embedding = f'embedding_{d}/patch_embedding'
    taps[f'patch_embed.{d}'] = embedding
    taps[f'norm.{d}'] = f'norm_{d}'
    if module.patch_embedding == 'linear':
      taps[f'patch_embed.{d}.proj'] = (f'{embedding}/conv', channels_first)
    elif module.patch_embedding == 'conv':
      taps[f'patch_embed.{d}.proj'] = (f'{embedding}/conv_2', channels_first)
      for i in range(3):
        taps[f'patch_embed.{d}.proj.{2 * i}'] = (f'{embedding}/conv_{i}', channels_first)
  for k, depths in enumerate(module.depths):
    for torch, tap in encoder_taps(module, depths).items():
      if isinstance(tap, tuple):
        tap = (f'encoder_{k}/{tap[0]}', tap[1])
      elif tap is not None:
        tap = f'encoder_{k}/{tap}'
      taps[f'blocks.{k}.{torch}'] = tap
  return taps


def saved_sizes(module: crossvit.CrossViT, shapes: correspondence.Shapes) -> dict[str, Any]:
  """The image sizes that the position embeddings of a state dict are for, square ones.

  Raises:
    mapping.MappingError: the branches have other widths, or one has as many patches as no square
      image.
  """
  branches = range(len(module.widths))
  saved = [shapes.get(f'pos_embed.{d}', shapes.get(f'pos_embed_{d}')) for d in branches]
  if None in saved:
    return {}
  widths = tuple(shape[-1] for shape in saved)
  first = {'linear': 'patch_embed.0.proj.weight', 'conv': 'patch_embed.0.proj.0.weight'}
  alike = first.get(module.patch_embedding) in shapes
  if widths != tuple(module.widths) and alike:  # Else the keys tell more.
    raise MappingError(
      f'holds a CrossViT of widths={widths}, not {tuple(module.widths)}: give '
      'these, and its num_heads, which no array tells'
    )
  grids = []
  for d, (shape, grid) in enumerate(zip(saved, module.grids(), strict=True)):
    patches = shape[1] - 1
    grids.append(grid if patches == math.prod(grid) else (math.isqrt(patches),) * 2)
    if patches != math.prod(grids[d]):
      raise MappingError(
        f'branch {d} has positions of {patches} patches, which no square image has: say image_size'
      )
  if tuple(grids) == module.grids():
    return {}
  sizes = [
    tuple(side * patch for side in grid)
    for grid, patch in zip(grids, module.patch_sizes, strict=True)
  ]
  told = {'image_size': sizes[0], 'branch_image_sizes': None}
  with contextlib.suppress(ValueError):  # Convolutions need whole patches.
    if module.clone(**told).grids() == tuple(grids):
      return told
  return told | {'branch_image_sizes': tuple(sizes)}


@correspondence.register_models('crossvit', 'crossvit_*')
def describe(module: crossvit.CrossViT) -> correspondence.Correspondence:
  """Says how a registered CrossViT corresponds to the official model and to timm's."""
  branches = range(len(module.widths))
  return correspondence.Correspondence(
    rules=model_rules(module),
    call=correspondence.logits_or_maps,
    inputs={'image': correspondence.image_input(module)},
    taps=model_taps(module),
    heads=[f'head_{d}' for d in branches] if module.num_classes else (),
    fields=functools.partial(saved_sizes, module),
    config={'global_pool': {'token': {}, 'avg': {'global_pool': 'avg'}}},
  )
