"""Sharding constraints on activations, by logical axis name."""

import jax
from jax.sharding import PartitionSpec

# What each logical axis is split over.
LOGICAL_AXES = {
  'batch': ('data', 'fsdp'),
  'height': ('sequence',),
  'width': (),
  'tokens': ('sequence',),
  'heads': ('tensor',),
  'hidden': ('tensor',),
  'channels': (),
}


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Constrains the sharding of an activation under the ambient mesh (`jax.set_mesh`).

  Args:
    x: an activation.
    names: one logical axis per dimension: 'batch', 'height', 'width', 'tokens', 'heads', 'hidden'
      (of an MLP), 'channels', or None. Mesh axes whose size does not divide the dimension are left
      out.

  Returns:
    `x`, unchanged where no mesh of this library is ambient.

  Raises:
    ValueError: the number of names is not the rank, or a name is not known.
  """
  if len(names) != x.ndim:
    raise ValueError(f'{len(names)} logical axes {names} for an array of shape {x.shape}')
  unknown = [name for name in names if name is not None and name not in LOGICAL_AXES]
  if unknown:
    raise ValueError(f'unknown logical axis {unknown[0]!r}; known: {", ".join(LOGICAL_AXES)}')
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or not set(mesh.auto_axes):
    return x
  spec = []
  for size, name in zip(x.shape, names, strict=True):
    axes = []
    for axis in LOGICAL_AXES.get(name, ()):
      # Inside shard_map the manual axes are already split.
      if axis in mesh.auto_axes and size % mesh.shape[axis] == 0 and mesh.shape[axis] > 1:
        axes.append(axis)
        size //= mesh.shape[axis]
    spec.append(tuple(axes) or None)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))
