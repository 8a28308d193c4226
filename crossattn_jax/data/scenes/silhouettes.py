"""Silhouettes of shapes, of radius one around the origin: x to the right, y downwards."""

from collections.abc import Callable, Sequence

import numpy as np

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Distance to the edge of a shape, negative inside.

  Args:
    shape: one of `NAMES`.
    x: coordinates to the right.
    y: coordinates downwards.

  Returns:
    At most the distance: beyond corners and seams that of the edges' extensions.

  Raises:
    ValueError: there is no such shape.
  """
  if shape not in _DISTANCES:
    raise ValueError(f'unknown shape {shape!r}; known: {", ".join(NAMES)}')
  return _DISTANCES[shape](x, y)


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  return np.hypot(x, y) - 0.9


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  return np.maximum(np.abs(x), np.abs(y)) - 0.7


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  # The upper corner is at (0, -1).
  sides = 0.5 * np.sqrt(3) * np.abs(x) - 0.5 * y
  return np.maximum(sides, y) - 0.5


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  # Folded into half a sector, in which one edge runs from the tip to an inner corner.
  sector = 2 * np.pi / 5
  angle = np.abs((np.arctan2(x, -y) + sector / 2) % sector - sector / 2)
  radius = np.hypot(x, y)
  inner = 0.45
  edge = np.array([inner * np.cos(sector / 2) - 1, inner * np.sin(sector / 2)])
  edge /= np.hypot(*edge)
  return (radius * np.cos(angle) - 1) * edge[1] - radius * np.sin(angle) * edge[0]


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  return np.abs(np.hypot(x, y) - 0.68) - 0.24


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
  return np.maximum(long - 0.95, short - 0.32)


def _round(x: float, y: float, radius: float, flat: float = 1.0) -> Distance:
  """A disc, or an ellipse `flat` times as high as wide."""
  return lambda right, down: (
    (np.hypot(right - x, (down - y) / flat) - radius) * np.float32(min(flat, 1))
  )


def _box(left: float, top: float, right: float, bottom: float) -> Distance:
  return lambda x, y: np.maximum(
    np.abs(x - np.float32(left + right) / 2) - np.float32(right - left) / 2,
    np.abs(y - np.float32(top + bottom) / 2) - np.float32(bottom - top) / 2,
  )


def _all(*parts: Distance) -> Distance:
  """What lies in all parts."""
  return lambda x, y: np.maximum.reduce([part(x, y) for part in parts])


def _any(*parts: Distance) -> Distance:
  """What lies in one of the parts."""
  return lambda x, y: np.minimum.reduce([part(x, y) for part in parts])


def _not(part: Distance) -> Distance:
  return lambda x, y: -part(x, y)


def _polygon(*corners: Sequence[float]) -> Distance:
  """The inside of a closed line (x, y), (x, y), ..., by the even-odd rule."""

  def of(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.broadcast_arrays(x, y)
    nearest, inside = np.full(x.shape, np.inf, np.float32), np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
      along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
      along = np.clip(along, 0, 1)
      nearest = np.minimum(
        nearest, np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))
      )
      if y0 != y1:
        inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return np.where(inside, -nearest, nearest)

  return of


def _mirrored(*corners: Sequence[float]) -> Distance:
  """A polygon, of whose corners those at the right are given, from top to bottom."""
  return _polygon(*corners, *((-x, y) for x, y in reversed(corners) if x))


def _petals(count: int, radius: float, depth: float) -> Distance:
  """A disc whose edge goes in and out `count` times."""
  angle = np.linspace(0, 2 * np.pi, 8 * count, endpoint=False)
  edge = radius + depth * np.cos(count * angle)
  return _polygon(*zip(edge * np.sin(angle), -edge * np.cos(angle), strict=True))


_DISTANCES: dict[str, Distance] = {
  'disc': _disc,
  'square': _square,
  'triangle': _triangle,
  'star': _star,
  'ring': _ring,
  'cross': _cross,
  'moon': _all(_round(0.1, 0, 0.95), _not(_round(0.55, 0, 0.8))),
  'arrow': _polygon(
    (-0.95, -0.2), (0.15, -0.2), (0.15, -0.62), (0.95, 0), (0.15, 0.62), (0.15, 0.2), (-0.95, 0.2)
  ),
  'heart': _any(
    _round(-0.42, -0.3, 0.48),
    _round(0.42, -0.3, 0.48),
    _mirrored((0, -0.55), (0.84, -0.06), (0, 0.95)),
  ),
  'house': _mirrored((0, -0.95), (0.85, -0.2), (0.6, -0.2), (0.6, 0.8)),
  'tree': _mirrored(
    (0, -1), (0.5, -0.35), (0.22, -0.35), (0.72, 0.4), (0.16, 0.4), (0.16, 0.92)
  ),
  'fish': _any(_round(-0.25, 0, 0.7, 0.6), _polygon((0.2, 0), (0.85, -0.5), (0.85, 0.5))),
  'bolt': _polygon(
    (0.2, -0.9), (-0.5, 0.15), (-0.05, 0.15), (-0.25, 0.95), (0.55, -0.22), (0.1, -0.22),
    (0.45, -0.9),
  ),
  'hourglass': _mirrored((0.58, -0.8), (0.1, 0), (0.58, 0.8)),
  'crown': _mirrored((0, -0.72), (0.35, -0.05), (0.8, -0.58), (0.66, 0.62)),
  'flower': _petals(5, 0.68, 0.27),
  'mushroom': _any(
    _all(_round(0, 0.1, 0.9), _box(-1, -1, 1, 0.05)), _box(-0.24, 0, 0.24, 0.88)
  ),
  'bottle': _mirrored((0.17, -0.98), (0.17, -0.45), (0.44, -0.1), (0.44, 0.88)),
  'cup': _any(
    _box(-0.75, -0.62, 0.3, 0.62), _all(_round(0.4, 0, 0.5), _not(_round(0.4, 0, 0.26)))
  ),
  'drop': _any(_round(0, 0.3, 0.62), _mirrored((0, -1), (0.58, 0.1))),
  'boat': _any(
    _mirrored((0.9, 0.3), (0.55, 0.8)),
    _polygon((0.1, -0.95), (0.1, 0.1), (-0.7, 0.1)),
    _box(-0.06, -0.9, 0.14, 0.4),
  ),
  'key': _any(
    _all(_round(-0.5, 0, 0.45), _not(_round(-0.5, 0, 0.2))),
    _box(-0.1, -0.13, 0.9, 0.13),
    _box(0.65, 0, 0.9, 0.4),
    _box(0.28, 0, 0.48, 0.36),
  ),
  'gear': _petals(8, 0.76, 0.14),
  'horseshoe': _all(
    _any(_round(0, -0.1, 0.75), _box(-0.75, -0.1, 0.75, 0.65)),
    _not(_any(_round(0, -0.1, 0.38), _box(-0.38, -0.1, 0.38, 1))),
  ),
  'dumbbell': _any(
    _round(-0.6, 0, 0.38), _round(0.6, 0, 0.38), _box(-0.6, -0.15, 0.6, 0.15)
  ),
  'leaf': _all(_round(-0.65, 0, 1.1), _round(0.65, 0, 1.1)),
  'cloud': _any(
    _round(-0.5, 0.2, 0.42), _round(-0.1, -0.2, 0.48), _round(0.48, 0.15, 0.45),
    _box(-0.5, 0.1, 0.5, 0.6),
  ),
  'pie': _all(_round(0, 0, 0.92), _not(_polygon((0, 0), (2, -1.3), (2, 1.3)))),
  'zigzag': _polygon(
    (-0.9, -0.35), (-0.3, -0.35), (-0.3, 0.25), (0.3, 0.25), (0.3, -0.7), (0.68, -0.7),
    (0.68, 0.65), (-0.68, 0.65), (-0.68, 0.05), (-0.9, 0.05),
  ),
  'flag': _any(_box(-0.5, -0.86, -0.26, 0.86), _polygon((-0.4, -0.8), (0.85, -0.3), (-0.4, 0.2))),
}  # fmt: skip
NAMES = tuple(_DISTANCES)
