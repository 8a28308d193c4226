"""MMViT beside the module after its specification, and the blocks of facebookresearch/mvit.

There is no official code and no published checkpoint: the rules name the keys of the module that
the recorded cases are of.
"""

import functools
import math
from typing import Any

from crossattn_jax.conversion import correspondence
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.rules import affine, norm
from crossattn_jax.models import mmvit


def _block(attention: str, skip: str, pool: tuple[str, str], view: str = '') -> list[Rule]:
  """The rules of a block.

  Args:
    attention: prefix of the keys of the attention's projections.
    skip: the linear map of the skip path.
    pool: templates of the keys of a pooling's convolution and norm.
    view: appended to the paths of the poolings.
  """
  rules = [
    *norm('norm{n:1|2}', 'norm{n}'),
    *affine(f'{attention}qkv', 'attention/qkv', 'qkv'),
    *affine(f'{attention}proj', 'attention/out', 'linear_heads_in'),
    *affine('mlp.fc{n:1|2}', 'mlp/fc{n}'),
    *affine(skip, 'skip'),
  ]
  for short, long in (('q', 'query'), ('k', 'key'), ('v', 'value')):
    conv, of_norm = (template.replace('*', short) for template in pool)
    path = f'attention/pool_{long}{view}'
    rules += [Rule(f'{conv}.weight', f'{path}/kernel', 'conv'), *norm(of_norm, f'{path}/norm')]
  return rules


BLOCK = _block('', 'skip', ('pool_*.conv', 'pool_*.norm'))
CROSS_BLOCK = _block('', 'skip', ('pool_*.{v}.conv', 'pool_*.{v}.norm'), view='_{v}')
# By the keys of facebookresearch/mvit.
MVIT_BLOCK = _block('attn.', 'proj', ('attn.pool_*', 'attn.norm_*'))
MODEL = [
  Rule('cls_token', 'embedding_0/class_token', 'unbatched'),
  Rule('pos{v}', 'embedding_{v}/positions', 'unbatched'),
  Rule('pos{v}_h', 'embedding_{v}/rows'),
  Rule('pos{v}_w', 'embedding_{v}/columns'),
  Rule('pos{v}_cls', 'embedding_{v}/class_position', 'unbatched'),
  *affine('patch.{v}', 'patches_{v}', 'conv'),
  *prefixed(BLOCK, 'stages.{s}.blocks.{b}.{view}.', 'stage_{s}/block_{b}/view_{view}/'),
  *prefixed(CROSS_BLOCK, 'stages.{s}.cross.', 'cross_{s}/'),
  *prefixed(BLOCK, 'stages.{s}.scale.{view}.', 'scale_{s}/view_{view}/'),
  *norm('norm', 'norm'),
  *affine('head', 'head'),
]


def saved_fields(module: mmvit.MMViT, shapes: correspondence.Shapes) -> dict[str, Any]:
  """The fields of `module` that the shapes of a state dict tell; the image a square one."""
  token = 'cls_token' in shapes
  told: dict[str, Any] = {'global_pool': 'token' if token else 'avg'}
  stride = module.patch_strides[0]
  if 'pos0_h' in shapes:
    grid = shapes['pos0_h'][0], shapes['pos0_w'][0]
    told['positions'] = 'separable'
  elif 'pos0' in shapes:
    patches = shapes['pos0'][1] - token
    grid = (math.isqrt(patches),) * 2
    told['positions'] = 'joint'
    if patches == math.prod(module.grids()[0]):
      grid = module.grids()[0]
  else:
    return told
  if grid != module.grids()[0]:
    told['image_size'] = tuple(side * stride for side in grid)
  return told


@correspondence.register_models('mmvit', 'mmvit_*')
def describe(module: mmvit.MMViT) -> correspondence.Correspondence:
  """Says how a registered MMViT corresponds to the module of the specification."""
  return correspondence.Correspondence(
    rules=MODEL,
    call=correspondence.logits_or_maps,
    inputs={'image': correspondence.image_input(module)},
    heads=('head',) if module.num_classes else (),
    fields=functools.partial(saved_fields, module),
  )
