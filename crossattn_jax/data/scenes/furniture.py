"""Furniture of parts, each piece of another size, colour and make.

Pieces stand on z = 0 around the origin, their back towards +y. Parts are labelled 0, and -1 what
lies on them and belongs to no class.
"""

from collections.abc import Callable
import colorsys

import numpy as np

from crossattn_jax.data.scenes import solids
from crossattn_jax.data.scenes.solids import Color, Solid

Range = tuple[float, float]
_BRASS, _BARK = (0.8, 0.75, 0.5), (0.35, 0.25, 0.15)


def color(
  rng: np.random.Generator,
  hue: Range = (0, 1),
  saturation: Range = (0.1, 0.7),
  value: Range = (0.25, 0.95),
) -> Color:
  """Draws a colour."""
  return colorsys.hsv_to_rgb(*(float(rng.uniform(*each)) for each in (hue, saturation, value)))


def wood_or_paint(rng: np.random.Generator) -> Color:
  """Draws what furniture is made of."""
  return color(rng, (0.05, 0.11), (0.3, 0.7), (0.3, 0.85)) if rng.random() < 0.5 else color(rng)


def darker(paint: Color, share: float = 0.75) -> Color:
  """A share of a colour."""
  return tuple(share * each for each in paint)


def box(x: Range, y: Range, z: Range, paint: Color, label: int = 0, **kwargs) -> Solid:
  """A box by its extents along the axes."""
  low, high = np.transpose([x, y, z])
  center, half = tuple((low + high) / 2), tuple((high - low) / 2)
  return Solid('box', center, half, color=paint, label=label, **kwargs)


def _column(radius: float, z: Range, paint: Color, x=0.0, y=0.0, kind='cylinder') -> Solid:
  """A cylinder or an ellipsoid from one height to another."""
  half = (radius, radius, (z[1] - z[0]) / 2)
  return Solid(kind, (x, y, (z[0] + z[1]) / 2), half, color=paint, label=0)


def _legs(rng: np.random.Generator, x: float, y: float, height: float, paint: Color) -> list[Solid]:
  """Four legs under a plate that reaches as far as x and y."""
  thick, is_round = rng.uniform(0.02, 0.035), rng.random() < 0.5
  legs = []
  for i, j in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
    a, b = i * (x - thick), j * (y - thick)
    if is_round:
      legs.append(_column(thick, (0, height), paint, a, b))
    else:
      legs.append(box((a - thick, a + thick), (b - thick, b + thick), (0, height), paint))
  return legs


def table(rng: np.random.Generator) -> list[Solid]:
  """On four legs or round on one, and up to three things on it."""
  height, paint = rng.uniform(0.65, 0.78), wood_or_paint(rng)
  plate = (height - 0.05, height)
  if rng.random() < 0.35:
    radius = rng.uniform(0.4, 0.6)
    x = y = 0.6 * radius
    parts = [
      _column(radius, plate, paint),
      _column(0.05, (0.04, plate[0]), darker(paint)),
      _column(0.6 * radius, (0, 0.04), darker(paint)),
    ]
  else:
    x, y = rng.uniform(0.45, 0.75), rng.uniform(0.3, 0.45)
    parts = [box((-x, x), (-y, y), plate, paint), *_legs(rng, x, y, plate[0], darker(paint))]
  for _ in range(rng.integers(4)):
    half, at = rng.uniform(0.04, 0.1, 3), rng.uniform(-0.7, 0.7, 2) * (x, y)
    kind, yaw = str(rng.choice(solids.KINDS)), rng.uniform(0, 3)
    paint = color(rng, saturation=(0.3, 0.9))
    parts.append(Solid(kind, (*at, height + half[2]), tuple(half), yaw, paint))
  return parts


def chair(rng: np.random.Generator) -> list[Solid]:
  """Four legs, a seat and a back."""
  half, seat, paint = rng.uniform(0.19, 0.24), rng.uniform(0.42, 0.48), wood_or_paint(rng)
  return [
    box((-half, half), (-half, half), (seat - 0.05, seat), paint),
    box((-half, half), (half - 0.04, half), (seat, seat + rng.uniform(0.4, 0.5)), paint),
    *_legs(rng, half, half, seat - 0.05, darker(paint)),
  ]


def sofa(rng: np.random.Generator) -> list[Solid]:
  """A base, a back, two arms and one or two cushions."""
  x, y, cover = rng.uniform(0.65, 0.95), rng.uniform(0.38, 0.45), color(rng)
  arm, back, seat = rng.uniform(0.12, 0.18), rng.uniform(0.75, 0.9), rng.uniform(0.38, 0.45)
  middle, cushion = rng.choice([0.0, 0.3]) * x, darker(cover, rng.uniform(0.8, 1.05))
  front = (-y, y - 0.2)
  return [
    box((-x, x), (-y, y), (0.04, 0.25), cover),
    box((-x, x), (y - 0.2, y), (0.25, back), cover),
    box((-x, arm - x), front, (0.25, 0.6), cover),
    box((x - arm, x), front, (0.25, 0.6), cover),
    box((arm - x, middle), front, (0.25, seat), cushion),
    box((middle, x - arm), front, (0.25, seat), cushion),
  ]


def bed(rng: np.random.Generator) -> list[Solid]:
  """A frame with a headboard, a mattress and one pillow or two."""
  x, y, frame = rng.uniform(0.45, 0.75), rng.uniform(0.9, 1.0), wood_or_paint(rng)
  cover = color(rng, saturation=(0.05, 0.6), value=(0.4, 0.98))
  pillow = color(rng, saturation=(0.0, 0.3), value=(0.6, 0.98))
  pillows = [0.0] if x < 0.55 else [-x / 2, x / 2]
  return [
    box((-x, x), (-y, y), (0.08, 0.28), frame),
    box((-x, x), (y - 0.05, y), (0.28, rng.uniform(0.75, 1.0)), frame),
    box((0.03 - x, x - 0.03), (0.02 - y, y - 0.05), (0.28, 0.48), cover),
    *(
      Solid('ellipsoid', (at, y - 0.3, 0.5), (0.3, 0.18, 0.09), color=pillow, label=0)
      for at in pillows
    ),
  ]


def shelf(rng: np.random.Generator) -> list[Solid]:
  """Boards between two sides before a back, and books on them."""
  x, y, height = rng.uniform(0.35, 0.6), rng.uniform(0.13, 0.18), rng.uniform(1.4, 1.95)
  paint = wood_or_paint(rng)
  parts = [
    box((-x, 0.03 - x), (-y, y), (0, height), paint),
    box((x - 0.03, x), (-y, y), (0, height), paint),
    box((-x, x), (y - 0.02, y), (0, height), paint),
  ]
  for z in np.linspace(0.05, height - 0.03, int(rng.integers(4, 6))):
    parts.append(box((-x, x), (-y, y), (z, z + 0.03), paint))
    left = 0.05 - x
    while z < height - 0.3 and left < x - 0.15 and rng.random() < 0.8:
      right = min(left + rng.uniform(0.08, 0.25), x - 0.04)
      top, book = z + rng.uniform(0.2, 0.28), color(rng, saturation=(0.3, 0.8))
      parts.append(box((left, right), (0.04 - y, y - 0.03), (z + 0.03, top), book))
      left = right + 0.01
  return parts


def lamp(rng: np.random.Generator) -> list[Solid]:
  """A foot, a pole and a shade."""
  top, metal = rng.uniform(1.35, 1.7), color(rng, saturation=(0, 0.3), value=(0.15, 0.8))
  shade = color(rng, saturation=(0.05, 0.5), value=(0.75, 1.0))
  kind = 'cylinder' if rng.random() < 0.6 else 'ellipsoid'
  return [
    _column(0.15, (0, 0.03), metal),
    _column(0.02, (0.03, top - 0.28), metal),
    _column(rng.uniform(0.16, 0.25), (top - 0.3, top), shade, kind=kind),
  ]


def plant(rng: np.random.Generator) -> list[Solid]:
  """A pot, a stem and leaves."""
  pot, top = rng.uniform(0.2, 0.35), rng.uniform(0.8, 1.4)
  parts = [
    _column(rng.uniform(0.13, 0.2), (0, pot), color(rng)),
    _column(0.02, (pot, top - 0.2), _BARK),
  ]
  for _ in range(rng.integers(4, 8)):
    x, y = rng.normal(0, 0.13, 2)
    center, half = (x, y, rng.uniform(pot + 0.25, top)), tuple(rng.uniform(0.08, 0.2, 3))
    leaf = color(rng, (0.2, 0.42), (0.35, 0.8), (0.25, 0.75))
    parts.append(Solid('ellipsoid', center, half, color=leaf, label=0))
  return parts


def door(rng: np.random.Generator) -> list[Solid]:
  """In a frame, closed or more or less open towards -y; the wall is behind y = 0."""
  frame, paint, half, top = wood_or_paint(rng), wood_or_paint(rng), 0.42, 1.98
  edge, depth = half + 0.07, (-0.07, 0.01)
  angle = rng.choice([0.0, -rng.uniform(0.3, 1.3)])
  leaf = [
    box((0, 2 * half), (-0.04, 0.0), (0.02, top), paint),
    box((2 * half - 0.12, 2 * half - 0.05), (-0.09, -0.04), (0.95, 1.0), _BRASS),
  ]
  return [
    box((-edge, -half), depth, (0, top), frame),
    box((half, edge), depth, (0, top), frame),
    box((-edge, edge), depth, (top, top + 0.07), frame),
    *(part.placed(-half, 0.0, angle) for part in leaf),
  ]


PIECES: dict[str, Callable[[np.random.Generator], list[Solid]]] = {
  'table': table,
  'chair': chair,
  'sofa': sofa,
  'bed': bed,
  'shelf': shelf,
  'lamp': lamp,
  'plant': plant,
}
