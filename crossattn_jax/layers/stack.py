"""A stack of blocks: called one after the other, or as a loop of which one step is compiled."""

from collections.abc import Callable, Hashable, Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_RNGS = ('dropout', 'drop_path')

Policy = Callable[..., bool]


def apply_block(
  block: nn.Module, x: Any, *arguments: Any, remat: bool = False, policy: Policy | None = None
) -> Any:
  """Returns `block(x, *arguments)`.

  Args:
    block: created in the compact method that this is called from.
    x: what gradients flow to.
    *arguments: may be anything, such as Python booleans.
    remat: whether the backward pass recomputes what the block computes.
    policy: what it keeps nevertheless; see `jax.checkpoint_policies`.
  """
  call = lambda block, x: block(x, *arguments)
  return (nn.remat(call, policy=policy) if remat else call)(block, x)


def apply_blocks(
  parent: nn.Module,
  make_block: Callable[..., nn.Module],
  drop_path_rates: Sequence[Any] | jax.Array,
  x: Any,
  *arguments: Any,
  name: str = 'block_{}',
  kinds: Sequence[Hashable] | None = None,
  own_arguments: Sequence[tuple[Any, ...]] | None = None,
  has_aux: bool = False,
  scan: bool = False,
  remat: bool = False,
  policy: Policy | None = None,
) -> Any:
  """Applies submodules one after the other; on request those that repeat as a `jax.lax.scan`.

  Submodules keep their names and parameters, so that checkpoints know nothing of the loop: it
  stacks the parameters when it starts. It draws other random bits than submodules that are called.
  Nothing is a loop while the submodules are initialised, or when the intermediates of each are
  asked for.

  Args:
    parent: the module that has the submodules; this is called from its compact method.
    make_block: returns submodule i, from i, its drop path rate, and `name` or `parent` as keyword.
      In a loop it has parameters and running statistics only, and its rate may be traced.
    drop_path_rates: per submodule a rate, or a sequence of them.
    x: arrays that the first one gets; each returns arrays like them.
    *arguments: passed to each behind x.
    name: of the submodules, with a place for i.
    kinds: per submodule; equal ones differ in parameters and rates only. All are equal by default.
    own_arguments: per submodule, passed behind `arguments`; the same where kinds are equal.
    has_aux: whether each returns a pair, x and something else.
    scan: whether submodules that repeat are a loop.
    remat: whether the backward pass recomputes each submodule.
    policy: what it keeps nevertheless; see `jax.checkpoint_policies`.

  Returns:
    The arrays of the last one; with `has_aux`, and a list of what else each returned.
  """
  count = len(drop_path_rates)
  names = [name.format(i) for i in range(count)]
  own = own_arguments or [()] * count
  loop, period = range(0), 1
  if scan and not (parent.is_initializing() or parent.is_mutable_collection('intermediates')):
    loop, period = find_loop(kinds or [None] * count)

  def run(i: int, rate: Any, variables: Any, x: Any, **kwargs: Any) -> Any:
    block = make_block(i, rate, parent=None)
    result, updated = block.apply(variables, x, *arguments, *own[i], **kwargs)
    return (*result, updated) if has_aux else (result, None, updated)

  aux = []
  for i in range(count):
    if i == loop.start and loop:
      x, of_loop = _scan(
        parent,
        [functools.partial(run, j) for j in loop[:period]],
        [names[j] for j in loop],
        drop_path_rates[loop.start : loop.stop],
        x,
        lambda step: jax.checkpoint(step, prevent_cse=False, policy=policy) if remat else step,
      )
      aux += of_loop
    if i not in loop:
      block = make_block(i, drop_path_rates[i], name=names[i])
      result = apply_block(block, x, *arguments, *own[i], remat=remat, policy=policy)
      x, of_block = result if has_aux else (result, None)
      aux.append(of_block)
  return (x, aux) if has_aux else x


def find_loop(kinds: Sequence[Hashable]) -> tuple[range, int]:
  """Finds the repetition in a stack of blocks that leaves the fewest blocks to compile.

  Args:
    kinds: per block.

  Returns:
    The blocks that are a repetition, none if nothing repeats, and how many of them make one period.
  """
  kinds, best, saved = list(kinds), (range(0), 1), 0
  for start in range(len(kinds)):
    for period in range(1, (len(kinds) - start) // 2 + 1):
      stop = start + period
      while kinds[stop : stop + period] == kinds[start : start + period]:
        stop += period
      if stop - start - period > saved:
        best, saved = (range(start, stop), period), stop - start - period
  return best


def _scan(
  parent: nn.Module,
  period: Sequence[Callable[..., Any]],
  names: Sequence[str],
  rates: Sequence[Any] | jax.Array,
  x: Any,
  checkpoint: Callable[[Any], Any],
) -> tuple[Any, list[Any]]:
  """Runs the blocks of a period, again and again, with the variables of the named submodules."""
  variables = [
    {collection: tree[name] for collection, tree in parent.variables.items() if name in tree}
    for name in names
  ]
  mutable = [name for name in variables[0] if parent.is_mutable_collection(name)]
  keys = {
    name: jax.random.split(parent.make_rng(name), len(names))
    for name in _RNGS
    if parent.has_rng(name)
  }
  # Rates that are known to be zero stay so: nothing is drawn for them.
  drops = isinstance(rates, jax.Array) or bool(np.any(rates))
  traced = jnp.asarray(rates, jnp.float32) if drops else None

  def step(x: Any, inputs: Any) -> Any:
    outputs = []
    for part, (run, (own, rngs, rate)) in enumerate(zip(period, inputs, strict=True)):
      x, *output = run(rate if drops else rates[part], own, x, rngs=rngs, mutable=mutable)
      outputs.append(output)
    return x, outputs

  parts = [slice(part, None, len(period)) for part in range(len(period))]
  inputs = [
    (
      jax.tree.map(lambda *leaves: jnp.stack(leaves), *variables[part]),
      *jax.tree.map(lambda leaves, part=part: leaves[part], (keys, traced)),
    )
    for part in parts
  ]
  # The loop's iterations are computed one by one in any case: no barrier is needed.
  x, outputs = jax.lax.scan(checkpoint(step), x, inputs)
  aux = []
  for i, name in enumerate(names):
    time, part = divmod(i, len(period))
    own_aux, updated = jax.tree.map(lambda leaves, time=time: leaves[time], outputs[part])
    for collection, after in updated.items():
      parent.put_variable(collection, name, after)
    aux.append(own_aux)
  return x, aux
