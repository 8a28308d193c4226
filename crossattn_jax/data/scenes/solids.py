"""Boxes, cylinders and ellipsoids that stand upright: rays that hit them, points on them.

Each is an affine image of a unit solid that reaches from -1 to 1 along each axis. Lines stay lines:
a ray meets it where its image meets the unit solid.
"""

import dataclasses

import numpy as np

KINDS = ('box', 'cylinder', 'ellipsoid')
Color = tuple[float, float, float]
# Where light comes from, and the share that comes from everywhere.
_LIGHT, _AMBIENT = np.array([0.36, -0.48, 0.8]), 0.72
_TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class Solid:
  """A solid.

  Attributes:
    kind: one of `KINDS`; a cylinder's axis is z.
    center: x, y, z in metres.
    half: half its extents along its own axes, in metres.
    yaw: by which it is turned about z, from x to y, in radians.
    color: red, green, blue of 0 to 1.
    second: the other colour of stripes or tiles.
    period: how wide these are along its own x and y, in metres; 0 where it does not change.
    grain: standard deviation of its brightness from point to point.
    label: its class; -1 if it has none.
  """

  kind: str
  center: tuple[float, float, float]
  half: tuple[float, float, float]
  yaw: float = 0.0
  color: Color = (0.5, 0.5, 0.5)
  second: Color | None = None
  period: tuple[float, float] = (0.0, 0.0)
  grain: float = 0.0
  label: int = -1

  def placed(self, x: float, y: float, yaw: float) -> 'Solid':
    """The solid after a turn about the origin and then a shift."""
    center = _turn(np.array(self.center), yaw) + np.array([x, y, 0.0])
    return dataclasses.replace(self, center=tuple(center), yaw=self.yaw + yaw)

  def contains(self, points: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """Whether points `[n, 3]` are inside, or no more than a margin outside along an own axis."""
    unit = np.abs(self._local(points) / (np.array(self.half) + margin))
    if self.kind == 'box':
      return np.all(unit < 1, axis=-1)
    if self.kind == 'cylinder':
      return (np.hypot(unit[:, 0], unit[:, 1]) < 1) & (unit[:, 2] < 1)
    return np.linalg.norm(unit, axis=-1) < 1

  def hit(self, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """How far rays from one origin `[3]` go until they enter, in lengths of `directions` `[n, 3]`.

    Infinity if they do not, or start inside.
    """
    half = np.array(self.half)
    start, along = self._local(origin) / half, _turn(directions, -self.yaw) / half
    match self.kind:
      case 'box':
        spans = [_slab_span(start, along)]
      case 'cylinder':
        spans = [_round_span(start[:2], along[:, :2]), _slab_span(start[2:], along[:, 2:])]
      case _:
        spans = [_round_span(start, along)]
    enter = np.max([span[0] for span in spans], axis=0)
    leave = np.min([span[1] for span in spans], axis=0)
    return np.where((enter > 0) & (enter < leave), enter, np.inf)

  def sample(self, rng: np.random.Generator, per_area: float) -> np.ndarray:
    """Random points `[n, 3]` on its surface, about so many on a square metre."""
    x, y, z = self.half
    match self.kind:
      case 'box':
        areas = 4 * np.array([y * z, y * z, x * z, x * z, x * y, x * y])
      case 'cylinder':
        areas = np.pi * np.array([4 * z * np.sqrt(x * y), x * y, x * y])
      case _:
        areas = 4 / 3 * np.pi * np.array([x * y + y * z + x * z])
    counts = rng.poisson(areas * per_area)
    face = np.repeat(np.arange(len(counts)), counts)
    unit = rng.uniform(-1, 1, (len(face), 3))
    match self.kind:
      case 'box':
        unit[np.arange(len(face)), face // 2] = 1 - 2 * (face % 2)
      case 'cylinder':
        angle = np.pi * unit[:, 0]
        radius = np.where(face == 0, 1, np.sqrt(np.abs(unit[:, 1])))
        unit[:, 0], unit[:, 1] = radius * np.cos(angle), radius * np.sin(angle)
        unit[:, 2] = np.choose(face, [unit[:, 2], 1, -1])
      case _:
        unit = rng.standard_normal((len(face), 3))
        unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    return _turn(unit * np.array(self.half), self.yaw) + np.array(self.center)

  def shade(self, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colours `[n, 3]` of 0 to 1 of points on its surface, in the light."""
    local = self._local(points)
    color = np.broadcast_to(self.color, points.shape)
    if self.second is not None:
      steps = sum(np.floor(local[:, i] / width) for i, width in enumerate(self.period) if width)
      color = np.where((steps % 2 == 1)[:, None], self.second, color)
    light = _AMBIENT + (1 - _AMBIENT) * self._normals(local) @ _turn(_LIGHT, -self.yaw)
    grain = self.grain * rng.standard_normal(len(points))
    return np.clip((color + grain[:, None]) * light[:, None], 0, 1)

  def _local(self, points: np.ndarray) -> np.ndarray:
    """Points `[..., 3]` along its own axes, around its center, in metres."""
    return _turn(points - np.array(self.center), -self.yaw)

  def _normals(self, local: np.ndarray) -> np.ndarray:
    """Of points `[n, 3]` on its surface, all along its own axes."""
    unit = local / np.array(self.half)
    match self.kind:
      case 'box':
        normals = unit * np.eye(3)[np.argmax(np.abs(unit), axis=-1)]
      case 'cylinder':
        is_cap = np.abs(unit[:, 2]) > np.hypot(unit[:, 0], unit[:, 1])
        normals = unit * np.where(is_cap[:, None], [0, 0, 1], [1, 1, 0])
      case _:
        normals = unit / np.array(self.half)
    return normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), _TINY)


def _turn(points: np.ndarray, yaw: float) -> np.ndarray:
  """Turns points `[..., 3]` about z, from x to y."""
  cosine, sine = np.cos(yaw), np.sin(yaw)
  x, y, z = np.moveaxis(points, -1, 0)
  return np.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=-1)


def _slab_span(start: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Where rays `[n, axes]` enter and leave what is between -1 and 1 along all axes."""
  along = np.where(np.abs(along) < _TINY, _TINY, along)
  one, other = (-1 - start) / along, (1 - start) / along
  return np.minimum(one, other).max(axis=-1), np.maximum(one, other).min(axis=-1)


def _round_span(start: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Where rays `[n, axes]` enter and leave what is within 1 of the origin."""
  a = np.maximum((along**2).sum(axis=-1), _TINY)
  b, c = along @ start, start @ start - 1
  root = np.sqrt(np.maximum(b**2 - a * c, 0))
  misses = b**2 < a * c
  return np.where(misses, np.inf, (-b - root) / a), np.where(misses, -np.inf, (-b + root) / a)
