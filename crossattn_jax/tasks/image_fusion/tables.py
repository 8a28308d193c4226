"""How good fused images are, in tables, beside the mean of both images."""

from collections.abc import Mapping, Sequence
import csv
import io
from typing import Any

import numpy as np

from crossattn_jax.metrics import image_fusion as metrics

# What the mean of both images is called.
AVERAGE = 'average'


def average(visible: np.ndarray, infrared: np.ndarray) -> np.ndarray:
  """The mean of two images, uint8, rounded: what every fusion should be better than."""
  return np.rint((visible.astype(np.float64) + infrared) / 2).astype(np.uint8)


def row(values: Mapping[str, float]) -> list[float]:
  """The metrics of a pair in the order of `metrics.DIRECTIONS`; NaN where it lacks one."""
  return [values.get(name, np.nan) for name in metrics.DIRECTIONS]


def means(rows: np.ndarray) -> dict[str, float]:
  """Means over the pairs that have a metric, by its name."""
  return {
    name: float(np.mean(column[~np.isnan(column)]))
    for name, column in zip(metrics.DIRECTIONS, rows.T, strict=True)
    if not np.isnan(column).all()
  }


def to_csv(records: Sequence[Mapping[str, Any]]) -> str:
  """A line per pair, with its files and its metrics."""
  file = io.StringIO()
  found = {name for record in records for name in record.get('metrics', {})}
  names = [name for name in metrics.DIRECTIONS if name in found]
  writer = csv.writer(file, lineterminator='\n')
  writer.writerow(['visible', 'infrared', *names])
  for record in records:
    values = record.get('metrics', {})
    writer.writerow([record['visible'], record['infrared'], *(values.get(n, '') for n in names)])
  return file.getvalue()


def to_markdown(means: Mapping[str, Mapping[str, float]]) -> str:
  """A table with a row per method; arrows say what is better."""
  names = list(next(iter(means.values())))
  arrows = {'up': '↑', 'down': '↓'}
  lines = [
    '| method | ' + ' | '.join(f'{n} {arrows[metrics.DIRECTIONS[n]]}' for n in names) + ' |',
    '|---' * (len(names) + 1) + '|',
  ]
  for method, values in means.items():
    lines.append(f'| {method} | ' + ' | '.join(f'{values[n]:.4f}' for n in names) + ' |')
  return '\n'.join(lines) + '\n'
