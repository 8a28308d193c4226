"""Drawings of shapes, stroke by stroke, as an unsteady hand makes them.

A drawing is a function of (seed, shape, number) alone.
"""

import functools
import itertools

import contourpy
import numpy as np
from scipy import ndimage

from crossattn_jax.data.scenes import silhouettes

# One line around each edge; an edge in several strokes; every edge twice, one over the other.
STYLES = ('outline', 'strokes', 'twice')

# Of a drawing's longer side, as in QuickDraw's simplified files.
EXTENT = 255
# Points per unit of length of the shapes, whose radius is one.
_DENSITY = 24


@functools.cache
def contours(shape: str) -> tuple[np.ndarray, ...]:
  """The edges of a shape of radius one: closed lines `[points, 2]` of x and y, evenly spaced."""
  side = np.linspace(-1.1, 1.1, 221)
  lines = contourpy.contour_generator(
    side, side, silhouettes.distance(shape, side[None], side[:, None])
  ).lines(0)
  return tuple(_spaced(line) for line in lines)


def _spaced(line: np.ndarray) -> np.ndarray:
  length = np.append(0, np.cumsum(np.hypot(*np.diff(line, axis=0).T)))
  at = np.linspace(0, length[-1], max(round(length[-1] * _DENSITY), 8))
  return np.stack([np.interp(at, length, each) for each in line.T], axis=-1)


def drawing(seed: int, shape: str, number: int) -> list[np.ndarray]:
  """Draws a shape.

  Args:
    seed: of all drawings of a split: those of two have nothing in common.
    shape: one of `silhouettes.NAMES`.
    number: of the drawing.

  Returns:
    Strokes in the order of drawing, int16 `[points, 2]` each, x to the right and y downwards, both
    from 0 on and the larger of them to `EXTENT`.
  """
  rng = np.random.default_rng([seed, silhouettes.NAMES.index(shape), number])
  style = STYLES[rng.integers(len(STYLES))]
  # How unsteady the hand is, and how far it is from where a line should begin or end.
  tremor, slip = rng.uniform(0.01, 0.035), rng.uniform(0.01, 0.06)
  turn, slant = rng.normal(0, 0.12), rng.normal(0, 0.08)
  stretch = np.exp(rng.normal(0, 0.1))
  skew = np.array([[stretch, slant], [0, 1 / stretch]])
  skew @= np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
  strokes = []
  for contour in contours(shape):
    for _ in range(2 if style == 'twice' else 1):
      pieces = rng.integers(2, 6) if style == 'strokes' else 1
      strokes += [_by_hand(rng, each, tremor, slip) for each in _cut(rng, contour, pieces)]
  strokes = [stroke @ skew.T for stroke in strokes]
  points = np.concatenate(strokes)
  low, scale = points.min(axis=0), EXTENT / np.ptp(points, axis=0).max()
  return [np.rint((stroke - low) * scale).astype(np.int16) for stroke in strokes]


def _cut(rng: np.random.Generator, contour: np.ndarray, pieces: int) -> list[np.ndarray]:
  """Cuts a closed line; the ends of a piece fall short of the next one or run past its start."""
  steps = len(contour) - 1
  first, clockwise = rng.integers(steps), rng.integers(2)
  # Of some length each.
  shares = rng.dirichlet(np.full(pieces, 4.0))
  ends = np.rint(np.append(0, np.cumsum(shares)) * steps).astype(int)
  result = []
  for start, stop in itertools.pairwise(ends):
    # Gaps are as frequent as ends that are too long.
    stop = max(stop + rng.integers(-4, 5), start + 3)
    piece = contour[(first + np.arange(start, stop + 1)) % steps]
    result.append(piece if clockwise else piece[::-1])
  return result


def _by_hand(rng: np.random.Generator, line: np.ndarray, tremor: float, slip: float) -> np.ndarray:
  """Moves a line as a whole, bends it slowly, and lets it tremble along its length."""
  count = len(line)
  wave = ndimage.gaussian_filter1d(rng.standard_normal((count + 60, 2)), 10, axis=0)[30:-30] * 6
  shake = ndimage.gaussian_filter1d(rng.standard_normal((count + 60, 2)), 1.5, axis=0)[30:-30]
  return line + slip * rng.standard_normal(2) + tremor * (wave + 0.5 * shake)
