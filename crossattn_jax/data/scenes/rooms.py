"""Procedural rooms: points with colours and labels, and photographs of the same room.

Rooms differ in what they hold, floors and walls too (open scans leave them out), and colours vary
within every class: neither colour nor what is there in any case tells a class. A room is a function
of (seed, index) alone.
"""

from collections.abc import Callable, Sequence
import colorsys
import dataclasses
from typing import NamedTuple

import numpy as np

from crossattn_jax.data.scenes import solids

CLASS_NAMES = (
  'floor',
  'carpet',
  'wall',
  'door',
  'table',
  'chair',
  'sofa',
  'bed',
  'shelf',
  'lamp',
  'plant',
)
_LABELS = {name: label for label, name in enumerate(CLASS_NAMES)}
_HEIGHT = 2.2
_THICKNESS = 0.05
# Metres of a scanner's error, and of a supervoxel's side.
_SCAN_NOISE, _PATCH = 0.006, 0.9
_COLOR_NOISE = 0.04

Box = Sequence[float]


class Scan(NamedTuple):
  """Points on what a room holds.

  Attributes:
    points: `[n, 3]` float32, metres; z is up.
    colors: `[n, 3]` uint8.
    labels: `[n]` int32 in `CLASS_NAMES`, -1 for clutter.
    supervoxels: `[n]` int32, 0 to their number.
  """

  points: np.ndarray
  colors: np.ndarray
  labels: np.ndarray
  supervoxels: np.ndarray


class Room(NamedTuple):
  """What a room holds.

  Attributes:
    parts: everything in it.
    size: its extents along x and y, in metres, around the origin.
  """

  parts: list[solids.Solid]
  size: tuple[float, float]

  @property
  def tags(self) -> np.ndarray:
    """Which classes there are: `[classes]` bool."""
    return np.isin(np.arange(len(CLASS_NAMES)), [part.label for part in self.parts])


def make_room(seed: int, index: int, pieces: tuple[int, int] = (3, 6), side=(2.4, 3.6)) -> Room:
  """Furnishes a room.

  Args:
    seed: of the set of rooms.
    index: of the room.
    pieces: of furniture, least and most.
    side: of the room, least and most, in metres.
  """
  rng = np.random.default_rng([seed, index])
  width, depth = (round(float(each), 2) for each in rng.uniform(*side, 2))
  parts = _shell(rng, width, depth)
  piece = 10
  names = rng.choice(list(_FURNITURE), int(rng.integers(2, 5)), replace=False)
  wanted = [
    *names,
    *rng.choice(names, max(int(rng.integers(pieces[0], pieces[1] + 1)) - len(names), 0)),
  ]
  placed: list[tuple[float, float, float]] = []
  for name in wanted:
    local = _FURNITURE[name](rng)
    reach = np.max([np.abs(p.center[:2]) + p.half[:2] for p in local], axis=0)
    for _ in range(30):
      yaw = np.pi / 2 * rng.integers(4) + rng.normal(0, 0.12)
      turned = reach if abs(np.cos(yaw)) > 0.7 else reach[::-1]
      room = np.array([width, depth]) / 2 - turned - 0.02
      if (room < 0).any():
        continue
      x, y = rng.uniform(-room, room)
      if rng.random() < 0.7:  # Its back to the wall that is behind it.
        back = np.array([-np.sin(yaw), np.cos(yaw)])
        if abs(back[0]) > abs(back[1]):
          x = np.sign(back[0]) * room[0]
        else:
          y = np.sign(back[1]) * room[1]
      here = (x, y, *turned)
      if all(
        abs(x - a) > turned[0] + c + 0.05 or abs(y - b) > turned[1] + d + 0.05
        for a, b, c, d in placed
      ):
        placed.append(here)
        parts += [
          p.placed(x, y, yaw, label=_LABELS[name] if p.label == 0 else -1, piece=piece)
          for p in local
        ]
        piece += 1
        break
  return Room(parts, (width, depth))


def scan(room: Room, seed: int, index: int, per_area: float = 400.0) -> Scan:
  """Samples the surfaces of a room, but for what is inside of something."""
  rng = np.random.default_rng([seed, index, 1])
  points, colors, labels, owner = [], [], [], []
  for i, part in enumerate(room.parts):
    p = part.sample(rng, per_area)
    hidden = np.zeros(len(p), bool)
    for j, other in enumerate(room.parts):
      if i != j:
        hidden |= other.contains(p, 1e-4)
    if part.piece < 10:  # Floors and walls are seen from inside alone.
      hidden |= (np.abs(p[:, :2]) > np.array(room.size) / 2 + 1e-3).any(axis=1) | (p[:, 2] < -1e-3)
    else:
      hidden |= p[:, 2] < 0.004
    p = p[~hidden]
    points.append(p)
    colors.append(part.shade(p, rng))
    labels.append(np.full(len(p), part.label, np.int32))
    owner.append(np.full(len(p), i))
  points, colors, labels, owner = (np.concatenate(x) for x in (points, colors, labels, owner))
  # Patches of each piece's material.
  keys = np.array([hash((p.piece, p.color)) for p in room.parts])[owner]
  cells = np.floor(points / _PATCH + 100).astype(np.int64)
  _, supervoxels = np.unique(np.stack([keys, *cells.T], -1), axis=0, return_inverse=True)
  points = points + rng.normal(0, _SCAN_NOISE, points.shape)
  colors = colors + rng.normal(0, _COLOR_NOISE, colors.shape)
  return Scan(
    points.astype(np.float32),
    np.rint(np.clip(colors, 0, 1) * 255).astype(np.uint8),
    labels,
    supervoxels.ravel().astype(np.int32),
  )


def photograph(
  room: Room, seed: int, index: int, view: int, size: tuple[int, int] = (48, 64)
) -> np.ndarray:
  """Renders what a camera in the room sees: `[height, width, 3]` uint8.

  Each camera looks at another piece of furniture, from over the room.
  """
  rng = np.random.default_rng([seed, index, 2, view])
  pieces = sorted({part.piece for part in room.parts if part.piece >= 10})
  half = np.array(room.size) / 2
  target = np.array([0, 0, 0.5])
  if pieces:
    chosen = [p for p in room.parts if p.piece == pieces[view % len(pieces)]]
    target = np.mean([p.center for p in chosen], axis=0)
  angle = np.arctan2(*(rng.normal(0, 0.8, 2) - target[:2] / half)[::-1])
  eye = np.array([*(half * 1.05 * np.array([np.cos(angle), np.sin(angle)]) * 1.2), 0])
  eye[:2] = np.clip(eye[:2], -half + 0.05, half - 0.05)
  eye[2] = rng.uniform(1.5, 2.0)
  return render(room.parts, eye, target + rng.normal(0, 0.1, 3), size, rng)


def render(
  parts: Sequence[solids.Solid],
  eye: np.ndarray,
  target: np.ndarray,
  size: tuple[int, int],
  rng: np.random.Generator,
) -> np.ndarray:
  """Renders parts by a depth buffer, as a camera at `eye` that looks at `target` sees them."""
  height, width = size
  forward = (target - eye) / np.linalg.norm(target - eye)
  right = np.cross(forward, [0, 0, 1.0])
  right /= np.linalg.norm(right)
  up = np.cross(right, forward)
  focal = 0.62 * width
  columns = (np.arange(width) + 0.5 - width / 2) / focal
  rows = (np.arange(height) + 0.5 - height / 2) / focal
  rays = forward + columns[None, :, None] * right - rows[:, None, None] * up
  rays = rays.reshape(-1, 3)
  depth, image = np.full(len(rays), np.inf), np.full((len(rays), 3), 0.9)
  for part in parts:
    distance = part.hit(eye, rays)
    nearer = distance < depth
    depth[nearer] = distance[nearer]
    image[nearer] = part.shade(eye + distance[nearer, None] * rays[nearer], rng)
  image = image + rng.normal(0, 0.02, image.shape)
  return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).reshape(height, width, 3)


def _color(rng, hue=(0, 1), saturation=(0.1, 0.7), value=(0.25, 0.95)) -> tuple[float, ...]:
  return tuple(
    round(c, 4)
    for c in colorsys.hsv_to_rgb(*(rng.uniform(*each) for each in (hue, saturation, value)))
  )


def _wood(rng) -> tuple[float, ...]:
  return _color(rng, (0.05, 0.11), (0.3, 0.7), (0.3, 0.85))


def _any(rng) -> tuple[float, ...]:
  """Wood, or painted."""
  return _wood(rng) if rng.random() < 0.5 else _color(rng)


def _darker(color, share=0.75):
  return tuple(share * each for each in color)


def _box(x0, x1, y0, y1, z0, z1, color, label=0, **kwargs) -> solids.Solid:
  center = ((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2)
  half = ((x1 - x0) / 2, (y1 - y0) / 2, (z1 - z0) / 2)
  return solids.Solid('box', center, half, color=color, label=label, **kwargs)


def _cylinder(x, y, radius, z0, z1, color, label=0, kind='cylinder') -> solids.Solid:
  half = (radius, radius, (z1 - z0) / 2)
  return solids.Solid(kind, (x, y, (z0 + z1) / 2), half, color=color, label=label)


def _shell(rng, width, depth) -> list[solids.Solid]:
  """Floor and walls: what a scan shows of them."""
  parts = []
  ground = rng.choice(['floor', 'carpet', 'rug', 'none'], p=[0.3, 0.25, 0.2, 0.25])
  a, b = width / 2, depth / 2
  if ground in ('floor', 'rug'):
    color = _color(rng, (0.05, 0.13), (0.1, 0.55), (0.35, 0.9))  # Boards or tiles.
    board = float(rng.uniform(0.2, 0.4))
    period = (board, 0.0) if rng.random() < 0.6 else (board, board)
    second = _darker(color, rng.uniform(0.6, 0.8))
    parts.append(
      _box(-a, a, -b, b, -_THICKNESS, 0, color, _LABELS['floor'], second=second, period=period)
    )
  if ground in ('carpet', 'rug'):
    color = _color(rng, (0, 1), (0.2, 0.7), (0.25, 0.85))
    top = 0.0
    if ground == 'rug':
      a, b, top = a * rng.uniform(0.6, 0.85), b * rng.uniform(0.6, 0.85), 0.03
    low = -_THICKNESS if ground == 'carpet' else -0.01
    parts.append(_box(-a, a, -b, b, low, top, color, _LABELS['carpet'], piece=1, grain=0.12))
  walls = rng.choice(4, int(rng.choice(4, p=[0.3, 0.25, 0.3, 0.15])), replace=False)
  color = _color(rng, (0, 1), (0.0, 0.25), (0.6, 0.98))
  for wall in walls:
    length, off = (depth, width / 2) if wall % 2 == 0 else (width, depth / 2)
    panel = [
      _box(off, off + _THICKNESS, -length / 2, length / 2, 0, _HEIGHT, color, _LABELS['wall'])
    ]
    panel[0] = dataclasses.replace(panel[0], piece=2 + int(wall))
    if rng.random() < 0.4:
      panel += _door(rng, off, rng.uniform(-0.5, 0.5) * (length - 1.1))
    parts += [part.placed(0, 0, np.pi / 2 * wall) for part in panel]
  return parts


def _door(rng, off, y) -> list[solids.Solid]:
  """In its frame, at `y` in a wall at x = `off`, more or less open."""
  label = _LABELS['door']
  frame, leaf, half, high = _any(rng), _any(rng), 0.42, 1.98
  parts = [
    _box(off - 0.07, off + 0.01, y - half - 0.07, y - half, 0, high, frame, label),
    _box(off - 0.07, off + 0.01, y + half, y + half + 0.07, 0, high, frame, label),
    _box(off - 0.07, off + 0.01, y - half - 0.07, y + half + 0.07, high, high + 0.07, frame, label),
  ]
  # Around its hinge.
  angle = rng.choice([0.0, rng.uniform(0.3, 1.3)])
  swung = [
    _box(-0.04, 0.01, 0, 2 * half, 0.02, high, leaf, label),
    _box(-0.09, -0.04, 2 * half - 0.12, 2 * half - 0.05, 0.95, 1.0, (0.8, 0.75, 0.5), label),
  ]
  parts += [part.placed(off - 0.01, y - half, angle) for part in swung]
  return [dataclasses.replace(part, piece=6) for part in parts]


def _legs(rng, x, y, height, color) -> list[solids.Solid]:
  thick = rng.uniform(0.02, 0.035)
  ends = [(i * (x - thick), j * (y - thick)) for i in (-1, 1) for j in (-1, 1)]
  if rng.random() < 0.5:
    return [_cylinder(i, j, thick, 0, height, color) for i, j in ends]
  return [_box(i - thick, i + thick, j - thick, j + thick, 0, height, color) for i, j in ends]


def _table(rng) -> list[solids.Solid]:
  height, color = rng.uniform(0.65, 0.78), _any(rng)
  if rng.random() < 0.35:
    radius = rng.uniform(0.4, 0.6)
    parts = [
      _cylinder(0, 0, radius, height - 0.05, height, color),
      _cylinder(0, 0, 0.05, 0.04, height - 0.05, _darker(color)),
      _cylinder(0, 0, 0.6 * radius, 0, 0.04, _darker(color)),
    ]
    x = y = 0.6 * radius
  else:
    x, y = rng.uniform(0.45, 0.75), rng.uniform(0.3, 0.45)
    parts = [_box(-x, x, -y, y, height - 0.05, height, color)]
    parts += _legs(rng, x, y, height - 0.05, _darker(color))
  for _ in range(rng.integers(0, 4)):  # What lies on it belongs to no class.
    u, v = rng.uniform(-0.7, 0.7, 2) * (x, y)
    size = rng.uniform(0.04, 0.1, 3)
    kind = rng.choice(['box', 'cylinder', 'ellipsoid'])
    parts.append(
      solids.Solid(
        str(kind),
        (u, v, height + size[2]),
        tuple(size),
        rng.uniform(0, 3),
        _color(rng, saturation=(0.3, 0.9)),
        label=-1,
      )
    )
  return parts


def _chair(rng) -> list[solids.Solid]:
  half, seat, color = rng.uniform(0.19, 0.24), rng.uniform(0.42, 0.48), _any(rng)
  top = seat + rng.uniform(0.4, 0.5)
  return [
    _box(-half, half, -half, half, seat - 0.05, seat, color),
    _box(-half, half, half - 0.04, half, seat, top, color),
    *_legs(rng, half, half, seat - 0.05, _darker(color)),
  ]


def _sofa(rng) -> list[solids.Solid]:
  x, y, color = rng.uniform(0.65, 0.95), rng.uniform(0.38, 0.45), _color(rng)
  arm, back, seat = rng.uniform(0.12, 0.18), rng.uniform(0.75, 0.9), rng.uniform(0.38, 0.45)
  cushion = tuple(np.clip(np.array(color) * rng.uniform(0.8, 1.2), 0, 1))
  middle = rng.choice([0.0, 0.3]) * x
  return [
    _box(-x, x, -y, y, 0.04, 0.25, color),
    _box(-x, x, y - 0.2, y, 0.25, back, color),
    _box(-x, -x + arm, -y, y - 0.2, 0.25, 0.6, color),
    _box(x - arm, x, -y, y - 0.2, 0.25, 0.6, color),
    _box(-x + arm, middle, -y, y - 0.2, 0.25, seat, cushion),
    _box(middle, x - arm, -y, y - 0.2, 0.25, seat, cushion),
  ]


def _bed(rng) -> list[solids.Solid]:
  x, y = rng.uniform(0.45, 0.75), rng.uniform(0.9, 1.0)
  frame, cover = _any(rng), _color(rng, saturation=(0.05, 0.6), value=(0.4, 0.98))
  pillow = _color(rng, saturation=(0.0, 0.3), value=(0.6, 0.98))
  parts = [
    _box(-x, x, -y, y, 0.08, 0.28, frame),
    _box(-x, x, y - 0.05, y, 0.28, rng.uniform(0.75, 1.0), frame),
    _box(-x + 0.03, x - 0.03, -y + 0.02, y - 0.05, 0.28, 0.48, cover),
  ]
  count = 1 if x < 0.55 else 2
  for i in range(count):
    center = (i - (count - 1) / 2) * x
    parts.append(
      solids.Solid('ellipsoid', (center, y - 0.3, 0.5), (0.3, 0.18, 0.09), color=pillow, label=0)
    )
  return parts


def _shelf(rng) -> list[solids.Solid]:
  x, y, height = rng.uniform(0.35, 0.6), rng.uniform(0.13, 0.18), rng.uniform(1.4, 1.95)
  color = _any(rng)
  parts = [
    _box(-x, -x + 0.03, -y, y, 0, height, color),
    _box(x - 0.03, x, -y, y, 0, height, color),
    _box(-x, x, y - 0.02, y, 0, height, color),
  ]
  for z in np.linspace(0.05, height - 0.03, int(rng.integers(4, 6))):
    parts.append(_box(-x, x, -y, y, z, z + 0.03, color))
    left = -x + 0.05
    while z < height - 0.3 and left < x - 0.15 and rng.random() < 0.8:
      right = left + rng.uniform(0.08, 0.25)
      right = min(right, x - 0.04)
      book = _color(rng, saturation=(0.3, 0.8))
      parts.append(
        _box(left, right, -y + 0.04, y - 0.03, z + 0.03, z + rng.uniform(0.2, 0.28), book)
      )
      left = right + 0.01
  return parts


def _lamp(rng) -> list[solids.Solid]:
  height, metal = rng.uniform(1.35, 1.7), _color(rng, saturation=(0, 0.3), value=(0.15, 0.8))
  shade = _color(rng, saturation=(0.05, 0.5), value=(0.75, 1.0))
  radius = rng.uniform(0.16, 0.25)
  return [
    _cylinder(0, 0, 0.15, 0, 0.03, metal),
    _cylinder(0, 0, 0.02, 0.03, height - 0.28, metal),
    _cylinder(
      0,
      0,
      radius,
      height - 0.3,
      height,
      shade,
      kind='cylinder' if rng.random() < 0.6 else 'ellipsoid',
    ),
  ]


def _plant(rng) -> list[solids.Solid]:
  pot = rng.uniform(0.2, 0.35)
  parts = [_cylinder(0, 0, rng.uniform(0.13, 0.2), 0, pot, _color(rng))]
  top = rng.uniform(0.8, 1.4)
  parts.append(_cylinder(0, 0, 0.02, pot, top - 0.2, (0.35, 0.25, 0.15)))
  for _ in range(rng.integers(4, 8)):
    x, y = rng.normal(0, 0.13, 2)
    leaf = _color(rng, (0.2, 0.42), (0.35, 0.8), (0.25, 0.75))
    half = tuple(rng.uniform(0.08, 0.2, 3))
    center = (x, y, rng.uniform(pot + 0.25, top))
    parts.append(solids.Solid('ellipsoid', center, half, color=leaf, label=0))
  return parts


_FURNITURE: dict[str, Callable[[np.random.Generator], list[solids.Solid]]] = {
  'table': _table,
  'chair': _chair,
  'sofa': _sofa,
  'bed': _bed,
  'shelf': _shelf,
  'lamp': _lamp,
  'plant': _plant,
}
