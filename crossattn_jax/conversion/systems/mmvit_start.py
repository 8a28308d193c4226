"""Weights of MViT for MMViT to start from."""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util
import numpy as np

from crossattn_jax.conversion import convert, correspondence
from crossattn_jax.conversion import mapping as mapping_lib
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.rules import affine, norm
from crossattn_jax.conversion.systems import mmvit as rules_lib
from crossattn_jax.models import registry


def _mvit_rules(depths: tuple[int, ...]) -> list[Rule]:
  """The rules between a checkpoint of facebookresearch/mvit and the fine view."""
  paths = []
  for s, depth in enumerate(depths):
    paths += [(f'stage_{s}/block_{b}', False) for b in range(depth)]
    paths += [(f'scale_{s}', True)] if s < len(depths) - 1 else []
  rules = [
    *affine('patch_embed.proj', 'patches_0', 'conv'),
    Rule('cls_token', 'embedding_0/class_token', 'unbatched'),
    *norm('norm', 'norm'),
    *affine('head.projection', 'head'),
    Rule('blocks.{i}.attn.rel_pos_{axis:h|w|t}', None),
  ]
  for i, (path, scaled) in enumerate(paths):
    if not scaled:
      # MViTv2 pools the queries of every block; here only where the map shrinks.
      rules += [
        Rule(f'blocks.{i}.attn.pool_q.weight', None),
        Rule(f'blocks.{i}.attn.norm_q.{{leaf:weight|bias}}', None),
      ]
    rules += prefixed(rules_lib.MVIT_BLOCK, f'blocks.{i}.', f'{path}/view_0/')
  return rules


def warm_start(
  name: str, state: Mapping[str, np.ndarray], seed: int = 0, **overrides: Any
) -> convert.Conversion:
  """Starts the fine view of an MMViT from a checkpoint of facebookresearch/mvit.

  Blocks at which MViTv2 changes the stage become the scaled blocks. Its relative positions and the
  pooling of queries in other blocks have no place here and are dropped; the coarse view and the
  blocks across the views are initialised, and change nothing at the start (`cross_zero_init`).

  Args:
    name: of a registered model as wide and as deep as the checkpoint: a `depths` of n numbers has
      sum(depths) + n - 1 blocks.
    state: as `reading.read_checkpoint` finds it.
    seed: of the initialisation.
    **overrides: of `create_model`. A classifier with another number of classes is initialised.

  Returns:
    A conversion; its `save` writes a file for `config.weights`.

  Raises:
    MappingError: the checkpoint is not of MViT or has other widths or depths, by key.
  """
  overrides = {'cross_zero_init': True, **overrides}
  module = registry.create_model(name, **overrides)
  described = correspondence.describe_model(name, module)
  template = correspondence.model_template(module, described.call, described.inputs)
  flat = traverse_util.flatten_dict(template['params'], sep='/')
  rules = _mvit_rules(module.depths)
  given, lines, problems = {}, {}, []
  for key, value in state.items():
    rule = next((rule for rule in rules if rule.drops(key) or rule.path_of(key)), None)
    path = None if rule is None else rule.path_of(key)
    shape = tuple(np.shape(value))
    if rule is None or (path is not None and path not in flat):
      problems.append(f'unexpected: {key} {shape}')
      continue
    wanted = None if path is None else tuple(rule.layout.torch_shape(flat[path].shape))
    if path is None or (path.startswith('head/') and shape != wanted):
      lines[key] = convert.Line(key, shape, '', (), 'dropped')
    elif shape != wanted:
      problems.append(f'misshapen: {key} is {shape}, expected {wanted}')
    else:
      given[path] = np.asarray(rule.layout.to_flax(value, flat[path].shape), flat[path].dtype)
      lines[path] = convert.Line(key, shape, path, flat[path].shape, rule.layout.name)
  for rule_path in ('patches_0/kernel', *(path for path in flat if '/view_0/' in path)):
    if rule_path not in lines:
      problems.append(f'missing: a key for {rule_path}')
  if problems:
    raise mapping_lib.MappingError(
      f'the checkpoint does not fit the fine view of {name} ({len(problems)} problems):\n  '
      + '\n  '.join(problems)
    )
  fresh = [path for path in flat if path not in given]
  for path in fresh:
    lines[path] = convert.Line('', (), path, flat[path].shape, 'new: freshly initialised')
  arrays = correspondence.initialise(
    module, described.call, described.inputs, [f'params/{path}' for path in fresh], seed
  ) | {f'params/{path}': x for path, x in given.items()}
  variables = traverse_util.unflatten_dict(arrays, sep='/')
  return convert.Conversion(name, overrides, variables, tuple(lines.values()))
