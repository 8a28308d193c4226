"""Procedural scenes: shapes with texture and shadow over a textured ground.

A scene is a function of (seed, index) alone, and comes with everything that tasks of this library
learn: segmentation, detection, captions, sketches, thermal images, depth.
"""

from collections.abc import Sequence
import dataclasses
import functools

import numpy as np

from crossattn_jax.data.scenes import silhouettes

SHAPES = ('disc', 'square', 'triangle', 'star', 'ring', 'cross')
CLASS_NAMES = ('ground', *SHAPES)
# Those, and more for whoever learns what a shape is.
ALL_SHAPES = silhouettes.NAMES
# Of these, those that `shape_scenes/sketch` has for evaluation only.
UNSEEN_SHAPES = ALL_SHAPES[4::5]
PALETTE = np.array(
  [
    (70, 70, 70),
    (230, 60, 60),
    (60, 120, 230),
    (70, 190, 80),
    (245, 200, 40),
    (170, 80, 210),
    (50, 200, 200),
  ],
  np.uint8,
)

COLORS = {
  'red': (0.80, 0.14, 0.12),
  'orange': (0.92, 0.50, 0.10),
  'yellow': (0.92, 0.84, 0.18),
  'green': (0.16, 0.55, 0.20),
  'blue': (0.14, 0.28, 0.78),
  'purple': (0.50, 0.18, 0.62),
  'white': (0.92, 0.92, 0.90),
  'black': (0.10, 0.10, 0.12),
}
TEXTURES = ('plain', 'striped', 'checked', 'dotted')
# Colour, and what cells of the coarse and the fine noise add.
GROUNDS = {
  'grass': ((0.30, 0.45, 0.18), 0.10, 0.22),
  'sand': ((0.76, 0.66, 0.46), 0.08, 0.10),
  'stone': ((0.50, 0.50, 0.52), 0.16, 0.12),
  'snow': ((0.82, 0.85, 0.90), 0.08, 0.05),
}

# Depth of the ground in metres, at the upper and at the lower edge of the image.
_GROUND_DEPTH = (12.0, 8.0)
# Of objects over the ground below their centre; at least half the ground's slope over the largest.
_HEIGHTS = (1.2, 4.0)
# Of objects, as shares of the image's side.
RADII = (0.11, 0.25)
# Objects of which less can be seen are left out.
VISIBLE_SHARE = 0.4
_VISIBLE_AREA = 0.003
# Shares of objects that are warm, cold, and nearly as warm as the ground.
_WARM_COLD_NEAR = (0.5, 0.2, 0.3)
# The same where some others are exactly as warm, and hide in the thermal image.
_WARM_COLD = (0.7, 0.3, 0.0)
# Objects that less light reaches do not hide there.
_LIT_SHARE = 0.75


@dataclasses.dataclass(frozen=True)
class SceneObject:
  """An object of a scene.

  Attributes:
    label: 1 + index into `ALL_SHAPES`, the first of which are `SHAPES`.
    box: top, left, bottom, right of its visible pixels, the latter two exclusive.
    visible: share of its pixels, those beyond the image included, that can be seen.
    color: its name.
    texture: its name.
    size: 'small', 'medium' or 'large'.
    depth: distance from the camera in metres.
    temperature: in the units of the thermal image, in [0, 1].
    lit: share of the light that reaches its visible pixels.
    tepid: whether it is exactly as warm as the ground behind it.
  """

  label: int
  box: tuple[int, int, int, int]
  visible: float
  color: str
  texture: str
  size: str
  depth: float
  temperature: float
  lit: float = 1.0
  tepid: bool = False


@dataclasses.dataclass(frozen=True)
class Scene:
  """A scene and its annotations; all maps show the same pixels.

  Attributes:
    image: uint8 `[size, size, 3]`.
    semantic: classes, uint8 `[size, size]`; 0 is the ground.
    instances: 1 + index of the object, uint8 `[size, size]`; 0 is the ground.
    masks: whole objects, also where others hide them, bool `[objects, size, size]`.
    objects: nearest first.
    caption: one sentence.
    sketches: an outline of each of `SHAPES`, black on white, uint8 `[6, size / 2, size / 2]`.
    thermal: uint8 `[size, size]`.
    depth: in metres, float32 `[size, size]`.
  """

  image: np.ndarray
  semantic: np.ndarray
  instances: np.ndarray
  masks: np.ndarray
  objects: tuple[SceneObject, ...]
  caption: str
  sketches: np.ndarray
  thermal: np.ndarray
  depth: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Placed:
  """An object before it is painted: its window of the scene, and what is there."""

  shape: int
  window: tuple[slice, slice]
  distances: np.ndarray  # In pixels.
  across: np.ndarray
  along: np.ndarray
  radius: float
  height: float
  depth: float

  @property
  def mask(self) -> np.ndarray:
    return self.distances < 0


def render_scene(
  seed: int,
  index: int,
  size: int = 128,
  *,
  drawn: tuple[int, int] = (3, 7),
  least_seen: int = 1,
  radii: tuple[float, float] = RADII,
  dark: float = 0.0,
  tepid: float = 0.0,
  shown: Sequence[str] = SHAPES,
  turn: float = np.pi,
  textures: Sequence[str] = TEXTURES,
  least_visible: float = VISIBLE_SHARE,
) -> Scene:
  """Renders one scene.

  Args:
    seed: of all scenes.
    index: of this one.
    size: of height and width, even and at least 32.
    drawn: fewest and most objects, of which those that nearer ones hide are left out.
    least_seen: scenes in which fewer are left are drawn again.
    radii: smallest and largest of objects, as shares of the size.
    dark: share of the image that no light reaches: objects there show in the thermal image only.
    tepid: share of the objects in the light that are as warm as the ground, and show in the visible
      image only. With it, all the others are clearly warmer or colder.
    shown: shapes of the objects, of `ALL_SHAPES`.
    turn: most that objects are turned by, either way, in radians.
    textures: of the objects, of `TEXTURES`.
    least_visible: share of an object; those of which nearer ones hide more are left out.

  Returns:
    The scene, the same whenever and wherever it is rendered.

  Raises:
    ValueError: the size is odd or too small.
  """
  if size < 32 or size % 2:
    raise ValueError(f'size={size} must be even and at least 32')
  rng = np.random.default_rng([seed, index])
  placed, masks, instances = _place(rng, size, drawn, radii, shown, turn, least_visible)
  # The nearest object may lie mostly beyond the edge; one with its centre far inside does not.
  while len(placed) < least_seen:
    placed, masks, instances = _place(rng, size, drawn, radii, shown, turn, least_visible)
  ground = tuple(GROUNDS)[rng.integers(len(GROUNDS))]
  names = [
    (tuple(COLORS)[rng.integers(len(COLORS))], textures[rng.integers(len(textures))])
    for _ in placed
  ]
  temperatures = _temperatures(rng, len(placed), _WARM_COLD if tepid else _WARM_COLD_NEAR)
  lit = _lit(rng, dark, size) if dark else np.ones((size, size), np.float32)
  chosen = rng.random(len(placed)) < tepid if tepid else np.zeros(len(placed), bool)

  image, thermal, depth = _ground(rng, ground, size)
  behind = thermal.copy()
  objects = []
  for i, (item, (color, texture)) in enumerate(zip(placed, names, strict=True)):
    seen = instances == i + 1
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    radius = item.radius / size
    light = float(lit[seen].mean())
    hidden = bool(chosen[i]) and light >= _LIT_SHARE
    objects.append(
      SceneObject(
        label=item.shape + 1,
        box=(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1),
        visible=float(seen.sum() / _area(item)),
        color=color,
        texture=texture,
        size='small' if radius < 0.15 else 'large' if radius > 0.20 else 'medium',
        depth=item.depth,
        temperature=float(behind[seen].mean() if hidden else temperatures[i]),
        lit=light,
        tepid=hidden,
      )
    )

  angle = rng.uniform(0, 2 * np.pi)
  slant = np.array([np.cos(angle), np.sin(angle)]) * size / 128
  for item, shown in reversed(list(zip(placed, objects, strict=True))):
    _shade(image, item, slant)
    _paint(rng, image[item.window], item, shown.color, shown.texture)
    cover = np.clip(0.5 - item.distances * (64 / size), 0, 1)
    warmth = behind[item.window] if shown.tepid else shown.temperature
    thermal[item.window] += cover * (warmth - thermal[item.window])
    depth[item.window][item.mask] = item.depth
  brightness = rng.uniform(0.45, 1.1)
  noise = rng.standard_normal((size, size, 4), np.float32)
  image = image * brightness * lit[..., None] + rng.uniform(0.01, 0.03) * noise[..., :3]
  thermal += 0.015 * noise[..., 3]

  labels = np.array([0, *(item.shape + 1 for item in placed)], np.uint8)
  return Scene(
    image=_to_bytes(image),
    semantic=labels[instances],
    instances=instances,
    masks=masks,
    objects=tuple(objects),
    caption=_caption(objects, ground),
    sketches=_sketches(rng, size // 2),
    thermal=_to_bytes(thermal),
    depth=depth,
  )


def _place(
  rng: np.random.Generator,
  size: int,
  drawn: tuple[int, int],
  radii: tuple[float, float],
  shown: Sequence[str],
  turn: float,
  least_visible: float,
) -> tuple[list[_Placed], np.ndarray, np.ndarray]:
  """Draws objects, nearest first, and drops those that nearer ones hide."""
  number = int(rng.integers(*drawn, endpoint=True))
  shapes = [ALL_SHAPES.index(shown[i]) for i in rng.integers(len(shown), size=number)]
  centers = rng.uniform(0.08, 0.92, (number, 2)) * size
  lengths = rng.uniform(*radii, number) * size
  turns = rng.uniform(0, 2 * np.pi, number) if turn == np.pi else rng.uniform(-turn, turn, number)
  heights = rng.uniform(*_HEIGHTS, number)
  far, near = _GROUND_DEPTH
  depths = far + (near - far) * centers[:, 0] / size - heights
  placed, masks = [], []
  instances = np.zeros((size, size), np.uint8)
  for i in np.argsort(depths, kind='stable'):
    item = _object(size, shapes[i], centers[i], lengths[i], turns[i], heights[i], depths[i])
    hidden = instances[item.window] > 0
    seen = item.mask & ~hidden
    if seen.sum() < max(least_visible * _area(item), _VISIBLE_AREA * size**2):
      continue
    placed.append(item)
    instances[item.window][seen] = len(placed)
    mask = np.zeros((size, size), bool)
    mask[item.window] = item.mask
    masks.append(mask)
  return placed, np.array(masks), instances


def _object(
  size: int, shape: int, center: np.ndarray, radius: float, turn: float, height: float, depth: float
) -> _Placed:
  # The margin holds the blurred edge of the thermal image.
  reach = radius + size / 64 + 1
  window = tuple(
    slice(max(int(middle - reach), 0), min(int(middle + reach) + 1, size)) for middle in center
  )
  down, right = (
    (np.arange(part.start, part.stop, dtype=np.float32) + 0.5 - middle) / radius
    for part, middle in zip(window, center.astype(np.float32), strict=True)
  )
  cosine, sine = np.float32(np.cos(turn)), np.float32(np.sin(turn))
  across = cosine * right[None] + sine * down[:, None]
  along = cosine * down[:, None] - sine * right[None]
  distances = silhouettes.distance(ALL_SHAPES[shape], across, along).astype(
    np.float32
  ) * np.float32(radius)
  return _Placed(
    shape, window, distances, across, along, float(radius), float(height), float(depth)
  )


@functools.cache
def _unit_area(shape: int) -> float:
  """Pixels of a shape per square of its radius."""
  side = np.linspace(-1, 1, 801)
  inside = silhouettes.distance(ALL_SHAPES[shape], side[None], side[:, None]) < 0
  return float(inside.mean() * 4)


def _area(item: _Placed) -> float:
  return max(_unit_area(item.shape) * item.radius**2, float(item.mask.sum()))


def _temperatures(
  rng: np.random.Generator, number: int, shares: tuple[float, float, float]
) -> np.ndarray:
  """Of warm objects, of cold ones, and of those that are nearly as warm as the ground."""
  kinds = rng.choice(3, number, p=shares)
  lows, spans = np.array([0.70, 0.02, 0.40]), np.array([0.25, 0.13, 0.20])
  return lows[kinds] + spans[kinds] * rng.random(number)


def _lit(rng: np.random.Generator, dark: float, size: int) -> np.ndarray:
  """How much light reaches each pixel, 0 to 1: none a share `dark` of them, but for soft edges."""
  field = _smooth_noise(rng, 3, size)
  return 1 / (1 + np.exp(np.float32(-20) * (field - np.quantile(field, dark))))


@functools.cache
def _upsampling(cells: int, size: int) -> np.ndarray:
  """The matrix that interpolates `cells` values linearly at `size` places."""
  position = np.linspace(0, cells - 1, size)
  return np.maximum(1 - np.abs(position[:, None] - np.arange(cells)), 0).astype(np.float32)


def _smooth_noise(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
  up = _upsampling(cells, size)
  return up @ rng.standard_normal((cells, cells), np.float32) @ up.T


def _ground(
  rng: np.random.Generator, ground: str, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  color, coarse, fine = GROUNDS[ground]
  relief = coarse * _smooth_noise(rng, 5, size) + fine * _smooth_noise(rng, size // 3, size)
  tint = np.float32(1) + np.float32(0.5) * relief
  tones = np.asarray(color, np.float32) * rng.uniform(0.85, 1.15, 3).astype(np.float32)
  image = tint[..., None] * tones
  thermal = np.float32(0.38) + np.float32(0.05) * _smooth_noise(rng, 4, size)
  far, near = _GROUND_DEPTH
  depth = far + (near - far) * (np.arange(size, dtype=np.float32) + np.float32(0.5)) / size
  return image, thermal, np.repeat(depth[:, None], size, axis=1)


def _shade(image: np.ndarray, item: _Placed, light: np.ndarray) -> None:
  """Darkens what is below an object: the higher it is, the farther off and the softer."""
  size = image.shape[0]
  blur = item.height * size / 128
  down, right = np.rint(light * 2.2 * item.height).astype(int)
  rows, columns = item.window
  target, part = [], []
  for window, shift in ((rows, down), (columns, right)):
    start, stop = max(window.start + shift, 0), min(window.stop + shift, size)
    target.append(slice(start, stop))
    part.append(slice(start - shift - window.start, stop - shift - window.start))
  if any(each.stop <= each.start for each in target):
    return
  shadow = np.clip(0.5 - item.distances[tuple(part)] / (2 * blur), 0, 1)
  image[tuple(target)] *= 1 - np.float32(0.45) * shadow[..., None]


def _paint(
  rng: np.random.Generator, view: np.ndarray, item: _Placed, color: str, texture: str
) -> None:
  first = np.asarray(COLORS[color], np.float32) + rng.uniform(-0.05, 0.05, 3).astype(np.float32)
  second = first * np.float32(0.55) + np.float32(0.45 if first.mean() < 0.45 else 0.0)
  period = rng.uniform(0.35, 0.6)
  across, along = item.across / period, item.along / period
  match texture:
    case 'striped':
      second_here = (np.floor(2 * across) % 2).astype(np.float32)
    case 'checked':
      second_here = ((np.floor(2 * across) + np.floor(2 * along)) % 2).astype(np.float32)
    case 'dotted':
      second_here = (np.hypot(across % 1 - 0.5, along % 1 - 0.5) < 0.3).astype(np.float32)
    case _:
      second_here = np.zeros_like(across)
  # Lit from one side.
  shading = 1 + np.float32(0.12) * item.across
  paint = (first + second_here[..., None] * (second - first)) * shading[..., None]
  cover = np.clip(0.5 - item.distances, 0, 1)[..., None]
  view += cover * (paint - view)


def _to_bytes(values: np.ndarray) -> np.ndarray:
  return np.rint(np.clip(values, 0, 1) * np.float32(255)).astype(np.uint8)


def _describe(item: SceneObject) -> str:
  texture = '' if item.texture == 'plain' else f'{item.texture} '
  return f'{item.size} {item.color} {texture}{ALL_SHAPES[item.label - 1]}'


def with_article(phrase: str) -> str:
  """A phrase behind 'a' or 'an'."""
  return ('an ' if phrase[0] in 'aeiou' else 'a ') + phrase


def listed(phrases: Sequence[str]) -> str:
  """Phrases with commas and an 'and' between them."""
  *first, last = phrases
  return f'{", ".join(first)} and {last}' if first else last


def _caption(objects: list[SceneObject], ground: str) -> str:
  """Lists the objects from left to right, and says where the nearest is from the second one."""
  in_order = sorted(objects, key=lambda item: item.box[1] + item.box[3])
  sentence = f'{listed([with_article(_describe(item)) for item in in_order])} on {ground}'
  names = [f'the {item.color} {ALL_SHAPES[item.label - 1]}' for item in objects[:2]]
  if len(set(names)) == 2:
    first, second = objects[:2]
    down = first.box[0] + first.box[2] - second.box[0] - second.box[2]
    right = first.box[1] + first.box[3] - second.box[1] - second.box[3]
    if abs(right) > abs(down):
      relation = 'left of' if right < 0 else 'right of'
    else:
      relation = 'above' if down < 0 else 'below'
    sentence += f'; {names[0]} is {relation} {names[1]}'
  return sentence


def _sketches(rng: np.random.Generator, size: int) -> np.ndarray:
  """Outlines as if drawn by an unsteady hand, one per shape, each turned and scaled."""
  side = np.linspace(-1.15, 1.15, size, dtype=np.float32)
  result = np.empty((len(SHAPES), size, size), np.uint8)
  pixel = side[1] - side[0]
  for i, shape in enumerate(SHAPES):
    turn, scale = rng.uniform(-0.5, 0.5), rng.uniform(0.75, 1.0)
    wobble = [np.float32(0.04) * _smooth_noise(rng, 6, size) for _ in range(2)]
    right, down = side[None] / scale + wobble[0], side[:, None] / scale + wobble[1]
    cosine, sine = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    edge = silhouettes.distance(shape, cosine * right + sine * down, cosine * down - sine * right)
    ink = np.clip(1.5 - np.abs(edge) * scale / pixel, 0, 1)
    result[i] = _to_bytes(1 - ink)
  return result
