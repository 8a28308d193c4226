"""What sketches find is judged for seen and unseen categories apart, sizes by either area."""

import numpy as np
import pytest

from crossattn_jax.data.detection import annotations
from crossattn_jax.tasks.sketch_localization import average_precision

CATEGORIES = ('cat', 'bus')
# Two queries for cats, one for buses, which nobody has learnt: sizes of the files, and objects.
SIZES = [(100, 200), (100, 100), (50, 100)]
BOXES = [[[0, 0, 20, 20], [50, 50, 90, 90]], [[10, 10, 30, 40]], [[0, 0, 30, 30]]]


class Queries:
  """A split of three queries."""

  categories, seen = CATEGORIES, (True, False)

  def __len__(self):
    return 3

  def category(self, index):
    return [0, 0, 1][index]

  def annotations(self, index):
    boxes = np.array(BOXES[index], float)
    count = len(boxes)
    return annotations.Objects(
      SIZES[index],
      boxes,
      labels=np.zeros(count, np.int32),
      crowd=np.zeros(count, bool),
      area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
      ids=np.arange(count),
    )


def evaluate(found, area='file'):
  """Metrics of `(query, box, score)` in two batches, seen at three times their files' sides."""
  parts = []
  for queries in ([2, 0], [1]):
    rows = [[(box, score, 0) for at, box, score in found if at == query] for query in queries]
    padded = [row + [((0, 0, 0, 0), 0, -1)] * (3 - len(row)) for row in rows]
    sizes = np.array([SIZES[query] for query in queries])
    parts.append(
      average_precision.to_rows(
        {
          'index': np.array(queries),
          'original_size': sizes,
          'image_size': 3 * sizes,
          'boxes': np.array([[box for box, _, _ in row] for row in padded], float),
          'scores': np.array([[score for _, score, _ in row] for row in padded], float),
          'labels': np.array([[label for _, _, label in row] for row in padded]),
        }
      )
    )
  rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  return average_precision.evaluate(rows, Queries(), area)


RIGHT = [(query, box, 0.9) for query, boxes in enumerate(BOXES) for box in boxes]


def test_seen_and_unseen_categories_are_judged_apart():
  # All cats are found, no bus, whose query finds something else with more confidence.
  metrics = evaluate([*RIGHT[:3], (2, [60, 10, 90, 40], 0.95)])
  assert metrics['seen_box_ap50'] == metrics['seen_box_ap'] == pytest.approx(1)
  assert metrics['unseen_box_ap50'] == 0
  assert metrics['box_ap/cat'] == pytest.approx(1)
  assert metrics['box_ap/bus'] == 0
  # One class of four objects: the best score is wrong, then come three that are right.
  assert metrics['box_ap50'] == pytest.approx(76 * 0.75 / 101)
  assert {*metrics} <= {*average_precision.names(CATEGORIES)}
  assert average_precision.names(CATEGORIES)[0] == 'box_ap50'


def test_sizes_are_those_in_files_or_in_resized_images():
  found = [x for x in RIGHT if x[1] != [10, 10, 30, 40]]
  in_files, resized = evaluate(found), evaluate(found, 'resized')
  # Sides of 20 x 20, 20 x 30 and 30 x 30 are small, 40 x 40 are not; times three, 20 x 20 to
  # 30 x 30 are medium, and 120 x 120 is large.
  names = ('seen_box_ar_small', 'seen_box_ar_medium', 'seen_box_ar_large')
  shown = [[metrics.get(name) for name in names] for metrics in (in_files, resized)]
  assert shown == [[0.5, 1, None], [None, 0.5, 1]]
  assert (in_files['unseen_box_ar_small'], resized['unseen_box_ar_medium']) == (1, 1)
  assert in_files['box_ap50'] == resized['box_ap50']


def test_the_table_has_a_dash_where_there_is_no_truth():
  metrics = {'box_ap50': 0.5, 'seen_box_ap50': 0.75}
  _, *lines = average_precision.table(metrics).splitlines()
  assert [line.split()[:3] for line in lines] == [
    ['all', '-', '0.500'],
    ['seen', '-', '0.750'],
    ['unseen', '-', '-'],
  ]
