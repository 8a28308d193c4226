"""Sharding of activations, by logical axis name."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

# What each logical axis is split over.
LOGICAL_AXES = {
  'batch': ('data', 'fsdp'),
  'height': ('sequence',),
  'width': (),
  'tokens': ('sequence',),
  'heads': ('tensor',),
  'channels': (),
}

# A logical axis, or one of so many parts side by side: ('heads', 4) are the channels of 4 heads.
Name = str | tuple[str, int] | None


def constrain(x: jax.Array, *names: Name) -> jax.Array:
  """Constrains the sharding of an activation under the ambient mesh (`jax.set_mesh`).

  Args:
    x: an activation.
    names: one logical axis per dimension: 'batch', 'height', 'width', 'tokens', 'heads',
      'channels', or None. Mesh axes whose size does not divide the dimension are left out.
      `('heads', 4)` names a dimension that holds the channels of 4 heads, head by head: mesh axes
      must divide the 4.

  Returns:
    `x`, unchanged where no mesh of this library is ambient.

  Raises:
    ValueError: the number of names is not the rank, or a name is not known.
  """
  spec = _partition_spec(x.shape, names)
  return x if spec is None else jax.lax.with_sharding_constraint(x, spec)


def map_shards(
  function: Callable[..., jax.Array],
  *args: jax.Array,
  names: Sequence[Sequence[Name]],
  out_names: Sequence[Name],
) -> jax.Array:
  """Calls a function on each device's part of its arguments (`jax.shard_map`), for kernels.

  The partitioner cannot look into a kernel: left to itself it gathers the arguments and computes
  everything everywhere. The function must treat the named axes as a batch: parts of the arguments
  give the same part of the result.

  Args:
    function: of as many arrays as `args`.
    *args: arrays.
    names: one logical axis or None per dimension of each, as in `constrain`. An axis of one name
      must have one size in all arguments.
    out_names: the same for the result.

  Returns:
    `function(*args)`, called directly where no mesh of this library is ambient.

  Raises:
    ValueError: as `constrain`.
  """
  specs = tuple(_partition_spec(x.shape, axes) for x, axes in zip(args, names, strict=True))
  if None in specs or not any(any(spec) for spec in specs):
    return function(*args)
  split = {
    name: axes
    for spec, argument_names in zip(specs, names, strict=True)
    for axes, name in zip(spec, map(_axis, argument_names), strict=True)
  }
  return jax.shard_map(
    function,
    in_specs=specs,
    out_specs=PartitionSpec(*(split[name] if name else None for name in map(_axis, out_names))),
    axis_names=set(jax.sharding.get_abstract_mesh().auto_axes),
    # Kernels do not say over which axes their results vary.
    check_vma=False,
  )(*args)


def map_batch(function: Callable[..., Any], *args: jax.Array) -> Any:
  """`jax.vmap(function)(*args)`, each device over its own part of the batch.

  For what the partitioner does not split: it sorts and draws for the whole batch on every device,
  and in every round of a loop each device waits for all others.

  Args:
    function: of an example, without collectives.
    *args: `[batch, ...]`.

  Returns:
    What the function returns, arrays or trees of them, `[batch, ...]`.
  """
  return map_shards(
    jax.vmap(function),
    *args,
    names=[('batch', *(None,) * (x.ndim - 1)) for x in args],
    out_names=('batch',),
  )


def _axis(name: Name) -> str | None:
  """The logical axis, without the number of its parts."""
  return name[0] if isinstance(name, tuple) else name


def _partition_spec(shape: Sequence[int], names: Sequence[Name]) -> PartitionSpec | None:
  """The mesh axes of each dimension under the ambient mesh; None without one."""
  if len(names) != len(shape):
    raise ValueError(f'{len(names)} logical axes {names} for an array of shape {tuple(shape)}')
  unknown = [name for name in map(_axis, names) if name is not None and name not in LOGICAL_AXES]
  if unknown:
    raise ValueError(f'unknown logical axis {unknown[0]!r}; known: {", ".join(LOGICAL_AXES)}')
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or not set(mesh.auto_axes):
    return None
  spec = []
  for size, name in zip(shape, names, strict=True):
    axes = []
    if isinstance(name, tuple):
      size = name[1]
    for axis in LOGICAL_AXES.get(_axis(name), ()):
      # Inside shard_map the manual axes are already split.
      if axis in mesh.auto_axes and size % mesh.shape[axis] == 0 and mesh.shape[axis] > 1:
        axes.append(axis)
        size //= mesh.shape[axis]
    spec.append(tuple(axes) or None)
  return PartitionSpec(*spec)
