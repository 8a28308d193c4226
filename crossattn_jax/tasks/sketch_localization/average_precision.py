"""COCO's average precision of what was found by sketches, of seen and unseen categories apart.

A query is an image and a category; its truths are the objects of that category, and all queries
together are judged as one class, as by the sketch localizer's authors (arXiv 2303.08784).
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from crossattn_jax.metrics import coco
from crossattn_jax.tasks.detection import instances

# Prefixes of the metrics of all queries, of those of seen, and of those of unseen categories.
PARTS = {'all': '', 'seen': 'seen_', 'unseen': 'unseen_'}
AREAS = ('file', 'resized')
_COLUMNS = {
  'AP': 'ap', 'AP50': 'ap50', 'AP75': 'ap75', 'small': 'ap_small', 'medium': 'ap_medium',
  'large': 'ap_large', 'AR100': 'ar100',
}  # fmt: skip


def to_rows(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """What `instances.to_rows` has of some queries; 'scale' is the area of their image as resized.

  Args:
    found: as there, and 'image_size' `[images, 2]`, (height, width) of the image as it was seen.
  """
  scale = np.prod(found['image_size'] / found['original_size'], axis=-1)
  return instances.to_rows(found) | {'scale': scale}


def evaluate(rows: Mapping[str, np.ndarray], source: Any, area: str = 'file') -> dict[str, float]:
  """COCO's metrics of boxes.

  Args:
    rows: of all queries that could be read, as `to_rows` has them.
    source: of the queries, `data.sketch_localization.sources.QuerySource`.
    area: by which an object is small, medium or large: in its 'file', or in the image as 'resized'
      for the network, as by the authors.

  Returns:
    'box_NAME', 'seen_box_NAME' and 'unseen_box_NAME' of the `coco.NAMES`, and 'box_ap/CATEGORY';
    without what no truth defines.
  """
  truths, found, sizes = instances.compared(rows, source, masks=False)
  queries, first = np.unique(rows['seen'], return_index=True)
  if area == 'resized':
    truths = dataclasses.replace(truths, area=truths.area * rows['scale'][first][truths.image])
  category = np.array([source.category(int(query)) for query in queries])
  is_seen = np.asarray(source.seen)[category]
  kept = {'all': np.ones(len(queries), bool), 'seen': is_seen, 'unseen': ~is_seen}
  metrics = {}
  for part, prefix in PARTS.items():
    both = (_of_queries(x, kept[part]) for x in (truths, found))
    results = coco.evaluate(*both, sizes, ['match'])
    metrics |= {f'{prefix}box_{name}': results[name] for name in coco.NAMES if name in results}
  both = (dataclasses.replace(x, label=category[x.image]) for x in (truths, found))
  results = coco.evaluate(*both, sizes, source.categories)
  return metrics | {f'box_{name}': x for name, x in results.items() if name.startswith('ap/')}


def _of_queries(objects: coco.Instances, kept: np.ndarray) -> coco.Instances:
  """The objects of those queries that are kept, bool `[queries]`."""
  rows = kept[objects.image]
  columns = {name: x[rows] for name, x in vars(objects).items() if x is not None}
  return dataclasses.replace(objects, **columns)


def names(categories: Sequence[str]) -> list[str]:
  """The metrics that there may be, the usual one first."""
  of_parts = [f'{prefix}box_{name}' for prefix in PARTS.values() for name in coco.NAMES]
  first = 'box_ap50'
  of_parts.remove(first)
  return [first, *of_parts, *(f'box_ap/{name}' for name in categories)]


def table(metrics: Mapping[str, float]) -> str:
  """A line of metrics of all queries, and of those of seen and of unseen categories.

  A dash is what no truth defines.
  """
  lines = [f'{"categories":<12}' + ''.join(f'{title:>8}' for title in _COLUMNS)]
  for part, prefix in PARTS.items():
    values = [metrics.get(f'{prefix}box_{name}') for name in _COLUMNS.values()]
    shown = ['-' if value is None else f'{value:.3f}' for value in values]
    lines.append(f'{part:<12}' + ''.join(f'{value:>8}' for value in shown))
  return '\n'.join(lines)
