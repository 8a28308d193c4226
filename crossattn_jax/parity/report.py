"""Prints and saves what the parity tools found."""

from collections.abc import Iterable, Sequence
import dataclasses
import json
import math
import pathlib
from typing import Any

import rich.console
import rich.table
import rich.text

from crossattn_jax.parity import replay


def number(x: float | None) -> str:
  """A figure for a table; '-' where there is none."""
  return '-' if x is None else f'{x:.2e}'


class Printer:
  """Tables with rich on a terminal, plain aligned columns elsewhere (logs, pipes).

  Attributes:
    console: where everything is printed.
  """

  def __init__(self, console: rich.console.Console | None = None):
    self.console = console or rich.console.Console(highlight=False)

  def line(self, text: str, style: str | None = None) -> None:
    """Prints a line as it is."""
    self.console.print(rich.text.Text(text, style=style or ''), soft_wrap=True)

  def table(
    self,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    failed: Sequence[bool] = (),
  ) -> None:
    """Prints rows of text; those that `failed` marks stand out."""
    rows = list(rows)
    if self.console.is_terminal:
      table = rich.table.Table(box=None, pad_edge=False, header_style='bold')
      for i, name in enumerate(header):
        table.add_column(name, overflow='fold' if i == 0 else 'ellipsis')
      for i, row in enumerate(rows):
        table.add_row(*map(rich.text.Text, row), style='red' if failed and failed[i] else None)
      self.console.print(table)
      return
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
      self.line(
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
      )


def print_result(printer: Printer, result: replay.Result) -> None:
  """Prints a replayed case: a heading and a row per array."""
  printer.line(_heading(result), style='bold' if result.passed else 'bold red')
  if result.error:
    printer.line(f'  {result.error}')
  if result.rows:
    printer.table(
      ('  array', 'error', "PyTorch's", 'bound', 'verdict', ''),
      [
        (
          f'  {row.array}',
          number(row.error),
          number(row.torch_error),
          number(row.bound),
          'pass' if row.passed else 'FAIL',
          row.note,
        )
        for row in result.rows
      ],
      failed=[not row.passed for row in result.rows],
    )


def _heading(result: replay.Result) -> str:
  verdict = 'passed' if result.passed else 'FAILED'
  return f'{result.case} {result.precision}: {verdict} in {result.seconds:.1f} s'


def print_summary(printer: Printer, result: replay.Result) -> None:
  """Prints a replayed case as one line: its heading, and how near its arrays are to the bound."""
  told = [_heading(result)]
  if result.error:
    told.append(' '.join(result.error.split()))
  failed = [row.array for row in result.rows if not row.passed]
  if result.rows:
    told.append(f'{len(result.rows) - len(failed)} of {len(result.rows)} arrays pass')
  shares = [
    (row.error / row.bound, row.array)
    for row in result.rows
    # Of a gradient that is zero in exact arithmetic, the relative error says nothing.
    if row.error and row.bound and not (row.passed and row.error > row.bound)
  ]
  if shares:
    told.append('at most {:.0%} of the bound ({})'.format(*max(shares)))
  printer.line(', '.join(told), style=None if result.passed else 'red')


def count_cases(results: Iterable[replay.Result]) -> tuple[int, int]:
  """(passed, failed) cases; a case passes where it passes in every precision it ran in."""
  verdicts: dict[str, bool] = {}
  for result in results:
    verdicts[result.path] = verdicts.get(result.path, True) and result.passed
  passed = sum(verdicts.values())
  return passed, len(verdicts) - passed


def _plain(x: Any) -> Any:
  # JSON has no infinities.
  if isinstance(x, dict):
    return {key: _plain(value) for key, value in x.items()}
  if isinstance(x, (list, tuple)):
    return [_plain(value) for value in x]
  return str(x) if isinstance(x, float) and not math.isfinite(x) else x


def write_json(path: str | pathlib.Path, content: Any) -> None:
  """Writes plain values as JSON; figures that are not finite become strings."""
  text = json.dumps(_plain(content), indent=1, allow_nan=False)
  pathlib.Path(path).write_text(text + '\n', encoding='utf-8')


def results_to_json(results: Sequence[replay.Result]) -> dict[str, Any]:
  """The results of a replay as plain values."""
  passed, failed = count_cases(results)
  return {
    'passed': passed,
    'failed': failed,
    'results': [{**dataclasses.asdict(result), 'passed': result.passed} for result in results],
  }


def print_comparison(printer: Printer, comparison: Any) -> None:
  """Prints a `compare.Comparison`: a row per layer in execution order, then the verdict."""
  printer.table(
    ('layer', 'error', "PyTorch's", 'bound', 'verdict', 'Flax module'),
    [
      (
        layer.name,
        number(layer.error),
        number(layer.torch_error),
        number(layer.bound),
        'pass' if layer.passed else 'FAIL',
        layer.path or '-',
      )
      for layer in comparison.layers
    ],
    failed=[not layer.passed for layer in comparison.layers],
  )
  if comparison.without_counterpart:
    printer.line(f'without counterpart: {", ".join(comparison.without_counterpart)}')
  printer.line(
    f'{comparison.name} against {comparison.against}, {comparison.precision}: '
    f'{len(comparison.layers)} layers, worst {number(comparison.worst.error)} at '
    f'{comparison.worst.name}'
  )
  first = comparison.first_outside
  if first is None:
    printer.line('every layer is within the bound')
  else:
    printer.line(
      f'first layer outside the bound: {first.name} ({first.path or "output"}): '
      f'{number(first.error)}, bound {number(first.bound)}',
      style='bold red',
    )


def comparison_to_json(comparison: Any) -> dict[str, Any]:
  """A `compare.Comparison` as plain values."""
  first = comparison.first_outside
  return {
    **dataclasses.asdict(comparison),
    'layers': [
      {**dataclasses.asdict(layer), 'passed': layer.passed} for layer in comparison.layers
    ],
    'first_outside': first.name if first else None,
  }
