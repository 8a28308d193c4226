r"""Self-attention on CPUs: weights kept for the backward pass, or computed again by example.

  JAX_PLATFORMS=cpu python -m benchmarks.cpu_attention

`attention/self_attention.py` picks one of the two from the shapes; this shows both for shapes of
CrossViT and MMViT, in turns within one process: medians, and the ratio kept / again of the rounds
(above 1 computing again is faster). `*` marks what is picked.
"""

import statistics
import time
from unittest import mock

import jax

from crossattn_jax.attention import self_attention
from crossattn_jax.training import host_memory

# batch, queries, keys, heads, channels of a head.
SHAPES = (
  (8, 3137, 197, 1, 48),
  (8, 3921, 393, 1, 48),
  (8, 785, 785, 2, 48),
  (8, 401, 401, 3, 32),
  (8, 197, 197, 6, 64),
  (8, 577, 577, 7, 64),
  (8, 1157, 1157, 7, 32),
  (64, 65, 65, 4, 16),
)
ROUNDS = 9


def with_gradient(again: bool, *arrays: jax.Array):
  """Returns the compiled forward and backward pass of one form."""

  def run(query, key, value, cotangent):
    out, pull = jax.vjp(self_attention.dot_product_attention, query, key, value)
    return out, pull(cotangent)

  choice = mock.patch.object(self_attention, '_compute_scores_again', return_value=again)
  with choice:
    return jax.jit(run).lower(*arrays).compile()


def main() -> None:
  host_memory.keep_freed_memory()  # as main.py does
  print('| batch, queries, keys, heads, width | kept, ms | again, ms | ratio |')
  print('|---|---|---|---|')
  for batch, queries, keys, heads, width in SHAPES:
    rngs = jax.random.split(jax.random.key(0), 4)
    shapes = [(batch, n, heads, width) for n in (queries, keys, keys, queries)]
    arrays = [jax.random.normal(*each) for each in zip(rngs, shapes, strict=True)]
    picked = self_attention._compute_scores_again(*arrays[:2])
    runs = {again: with_gradient(again, *arrays) for again in (False, True)}
    seconds = {again: [] for again in runs}
    for _ in range(ROUNDS):
      for again, run in runs.items():
        start = time.perf_counter()
        jax.block_until_ready(run(*arrays))
        seconds[again].append(time.perf_counter() - start)
    cells = [
      f'{1e3 * statistics.median(each):.3g}{"*" if again == picked else ""}'
      for again, each in seconds.items()
    ]
    ratios = [kept / again for kept, again in zip(*seconds.values(), strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    shape = ', '.join(map(str, (batch, queries, keys, heads, width)))
    print(f'| {shape} | {" | ".join(cells)} | {middle:.2f} ({low:.2f} to {high:.2f}) |')


if __name__ == '__main__':
  main()
