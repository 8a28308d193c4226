"""A stack of equal blocks as one loop: the compiler sees one block, however many there are."""

from collections.abc import Callable, Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_RNGS = ('dropout', 'drop_path')

Rates = Sequence[Any] | jax.Array


def scan_blocks(
  stack: nn.Module,
  make_block: Callable[[Any], nn.Module],
  names: Sequence[str | Sequence[str]],
  drop_path_rates: Rates,
  x: Any,
  *arguments: Any,
  train: bool,
  has_aux: bool = False,
  collections: Sequence[str] = (),
  remat: bool = False,
  remat_policy: Callable[..., bool] | None = None,
) -> Any:
  """Applies submodules of equal structure one after the other, as a `jax.lax.scan`.

  The submodules keep their own names and parameters, so checkpoints know nothing of the loop: the
  parameters are stacked when the loop starts. The submodules must exist already: initialise them by
  calling them. Random bits differ from those of submodules that are called.

  Args:
    stack: the module that has the submodules; called from its compact method.
    make_block: a submodule with one entry of `drop_path_rates`, created with `parent=None`. It has
      parameters and `collections` only, and maps `(x, *arguments)` to arrays like x.
    names: of the submodules, in order. Where one step of the loop is several of them, sequences of
      names, which what `make_block` returns has as 'part_0', 'part_1' and so on.
    drop_path_rates: per submodule a rate, or a sequence of them; may be traced.
    x: arrays that the first one gets.
    *arguments: passed to each.
    train: whether dropout and drop path are on.
    has_aux: whether each returns a pair, x and something else.
    collections: of variables that the submodules have beside parameters, such as 'batch_stats';
      updated where they are mutable. `names` must be strings then.
    remat: whether the backward pass recomputes each submodule.
    remat_policy: what it keeps nevertheless; see `jax.checkpoint_policies`.

  Returns:
    The arrays of the last one; with `has_aux`, and what else they returned, stacked.
  """

  def variables_of(collection: str, name: str | Sequence[str]) -> Any:
    if isinstance(name, str):
      return stack.get_variable(collection, name)
    return {f'part_{i}': variables_of(collection, part) for i, part in enumerate(name)}

  variables = [
    {collection: variables_of(collection, name) for collection in ('params', *collections)}
    for name in names
  ]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *variables)
  mutable = [name for name in collections if stack.is_mutable_collection(name)]
  keys = {
    name: jax.random.split(stack.make_rng(name), len(names))
    for name in _RNGS
    if train and stack.has_rng(name)
  }
  # Rates that are known to be zero stay so: nothing is drawn for them.
  drops = train and (isinstance(drop_path_rates, jax.Array) or bool(np.any(drop_path_rates)))
  rates = jnp.asarray(drop_path_rates, jnp.float32) if drops else None

  def step(x, inputs):
    own, rngs, rate = inputs
    block = make_block(rate if drops else jax.tree.map(lambda _: 0.0, drop_path_rates[0]))
    result, updated = block.apply(own, x, *arguments, rngs=rngs, mutable=mutable)
    x, aux = result if has_aux else (result, None)
    return x, (aux, updated)

  if remat:
    # The loop's iterations are computed one by one in any case: no barrier is needed.
    step = jax.checkpoint(step, prevent_cse=False, policy=remat_policy)
  x, (aux, updated) = jax.lax.scan(step, x, (stacked, keys, rates))
  for collection, after in updated.items():
    for i, name in enumerate(names):
      stack.put_variable(collection, name, jax.tree.map(lambda leaves, i=i: leaves[i], after))
  return (x, aux) if has_aux else x


def can_scan(stack: nn.Module) -> bool:
  """Whether the submodules exist, and nobody asks for the intermediates of each."""
  return not (stack.is_initializing() or stack.is_mutable_collection('intermediates'))
