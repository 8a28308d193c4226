"""Parameter shardings: ordered (path pattern -> mesh axes) rules with an automatic FSDP fallback.

A path is the parameter's Flax path joined by '/', such as
'encoder_0/branch_1/block_0/mlp/fc1/kernel'.
"""

from collections.abc import Sequence
import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Rule = tuple[str, tuple[str | None, ...]]

# The names are conventions of the whole library (docs/architecture.md), so these serve every model.
# Projections into heads or hidden channels are split by column, those out of them by row, so that
# one all-reduce per sub-layer remains (Megatron-LM, Shoeybi et al. 2019, section 3).
DEFAULT_RULES: tuple[Rule, ...] = (
  (r'.*/qkv/kernel', ('fsdp', None, 'tensor', None)),
  (r'.*/qkv/bias', (None, 'tensor', None)),
  (r'.*/(query|key|value)/kernel', ('fsdp', 'tensor', None)),
  (r'.*/(query|key|value)/bias', ('tensor', None)),
  (r'.*/out/kernel', ('tensor', None, 'fsdp')),
  (r'.*/fc1/kernel', ('fsdp', 'tensor')),
  (r'.*/fc1/kernel', (None, None, 'fsdp', 'tensor')),  # Of maps, a detector's.
  (r'.*/fc1/bias', ('tensor',)),
  (r'.*/fc2/kernel', ('tensor', 'fsdp')),
)


def path_string(path: Sequence[Any]) -> str:
  """Joins a key path of `jax.tree_util` by '/'."""
  return '/'.join(
    str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key)))) for key in path
  )


def leaves_by_path(tree: Any) -> dict[str, Any]:
  """The leaves of a pytree by their paths, such as 'encoder_0/norm/scale', in its order."""
  return {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def partition_spec(
  path: str,
  shape: tuple[int, ...],
  mesh: Mesh,
  rules: Sequence[Rule] = DEFAULT_RULES,
  fsdp_min_size: int = 2**14,
) -> PartitionSpec:
  """The axes over which one parameter is split.

  The first rule whose pattern matches the whole path and whose rank is the parameter's applies; an
  axis that does not divide its dimension is dropped. If `fsdp` is then unused, the largest free
  dimension that it divides is split over it.

  Args:
    path: of the parameter.
    shape: of the parameter.
    mesh: of the run.
    rules: ordered; see `DEFAULT_RULES`.
    fsdp_min_size: parameters with fewer elements are not split over `fsdp`, since gathering them
      costs more than it saves.

  Returns:
    One entry per dimension.

  Raises:
    ValueError: a rule names an axis that the mesh lacks.
  """
  axes: list[str | None] = [None] * len(shape)
  for pattern, rule_axes in rules:
    if len(rule_axes) == len(shape) and re.fullmatch(pattern, path):
      axes = list(rule_axes)
      break
  for dimension, axis in enumerate(axes):
    if axis is None:
      continue
    if axis not in mesh.shape:
      raise ValueError(
        f'sharding rule for {path!r} names axis {axis!r}; the mesh has {mesh.axis_names}'
      )
    if shape[dimension] % mesh.shape[axis]:
      axes[dimension] = None
  small = math.prod(shape) < fsdp_min_size
  if small:
    axes = [None if axis == 'fsdp' else axis for axis in axes]
  elif 'fsdp' not in axes:
    free = [d for d, axis in enumerate(axes) if axis is None and shape[d] % mesh.shape['fsdp'] == 0]
    if free:
      axes[max(free, key=lambda d: shape[d])] = 'fsdp'
  return PartitionSpec(*axes)


def tree_shardings(
  tree: Any, mesh: Mesh, rules: Sequence[Rule] = DEFAULT_RULES, fsdp_min_size: int = 2**14
) -> Any:
  """Shardings of a pytree of parameters.

  Args:
    tree: arrays or `jax.ShapeDtypeStruct`s.
    mesh: of the run.
    rules: tried before `DEFAULT_RULES` by whoever concatenates them; first match wins.
    fsdp_min_size: see `partition_spec`.

  Returns:
    The same pytree of `NamedSharding`.
  """

  def sharding(path: Sequence[Any], leaf: Any) -> NamedSharding:
    return NamedSharding(
      mesh, partition_spec(path_string(path), leaf.shape, mesh, rules, fsdp_min_size)
    )

  return jax.tree_util.tree_map_with_path(sharding, tree)


def shardings_like(tree: Any, params: Any, param_shardings: Any, mesh: Mesh) -> Any:
  """Shardings of a tree that holds copies of the parameter tree, such as an optimizer state.

  A leaf whose path ends with a parameter's path and that has its shape is split like it; every
  other leaf is replicated.

  Args:
    tree: any pytree of arrays or `jax.ShapeDtypeStruct`s.
    params: the parameter tree, likewise.
    param_shardings: its shardings.
    mesh: of the run.

  Returns:
    The pytree of `NamedSharding` in the structure of `tree`.
  """
  known = {}
  for (path, leaf), sharding in zip(
    jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(param_shardings), strict=True
  ):
    known[tuple(path_string(path).split('/'))] = (leaf.shape, sharding)
  everywhere = NamedSharding(mesh, PartitionSpec())

  def sharding(path: Sequence[Any], leaf: Any) -> NamedSharding:
    keys = tuple(path_string(path).split('/'))
    for start in range(len(keys)):
      shape, found = known.get(keys[start:], (None, everywhere))
      if shape == leaf.shape:
        return found
    return everywhere

  return jax.tree_util.tree_map_with_path(sharding, tree)
