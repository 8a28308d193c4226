"""Lines of SVG drawings: paths and basic shapes, wherever transforms put them."""

from collections.abc import Iterator
import re
from xml.etree import ElementTree

from fontTools.misc import transform as transform_lib
from fontTools.pens import recordingPen, transformPen
from fontTools.svgLib.path import parser, shapes
import numpy as np

_SHAPES = ('path', 'line', 'polyline', 'polygon', 'rect', 'circle', 'ellipse')
_GROUPS = ('svg', 'g', 'a', 'switch')
# What draws something that is no line of this file, and what would make it one.
_UNSUPPORTED = {
  'text': 'turn text into paths (in Inkscape: Path > Object to Path)',
  'image': 'give the picture itself as PNG or JPEG',
  'use': 'unlink clones (in Inkscape: Edit > Clone > Unlink Clone)',
  'foreignObject': 'export the drawing as PNG',
}
# Chords of a curve: of half a circle they are off by 0.1 % of its radius.
_CHORDS = 32
# How many numbers each has.
_TURN = {
  'translate': (1, 2), 'scale': (1, 2), 'rotate': (1, 3), 'skewX': (1,), 'skewY': (1,),
  'matrix': (6,),
}  # fmt: skip


def read(data: bytes) -> list[np.ndarray]:
  """The lines of a drawing, and the outlines of its areas, x to the right and y down.

  What is not shown is left out, and so are areas without an outline that are the whole page.

  Args:
    data: of the file.

  Returns:
    Points x, y, `[n, 2]` of each line.

  Raises:
    ValueError: it is no SVG, or has what is neither a line nor a basic shape.
  """
  try:
    root = ElementTree.fromstring(data)
  except ElementTree.ParseError as error:
    raise ValueError(f'it is no SVG: {error}') from error
  if _tag(root) != 'svg':
    raise ValueError(f'it is no SVG: its outermost element is <{_tag(root)}>')
  lines = []
  for element, transform in _shown(root, transform_lib.Identity):
    lines += _lines(element, transform)
  return lines


def _tag(element: ElementTree.Element) -> str:
  return element.tag.rpartition('}')[2] if isinstance(element.tag, str) else ''


def _style(element: ElementTree.Element, name: str) -> str | None:
  """A property as an attribute or within `style`, which wins."""
  given = re.findall(rf'(?:^|;)\s*{name}\s*:\s*([^;]+)', element.get('style', ''))
  return given[-1].strip() if given else element.get(name)


def _shown(
  element: ElementTree.Element, transform: transform_lib.Transform
) -> Iterator[tuple[ElementTree.Element, transform_lib.Transform]]:
  """The shapes in and below an element, each with its whole transform."""
  tag = _tag(element)
  if tag in _UNSUPPORTED:
    raise ValueError(f'it has <{tag}>, which is no line; {_UNSUPPORTED[tag]}')
  if _style(element, 'display') == 'none' or _style(element, 'visibility') == 'hidden':
    return
  transform = transform.transform(_transform(element.get('transform', '')))
  if tag in _SHAPES and not _is_page(element):
    yield element, transform
  elif tag in _GROUPS:
    for child in element:
      yield from _shown(child, transform)


def _is_page(element: ElementTree.Element) -> bool:
  """Whether it is a rectangle without an outline: what programs put behind a drawing."""
  return _tag(element) == 'rect' and _style(element, 'stroke') in (None, 'none')


def _transform(text: str) -> transform_lib.Transform:
  """The product of a list such as `translate(3) rotate(90, 1, 2)`."""
  result = transform_lib.Identity
  steps = re.findall(r'(\w+)\s*\(([^)]*)\)', text)
  if re.sub(r'(\w+)\s*\(([^)]*)\)', '', text).strip(' ,\n\t'):
    raise ValueError(f'transform={text!r} is not a list of {", ".join(_TURN)}')
  for name, arguments in steps:
    values = [float(x) for x in re.split(r'[\s,]+', arguments.strip())]
    if len(values) not in _TURN.get(name, ()):
      raise ValueError(
        f'transform={text!r} is not a list of {", ".join(_TURN)}, each with its numbers'
      )
    first = values[0]
    if name == 'matrix':
      result = result.transform(values)
    elif name == 'translate':
      result = result.translate(first, *values[1:])
    elif name == 'scale':
      result = result.scale(first, *values[1:])
    elif name == 'rotate':
      x, y = values[1:] or (0, 0)
      result = result.translate(x, y).rotate(np.deg2rad(first)).translate(-x, -y)
    else:
      angle = np.deg2rad(first)
      result = result.skew(*((angle, 0) if name == 'skewX' else (0, angle)))
  return result


def _lines(
  element: ElementTree.Element, transform: transform_lib.Transform
) -> Iterator[np.ndarray]:
  """The lines of one shape."""
  plain = {name: value for name, value in element.attrib.items() if name != 'transform'}
  builder = shapes.PathBuilder()
  try:
    builder.add_path_from_element(ElementTree.Element(element.tag, plain))
    recorded = recordingPen.RecordingPen()
    for path in builder.paths:
      parser.parse_path(path, transformPen.TransformPen(recorded, transform))
  except (ValueError, TypeError, IndexError) as error:
    raise ValueError(f'its <{_tag(element)}> cannot be read: {error}') from error
  points: list[np.ndarray] = []
  for operation, arguments in recorded.value:
    corners = [np.array(point, float) for point in arguments]
    if operation == 'moveTo':
      points = corners
    elif operation == 'lineTo':
      points += corners
    elif operation in ('curveTo', 'qCurveTo'):
      points += _curve([points[-1], *corners])
    else:
      yield np.stack(points + points[:1] * (operation == 'closePath'))


def _curve(corners: list[np.ndarray]) -> list[np.ndarray]:
  """Points of a Bézier curve behind its first one, by de Casteljau's construction."""
  points = []
  for share in np.linspace(0, 1, _CHORDS + 1)[1:]:
    left = np.stack(corners)
    while len(left) > 1:
      left = (1 - share) * left[:-1] + share * left[1:]
    points.append(left[0])
  return points
