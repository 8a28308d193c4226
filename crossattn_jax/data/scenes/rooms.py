"""Procedural rooms: points with colours and labels, and photographs of the same room.

Rooms differ in what they hold, floors and walls too, which open scans leave out: labels of whole
scenes teach nothing about what is always there. Colours vary within every class, so that they alone
tell none. All is a function of (seed, index).
"""

from collections.abc import Sequence
import dataclasses
import itertools
from typing import NamedTuple

import numpy as np
from scipy import spatial

from crossattn_jax.data.scenes import furniture, solids

CLASS_NAMES = ('floor', 'carpet', 'wall', 'door', *furniture.PIECES)
_LABELS = {name: label for label, name in enumerate(CLASS_NAMES)}

# Of walls and floors, in metres.
_HEIGHT, _THICKNESS = 2.2, 0.05
# A scanner's error in metres and in colour, of 0 to 1; what is so near to something is hidden.
_POINT_NOISE, _COLOR_NOISE, _HIDDEN = 0.006, 0.04, 0.002
# Side of supervoxels in metres, and how far their borders are off.
_PATCH, _BORDER_NOISE = 0.9, 0.03
_BACKGROUND = 0.9
# How far cameras are from things, in metres, unless there is no such place.
_CLEARANCE = 0.2
# Focal length of the cameras, in widths of their images.
_FOCAL_LENGTH = 0.62


class Scan(NamedTuple):
  """Points on what a room holds.

  Attributes:
    points: float32 `[n, 3]` in metres, z upwards.
    colors: uint8 `[n, 3]`.
    labels: int32 `[n]`, in `CLASS_NAMES`; -1 for clutter.
    supervoxels: int32 `[n]`, patches of one material, counted from 0.
  """

  points: np.ndarray
  colors: np.ndarray
  labels: np.ndarray
  supervoxels: np.ndarray


class Room(NamedTuple):
  """What a room holds.

  Attributes:
    things: the parts of each thing, walls and floors first.
    size: extents along x and y in metres, around the origin.
  """

  things: list[list[solids.Solid]]
  size: np.ndarray

  @property
  def parts(self) -> list[solids.Solid]:
    """Those of all things."""
    return list(itertools.chain(*self.things))


def make_room(
  seed: int, index: int, pieces: tuple[int, int] = (2, 5), side: tuple[float, float] = (2.0, 3.2)
) -> Room:
  """Furnishes a room.

  Args:
    seed: of the set of rooms.
    index: of the room.
    pieces: of furniture: the least and the most, of one to three kinds, if there is space for them.
    side: of the room, the least and the most, in metres.
  """
  rng = np.random.default_rng([seed, index])
  room = Room([], rng.uniform(*side, 2))
  while not room.things:
    room.things.extend(_ground(rng, room.size / 2))
    room.things.extend(_walls(rng, room.size / 2))
    room.things.extend(_pieces(rng, room.size / 2, pieces))
  return room


def _pieces(
  rng: np.random.Generator, half: np.ndarray, least_most: tuple[int, int]
) -> list[list[solids.Solid]]:
  """Furniture of one to three kinds; what does not fit is left out."""
  count = rng.integers(least_most[0], least_most[1] + 1)
  kinds = rng.choice(list(furniture.PIECES), rng.integers(1, 4), replace=False)[:count]
  things, taken = [], []
  for kind in [*kinds, *rng.choice(kinds, count - len(kinds))]:
    parts = furniture.PIECES[kind](rng)
    reach = np.max([np.abs(part.center[:2]) + part.half[:2] for part in parts], axis=0)
    place = _find_place(rng, reach, half, taken)
    if place is not None:
      things.append(_labelled([part.placed(*place) for part in parts], kind))
  return things


def _labelled(parts: Sequence[solids.Solid], name: str) -> list[solids.Solid]:
  return [
    part if part.label < 0 else dataclasses.replace(part, label=_LABELS[name]) for part in parts
  ]


def _ground(rng: np.random.Generator, half: np.ndarray) -> list[list[solids.Solid]]:
  """Boards or tiles, a carpet, boards with a carpet on them, or nothing."""
  kind = rng.choice(['floor', 'carpet', 'both', 'nothing'], p=[0.3, 0.25, 0.2, 0.25])
  ground = []
  x, y = ((-each, each) for each in half)
  if kind in ('floor', 'both'):
    paint = furniture.color(rng, (0.05, 0.13), (0.1, 0.55), (0.35, 0.9))
    board = rng.uniform(0.2, 0.4)
    pattern = {
      'second': furniture.darker(paint, rng.uniform(0.6, 0.8)),
      'period': (board, 0.0) if rng.random() < 0.6 else (board, board),
    }
    ground.append(_labelled([furniture.box(x, y, (-_THICKNESS, 0), paint, **pattern)], 'floor'))
  if kind in ('carpet', 'both'):
    paint, z = furniture.color(rng, saturation=(0.2, 0.7), value=(0.25, 0.85)), (-_THICKNESS, 0)
    if kind == 'both':
      z = (-0.01, 0.03)
      x, y = (rng.uniform(0.6, 0.85) * np.array(each) for each in (x, y))
    ground.append(_labelled([furniture.box(x, y, z, paint, grain=0.12)], 'carpet'))
  return ground


def _walls(rng: np.random.Generator, half: np.ndarray) -> list[list[solids.Solid]]:
  """Up to three walls of one colour, some with a door."""
  count = rng.choice(4, p=[0.3, 0.25, 0.3, 0.15])
  paint, things = furniture.color(rng, saturation=(0.0, 0.25), value=(0.6, 0.98)), []
  for side in rng.choice(4, count, replace=False):
    angle, (length, distance) = np.pi / 2 * side, half if side % 2 == 0 else half[::-1]
    y = (distance, distance + _THICKNESS)
    wall = furniture.box((-length, length), y, (0, _HEIGHT), paint)
    things.append(_labelled([wall.placed(0, 0, angle)], 'wall'))
    if rng.random() < 0.4:
      x = rng.uniform(-1, 1) * (length - 0.55)
      door = [part.placed(x, distance, 0).placed(0, 0, angle) for part in furniture.door(rng)]
      things.append(_labelled(door, 'door'))
  return things


def _find_place(
  rng: np.random.Generator,
  reach: np.ndarray,
  half: np.ndarray,
  taken: list[tuple[np.ndarray, np.ndarray]],
) -> tuple[float, float, float] | None:
  """Looks for x, y and yaw of a piece that reaches so far, and adds it to those that are taken."""
  for _ in range(30):
    side = int(rng.integers(4))
    turned = reach if side % 2 == 0 else reach[::-1]
    space = half - turned - 0.02
    if np.any(space < 0):
      continue
    center = rng.uniform(-space, space)
    if rng.random() < 0.7:  # With its back to a wall.
      axis, sign = ((1, 1), (0, -1), (1, -1), (0, 1))[side]
      center[axis] = sign * space[axis]
    if all(np.any(np.abs(center - at) > turned + size + 0.05) for at, size in taken):
      taken.append((center, turned))
      return *center, np.pi / 2 * side + rng.normal(0, 0.1)
  return None


def scan(room: Room, seed: int, index: int, per_area: float = 400.0) -> Scan:
  """Samples the surfaces of a room, as far as they are seen from inside.

  Args:
    room: what is scanned.
    seed: as that of the room, as `index`.
    index: of the room.
    per_area: points on a square metre.
  """
  rng = np.random.default_rng([seed, index, 1])
  parts = room.parts
  samples = [part.sample(rng, per_area) for part in parts]
  owner = np.repeat(np.arange(len(parts)), [len(each) for each in samples])
  points = np.concatenate(samples)
  is_seen = (np.abs(points[:, :2]) < room.size / 2 + _HIDDEN).all(1) & (points[:, 2] > -_HIDDEN)
  for i, part in enumerate(parts):
    is_seen &= (owner == i) | ~part.contains(points, _HIDDEN)
  points, owner = points[is_seen], owner[is_seen]
  colors = np.empty_like(points)
  for i, part in enumerate(parts):
    colors[owner == i] = part.shade(points[owner == i], rng)
  colors += rng.normal(0, _COLOR_NOISE, colors.shape)
  return Scan(
    (points + rng.normal(0, _POINT_NOISE, points.shape)).astype(np.float32),
    _to_bytes(colors),
    np.array([part.label for part in parts], np.int32)[owner],
    _patches(rng, points, _materials(room)[owner]),
  )


def _materials(room: Room) -> np.ndarray:
  """Of each part, a number: the same for parts of one thing that have one colour."""
  keys = [(number, part.color) for number, parts in enumerate(room.things) for part in parts]
  numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
  return np.array([numbers[key] for key in keys])


def _patches(rng: np.random.Generator, points: np.ndarray, material: np.ndarray) -> np.ndarray:
  """Supervoxels: cubes of each material, with borders that are somewhat off."""
  cells = np.floor(points / _PATCH).astype(int)
  keys = np.append(material[:, None], cells, axis=1)
  ids = np.unique(keys, axis=0, return_inverse=True)[1].ravel()
  nearest = spatial.cKDTree(points).query(points + rng.normal(0, _BORDER_NOISE, points.shape))[1]
  return np.unique(ids[nearest], return_inverse=True)[1].astype(np.int32)


def photograph(
  room: Room, seed: int, index: int, view: int, size: tuple[int, int] = (48, 64)
) -> np.ndarray:
  """Renders what a camera sees that looks across the room at one of its things.

  Args:
    room: what is photographed.
    seed: as that of the room, as `index`.
    index: of the room.
    view: number of the photograph; each one is of the next piece of furniture.
    size: height and width in pixels.

  Returns:
    uint8 `[height, width, 3]`.
  """
  rng = np.random.default_rng([seed, index, 2, view])
  pieces = [each for each in room.things if CLASS_NAMES[each[0].label] in furniture.PIECES]
  thing = (pieces or room.things)[view % len(pieces or room.things)]
  target = np.mean([part.center for part in thing], axis=0) + rng.normal(0, 0.1, 3)
  return render(room.parts, _find_eye(rng, room, target), target, size, rng)


def _find_eye(rng: np.random.Generator, room: Room, target: np.ndarray) -> np.ndarray:
  """A place for a camera: opposite of its target, near the border, and not close behind things."""
  half = room.size / 2
  for _ in range(20):
    away = rng.normal(0, 0.8, 2) - target[:2] / half
    ground = np.clip(1.3 * half * away / np.linalg.norm(away), 0.25 - half, half - 0.25)
    eye = np.array([*ground, rng.uniform(1.5, 2.0)])
    if not any(part.contains(eye[None], _CLEARANCE) for parts in room.things for part in parts):
      break
  return eye


def render(
  parts: Sequence[solids.Solid],
  eye: np.ndarray,
  target: np.ndarray,
  size: tuple[int, int],
  rng: np.random.Generator,
) -> np.ndarray:
  """Renders solids with a buffer of depth.

  Args:
    parts: that are seen.
    eye: `[3]`, where the camera is.
    target: `[3]`, what it looks at.
    size: height and width in pixels.
    rng: draws noise.

  Returns:
    uint8 `[height, width, 3]`.
  """
  forward = (target - eye) / np.linalg.norm(target - eye)
  right = np.cross(forward, [0, 0, 1])
  right /= np.linalg.norm(right)
  down = np.cross(forward, right)
  rows, columns = ((np.arange(n) + 0.5 - n / 2) / (_FOCAL_LENGTH * size[1]) for n in size)
  rays = forward + columns[None, :, None] * right + rows[:, None, None] * down
  rays = rays.reshape(-1, 3)
  depth, image = np.full(len(rays), np.inf), np.full(rays.shape, _BACKGROUND)
  for part in parts:
    distance = part.hit(eye, rays)
    nearer = distance < depth
    depth[nearer] = distance[nearer]
    image[nearer] = part.shade(eye + distance[nearer, None] * rays[nearer], rng)
  return _to_bytes(image + rng.normal(0, 0.02, image.shape)).reshape(*size, 3)


def _to_bytes(values: np.ndarray) -> np.ndarray:
  return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
