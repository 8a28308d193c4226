"""The device mesh: axes `data`, `fsdp`, `tensor`, `sequence`.

`data` and `fsdp` both split the batch; `fsdp` also splits the parameters and the optimizer state,
`tensor` splits heads and hidden channels, `sequence` splits tokens.
"""

from collections.abc import Sequence
import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

AXES = ('data', 'fsdp', 'tensor', 'sequence')
BATCH_AXES = ('data', 'fsdp')


def create_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  sequence: int = 1,
  *,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """Arranges devices in a mesh with the axes of this library.

  Args:
    data: devices along each axis; at most one axis may be -1, which takes what the others leave.
    fsdp: see `data`.
    tensor: see `data`.
    sequence: see `data`.
    devices: all devices of all processes by default; pass those of a topology to compile for it.

  Returns:
    A mesh whose neighbouring devices are near in the interconnect. Axes are `AxisType.Auto`.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.

  Examples:
    >>> dict(create_mesh(data=2, fsdp=2, devices=jax.devices()[:4]).shape)
    {'data': 2, 'fsdp': 2, 'tensor': 1, 'sequence': 1}
  """
  devices = jax.devices() if devices is None else devices
  sizes = {'data': data, 'fsdp': fsdp, 'tensor': tensor, 'sequence': sequence}
  shown = ', '.join(f'{axis}={size}' for axis, size in sizes.items())
  free = [axis for axis, size in sizes.items() if size == -1]
  if any(size < 1 and size != -1 for size in sizes.values()) or len(free) > 1:
    raise ValueError(f'mesh {shown}: sizes are positive, at most one of them is -1 (the rest)')
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if free and len(devices) % fixed == 0:
    sizes[free[0]] = len(devices) // fixed
  if math.prod(sizes.values()) != len(devices):
    raise ValueError(
      f'mesh {shown} does not fit {len(devices)} devices: the sizes must multiply to '
      f'{len(devices)}; set one of them to -1 to take the rest'
    )
  return jax.make_mesh(
    tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of a value that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of an array whose first dimension is the batch."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def process_block(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
  """Which block of each global batch a process loads.

  Processes that share their rows (a `tensor` or `sequence` axis across hosts) load the same block.

  Args:
    mesh: of the run.
    process: this one by default.

  Returns:
    The block's index and the number of blocks.

  Raises:
    ValueError: the mesh gives this process rows that are neither its own nor shared as a whole.
  """
  process = jax.process_index() if process is None else process
  batch_devices = mesh.devices.reshape(-1, mesh.shape['tensor'] * mesh.shape['sequence'])
  rows: dict[int, set[int]] = {}
  for row, devices in enumerate(batch_devices):
    for device in devices:
      rows.setdefault(device.process_index, set()).add(row)
  blocks = sorted({tuple(sorted(owned)) for owned in rows.values()})
  if len({len(block) for block in blocks}) > 1 or sum(map(len, blocks)) != len(batch_devices):
    raise ValueError(
      f'mesh {dict(mesh.shape)} splits the batch across processes unevenly: choose data * fsdp so '
      'that every host holds whole, equally many rows'
    )
  return blocks.index(tuple(sorted(rows[process]))), len(blocks)


def global_batch(batch: Any, mesh: Mesh) -> Any:
  """Assembles the global batch from the rows that this process loaded.

  Args:
    batch: pytree of numpy arrays `[batch / count, ...]`, the block that `process_block` names.
    mesh: of the run.

  Returns:
    The same pytree of global arrays `[batch, ...]`, split over the batch axes of the mesh.
  """
  sharding = batch_sharding(mesh)

  def place(rows: np.ndarray) -> jax.Array:
    return jax.make_array_from_process_local_data(sharding, rows)

  return jax.tree.map(place, batch)
