"""Boxes, cylinders and ellipsoids that stand upright: rays that hit them, points on them.

What holds for all of them is said of the unit solid, `[-1, 1]` along each axis, of which each one
is an affine image: a ray is a ray again there, and meets it at the same parameter.
"""

import dataclasses

import numpy as np

KINDS = ('box', 'cylinder', 'ellipsoid')
# Directions from which light comes, and its share from everywhere.
_LIGHT, _AMBIENT = np.array([0.36, -0.48, 0.8]), 0.72


@dataclasses.dataclass(frozen=True)
class Solid:
  """A solid.

  Attributes:
    kind: one of `KINDS`; the axis of a cylinder is z.
    center: x, y, z in metres.
    half: half its extents along its own axes, in metres.
    yaw: by which it is turned about z, in radians.
    color: red, green, blue of 0 to 1.
    second: the other colour of a pattern, if it has one.
    period: of the pattern along its own x and y, in metres; 0 where there is none.
    grain: how much its colour varies from point to point.
    label: class; -1 where there is none.
    piece: number of the thing that it is a part of.
  """

  kind: str
  center: tuple[float, float, float]
  half: tuple[float, float, float]
  yaw: float = 0.0
  color: tuple[float, float, float] = (0.5, 0.5, 0.5)
  second: tuple[float, float, float] | None = None
  period: tuple[float, float] = (0.0, 0.0)
  grain: float = 0.0
  label: int = -1
  piece: int = 0

  def placed(self, x: float, y: float, yaw: float, **changes) -> 'Solid':
    """The solid after a turn about the origin and a shift."""
    center = _turn(np.array(self.center), yaw) + np.array([x, y, 0.0])
    return dataclasses.replace(self, center=tuple(center), yaw=self.yaw + yaw, **changes)

  def local(self, points: np.ndarray) -> np.ndarray:
    """Maps points `[..., 3]` to its own axes, in metres around its center."""
    return _turn(points - np.array(self.center), -self.yaw)

  def contains(self, points: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """Whether points `[n, 3]` lie inside, more than a margin below the surface."""
    p = np.abs(self.local(points)) / np.maximum(np.array(self.half) - margin, 1e-9)
    if self.kind == 'box':
      return (p < 1).all(axis=-1)
    if self.kind == 'cylinder':
      return (np.hypot(p[..., 0], p[..., 1]) < 1) & (p[..., 2] < 1)
    return np.linalg.norm(p, axis=-1) < 1

  def hit(self, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """How far along rays from one origin `[3]` they enter, in lengths of `directions` `[n, 3]`.

    Infinity where they do not, or start inside.
    """
    half = np.array(self.half)
    start, along = self.local(origin) / half, _turn(directions, -self.yaw) / half
    if self.kind == 'ellipsoid':
      spans = [_round_span(start, along)]
    elif self.kind == 'cylinder':
      spans = [_round_span(start[:2], along[:, :2]), _slab_span(start[2:], along[:, 2:])]
    else:
      spans = [_slab_span(start, along)]
    enters = np.maximum.reduce([span[0] for span in spans])
    leaves = np.minimum.reduce([span[1] for span in spans])
    return np.where((enters < leaves) & (enters > 0), enters, np.inf)

  def sample(self, rng: np.random.Generator, per_area: float) -> np.ndarray:
    """Random points `[n, 3]` on its surface, about `per_area` a square metre."""
    x, y, z = self.half
    if self.kind == 'box':
      areas = 4 * np.array([y * z, y * z, x * z, x * z, x * y, x * y])
    elif self.kind == 'cylinder':
      areas = np.pi * np.array([4 * z * np.sqrt(x * y), x * y, x * y])
    else:
      areas = 4 * np.pi * np.array([np.mean([x * y, y * z, x * z])])
    counts = rng.poisson(areas * per_area)
    faces = np.repeat(np.arange(len(counts)), counts)
    unit = rng.uniform(-1, 1, (len(faces), 3))
    if self.kind == 'box':
      unit[np.arange(len(faces)), faces // 2] = 1 - 2 * (faces % 2)
    elif self.kind == 'cylinder':
      angle = np.pi * unit[:, 0]
      radius = np.where(faces == 0, 1, np.sqrt((unit[:, 1] + 1) / 2))
      unit[:, 0], unit[:, 1] = radius * np.cos(angle), radius * np.sin(angle)
      unit[faces > 0, 2] = (3 - 2 * faces)[faces > 0]
    else:
      unit = rng.standard_normal((len(faces), 3))
      unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    return _turn(unit * np.array(self.half), self.yaw) + np.array(self.center)

  def shade(self, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The colours `[n, 3]` of points on its surface, light and shadow included."""
    local, half = self.local(points), np.array(self.half)
    color = np.broadcast_to(np.array(self.color), points.shape)
    if self.second is not None:
      steps = [np.floor(local[:, i] / p) for i, p in enumerate(self.period) if p]
      is_second = np.sum(steps, axis=0) % 2 == 1
      color = np.where(is_second[:, None], np.array(self.second), color)
    light = _AMBIENT + (1 - _AMBIENT) * self._normals(local / half) @ _turn(_LIGHT, -self.yaw)
    color = color + self.grain * rng.standard_normal((len(points), 1))
    return np.clip(color * light[:, None], 0, 1)

  def _normals(self, unit: np.ndarray) -> np.ndarray:
    """Of points on the surface of the unit solid, along its own axes."""
    if self.kind == 'ellipsoid':
      normals = unit / np.array(self.half)
    else:
      # The face that a point is nearest to.
      size = np.abs(unit)
      if self.kind == 'cylinder':
        size = np.stack([np.hypot(unit[:, 0], unit[:, 1]), np.zeros(len(unit)), size[:, 2]], -1)
      face = np.argmax(size, axis=-1)
      is_cap = (face == 2)[:, None] * np.array([0, 0, 1.0])
      if self.kind == 'cylinder':
        around = (face != 2)[:, None] * np.array([1.0, 1.0, 0])
      else:
        around = np.eye(3)[face] * np.array([1, 1, 0])
      normals = unit * (is_cap + around)
    return normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)


def _turn(points: np.ndarray, yaw: float) -> np.ndarray:
  """Turns points `[..., 3]` about z, from x to y."""
  cosine, sine = np.cos(yaw), np.sin(yaw)
  x, y = points[..., 0], points[..., 1]
  return np.stack([cosine * x - sine * y, sine * x + cosine * y, points[..., 2]], axis=-1)


def _slab_span(start: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Where rays `[n, axes]` enter and leave the cube."""
  along = np.where(np.abs(along) < 1e-12, 1e-12, along)
  one, other = (-1 - start) / along, (1 - start) / along
  return np.minimum(one, other).max(axis=-1), np.maximum(one, other).min(axis=-1)


def _round_span(start: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Where rays `[n, axes]` enter and leave the ball, or the disc."""
  a = np.maximum((along**2).sum(axis=-1), 1e-12)
  b, c = along @ start, start @ start - 1
  root = np.sqrt(np.maximum(b**2 - a * c, 0))
  misses = b**2 < a * c
  return np.where(misses, np.inf, (-b - root) / a), np.where(misses, -np.inf, (-b + root) / a)
