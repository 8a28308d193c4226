"""A stack of equal blocks as one loop: the compiler sees one block, however many there are."""

from collections.abc import Callable, Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

_RNGS = ('dropout', 'drop_path')


def scan_blocks(
  stack: nn.Module,
  make_block: Callable[[jax.Array | float], nn.Module],
  names: Sequence[str],
  drop_path_rates: Sequence[float],
  x: jax.Array,
  train: bool = False,
  *,
  remat: bool = False,
) -> jax.Array:
  """Applies submodules of equal structure one after the other, as a `jax.lax.scan`.

  The submodules keep their own names and parameters, so checkpoints know nothing of the loop: the
  parameters are stacked when the loop starts. The submodules must exist already: initialise them by
  calling them. Random bits differ from those of submodules that are called.

  Args:
    stack: the module that has the submodules; called from its compact method.
    make_block: a submodule with a given drop path rate, created with `parent=None`; it maps
      `(x, train)` to an array like x and has parameters only.
    names: of the submodules, in order.
    drop_path_rates: one per submodule.
    x: what the first one gets.
    train: passed to each.
    remat: whether the backward pass recomputes each submodule.

  Returns:
    What the last one returns.
  """
  parameters = [stack.get_variable('params', name) for name in names]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parameters)
  keys = {
    name: jax.random.split(stack.make_rng(name), len(names))
    for name in _RNGS
    if train and stack.has_rng(name)
  }
  drops = train and any(drop_path_rates)
  rates = jnp.asarray(drop_path_rates, jnp.float32) if drops else None

  def step(x, inputs):
    params, rngs, rate = inputs
    block = make_block(rate if drops else 0.0)
    return block.apply({'params': params}, x, train, rngs=rngs), None

  if remat:
    # The loop's iterations are computed one by one in any case: no barrier is needed.
    step = jax.checkpoint(step, prevent_cse=False)
  return jax.lax.scan(step, x, (stacked, keys, rates))[0]
