"""What the masks of a folder of one's own mean: `classes.csv` or `classes.json`."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import csv
import json
import os
import pathlib
from typing import Any

import numpy as np
from PIL import ImageColor

from crossattn_jax.data import pipeline, sources
from crossattn_jax.data.segmentation import label_maps, taxonomies

FILES = ('classes.csv', 'classes.json')
# Masks and values that a proposal is made of.
_SEEN_MASKS, _SHOWN_ROWS = 50, 20
# Of a class: what image files of whole numbers hold.
_LARGEST_VALUE = 2**16 - 1
_EXAMPLE = 'value,name,color\n0,background,#000000\n255,road,#804080'


def find_table(folder: str | os.PathLike[str]) -> pathlib.Path | None:
  """The table of classes in a folder; None where it has none.

  Raises:
    ValueError: it has two.
  """
  found = [path for path in (pathlib.Path(folder, name) for name in FILES) if path.is_file()]
  if len(found) > 1:
    raise ValueError(f'{str(folder)!r} has both {" and ".join(FILES)}; remove one')
  return found[0] if found else None


def missing_table(folder: str | os.PathLike[str], masks: Sequence[str]) -> ValueError:
  """The error for a folder without a table, with one to fill in: a row for what its masks hold."""
  try:
    labels, holds = _labels_in(masks[:_SEEN_MASKS], 'label'), 'value'
  except label_maps.ColorsError:
    labels, holds = _labels_in(masks[:_SEEN_MASKS], 'color'), 'color'
  rows = [f'#{label:06x},' if holds == 'color' else f'{label:g},' for label in sorted(labels)]
  more = f'\n... ({len(rows) - _SHOWN_ROWS} more)' if len(rows) > _SHOWN_ROWS else ''
  path = pathlib.Path(folder, FILES[0])
  return ValueError(
    f'nothing says what the masks in {str(folder)!r} mean: write {str(path)!r}'
    ', the lines below with a name after each comma, but for pixels that are not to count\n'
    + '\n'.join([f'{holds},name', *rows[:_SHOWN_ROWS]])
    + more
  )


def _labels_in(masks: Sequence[str], holds: str) -> set[int]:
  """Labels of the pixels of masks that can be read; raises `label_maps.ColorsError`."""
  labels: set[int] = set()
  for mask in masks:
    with contextlib.suppress(pipeline.UnreadableError):
      labels.update(np.unique(label_maps.decode(pathlib.Path(mask).read_bytes(), holds)).tolist())
  return labels


def read_table(path: pathlib.Path) -> taxonomies.Taxonomy:
  """Reads a table with a row for each value that masks hold.

  Its columns are `value`, `name` and, if wanted, `color`; a JSON file is a list of objects with
  these keys. Without the column `value` masks hold the colours themselves. Classes are in the order
  in which their names come first; several values may be of one class. What has no name is no class.

  Args:
    path: of the file. A colour is '#rrggbb' or a name of CSS; in JSON also a list of three levels.

  Raises:
    ValueError: the file is not of this form; the message says what is wrong in which row.
  """
  labels: dict[int, int] = {}
  colors: dict[str, tuple[int, int, int]] = {}
  names: list[str] = []
  holds = None
  for where, row in _rows(path):
    if not row.keys() <= {'value', 'name', 'color'} or 'name' not in row or len(row) < 2:
      raise ValueError(
        f'{where} has the columns {", ".join(row)}; expected value,name or value,name,color where '
        f'masks hold values, color,name where they hold colours, such as:\n{_EXAMPLE}'
      )
    holds = 'label' if 'value' in row else 'color'
    color = _color(where, row.get('color'))
    label = _value(where, row['value']) if holds == 'label' else _packed(where, color)
    if label in labels:
      raise ValueError(f'{where} repeats the {"value" if holds == "label" else "colour"} of a row')
    name = str(row['name'] or '').strip()
    if name and name not in names:
      names.append(name)
    if name and color is not None:
      colors.setdefault(name, color)
    if name and holds == 'label' and not 0 <= label <= _LARGEST_VALUE:
      raise ValueError(f'{where}: the value {label} of a class is not in 0..{_LARGEST_VALUE}')
    labels[label] = names.index(name) if name else taxonomies.IGNORE_LABEL
  if not names:
    raise ValueError(f'{str(path)!r} names no class; expected rows such as:\n{_EXAMPLE}')
  taxonomies.check_number(len(names), repr(str(path)))
  palette = taxonomies.default_palette(len(names))
  for name, color in colors.items():
    palette[names.index(name)] = color
  return taxonomies.Taxonomy(tuple(names), palette, labels, holds)


def _rows(path: pathlib.Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """Rows by their column, each with what it is called in messages."""
  text = sources.read_text(path)
  if path.suffix == '.json':
    try:
      rows = json.loads(text)
    except json.JSONDecodeError as error:
      raise ValueError(f'{str(path)!r} is not JSON: {error}') from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
      raise ValueError(
        f'{str(path)!r} must be a list of objects, such as [{{"value": 0, "name": "background", '
        '"color": "#000000"}]'
      )
    numbered = list(enumerate(rows))
  else:
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    numbered = [(reader.line_num, row) for row in reader]
    for line, row in numbered:
      if None in row or None in row.values():
        raise ValueError(
          f'{str(path)!r}, line {line} has not as many entries as the first line has columns'
        )
  for number, row in numbered:
    named = {str(key).strip().lower(): value for key, value in row.items()}
    if 'colour' in named:
      named['color'] = named.pop('colour')
    yield f'{str(path)!r}, {"row" if path.suffix == ".json" else "line"} {number}', named


def _value(where: str, text: Any) -> int:
  try:
    return int(text)
  except (TypeError, ValueError) as error:
    raise ValueError(f'{where}: the value {text!r} is no whole number') from error


def _color(where: str, value: Any) -> tuple[int, int, int] | None:
  if value in (None, ''):
    return None
  try:
    color = ImageColor.getrgb(value.strip()) if isinstance(value, str) else tuple(value)
    if len(color) == 3 and color == tuple(np.array(color).astype(np.uint8).tolist()):
      return color
  except (TypeError, ValueError):
    pass
  raise ValueError(f"{where}: the colour {value!r} is none; expected '#rrggbb'")


def _packed(where: str, color: tuple[int, int, int] | None) -> int:
  if color is None:
    raise ValueError(f'{where} has no colour, and there is no column of values')
  return int.from_bytes(bytes(color), 'big')
