"""Device meshes, parameter sharding rules, activation constraints and multi-host start-up."""

from crossattn_jax.parallel.activations import constrain, map_batch, map_shards
from crossattn_jax.parallel.mesh import (
  AXES,
  BATCH_AXES,
  batch_sharding,
  create_mesh,
  global_batch,
  process_block,
  replicated,
)
from crossattn_jax.parallel.multihost import gather_texts, initialize
from crossattn_jax.parallel.parameters import DEFAULT_RULES, shardings_like, tree_shardings
from crossattn_jax.parallel.peers import watch

__all__ = [
  'AXES',
  'BATCH_AXES',
  'DEFAULT_RULES',
  'batch_sharding',
  'constrain',
  'create_mesh',
  'gather_texts',
  'global_batch',
  'initialize',
  'map_batch',
  'map_shards',
  'process_block',
  'replicated',
  'shardings_like',
  'tree_shardings',
  'watch',
]
