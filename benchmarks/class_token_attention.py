r"""Class-token cross-attention: projecting all tokens to keys and values, or folding (section 3.3).

  python -m benchmarks.class_token_attention --json=/tmp/class_token_attention.json

Prints, for the token counts and widths of the published models and for the class token alone, the
time of the forward pass and of its gradient in both forms, which take turns in one process, and
what `cross_attention.folding_pays` says. A ratio above 1 means that folding is faster.
"""

import argparse
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
from rich import console, table

from crossattn_jax.attention import cross_attention

# tokens, width, heads: the two directions of tiny, small, 18 and base at 240, of 18 at 408, and a
# class token that attends to nothing but itself.
CASES = (
  (197, 192, 3),
  (401, 96, 3),
  (197, 384, 6),
  (401, 192, 6),
  (197, 448, 7),
  (401, 224, 7),
  (197, 768, 12),
  (401, 384, 12),
  (577, 448, 7),
  (1157, 224, 7),
  (1, 96, 3),
  (1, 384, 6),
)
FORMS = ('projected', 'folded')


def _functions(form: str, tokens: int, width: int, heads: int, batch: int):
  """Returns compiled forward and gradient functions without arguments."""
  module = cross_attention.ClassTokenAttention(heads, form=form)
  x = jax.random.normal(jax.random.key(0), (batch, tokens, width))
  variables = module.init(jax.random.key(1), x)
  forward = jax.jit(lambda v, x: module.apply(v, x)[0])
  gradient = jax.jit(jax.grad(lambda v, x: jnp.sum(module.apply(v, x)[0]), argnums=(0, 1)))
  return lambda: forward(variables, x), lambda: gradient(variables, x)


def measure(tokens: int, width: int, heads: int, batch: int, rounds: int) -> dict:
  functions = {form: _functions(form, tokens, width, heads, batch) for form in FORMS}
  times = {(form, kind): [] for form in FORMS for kind in range(2)}
  for round_ in range(rounds + 1):
    for (form, kind), samples in times.items():
      start = time.perf_counter()
      jax.block_until_ready(functions[form][kind]())
      if round_ > 0:  # the first compiles
        samples.append(time.perf_counter() - start)
  seconds = {key: statistics.median(samples) for key, samples in times.items()}
  result = {'tokens': tokens, 'width': width, 'heads': heads, 'batch': batch}
  for kind, name in enumerate(('forward', 'gradient')):
    for form in FORMS:
      result[f'{name}_{form}_ms'] = 1e3 * seconds[form, kind]
    result[f'{name}_ratio'] = seconds['projected', kind] / seconds['folded', kind]
  result['folding_pays'] = cross_attention.folding_pays(tokens, width, heads)
  return result


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--rounds', type=int, default=30)
  parser.add_argument('--json', type=pathlib.Path)
  args = parser.parse_args()
  columns = ('forward_ratio', 'gradient_ratio', 'forward_folded_ms', 'gradient_folded_ms')
  report = table.Table('tokens', 'width', 'heads', *columns, 'folding pays')
  results = []
  for case in CASES:
    row = measure(*case, args.batch, args.rounds)
    results.append(row)
    report.add_row(*map(str, case), *(f'{row[c]:.2f}' for c in columns), str(row['folding_pays']))
  console.Console().print(f'{jax.devices()[0].device_kind}, batch {args.batch}', report)
  if args.json:
    args.json.write_text(json.dumps(results, indent=2))


if __name__ == '__main__':
  main()
