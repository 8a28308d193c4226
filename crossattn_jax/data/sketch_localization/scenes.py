"""Drawings of the shapes of procedural scenes, made as they are asked for."""

from collections.abc import Sequence
import zlib

import numpy as np

from crossattn_jax import config_errors
from crossattn_jax.data.scenes import shapes

CLASS_NAMES = shapes.SHAPES
# Drawings of each class; as many as are wanted could be made.
_COUNT = 10_000
_PARTS = ('train', 'valid', 'test')


class SceneDrawings:
  """Outlines of shapes: a `drawings.SketchSource`. Those of different parts differ."""

  def __init__(self, part: str, class_names: Sequence[str]):
    """Opens a part; raises ValueError where there is no such shape."""
    for name in class_names:
      if name not in CLASS_NAMES:
        raise config_errors.UnknownName(f'no drawings of {name!r}', name, CLASS_NAMES)
    self.class_names = tuple(class_names)
    self.counts = np.full(len(self.class_names), _COUNT)
    self._part = _PARTS.index(part)

  def key(self, label: int, number: int) -> str:
    """See `drawings.SketchSource`."""
    return f'{_PARTS[self._part]} drawing {number} of {self.class_names[label]!r}'

  def drawing(self, label: int, number: int) -> list[np.ndarray]:
    """See `drawings.SketchSource`; in 0..255, as QuickDraw's simplified ones."""
    name = self.class_names[label]
    rng = np.random.default_rng((self._part, zlib.crc32(name.encode()), number))
    angles = np.linspace(0, 2 * np.pi, 65)
    radii = np.linspace(0.02, 1.6, 160)
    turn = rng.uniform(-0.5, 0.5)
    right, down = radii * np.cos(angles + turn)[:, None], radii * np.sin(angles + turn)[:, None]
    inside = shapes.distance(name, right, down) < 0
    reach = radii[159 - np.argmax(inside[:, ::-1], axis=1)] + rng.normal(0, 0.02, len(angles))
    points = np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=1)
    low, extent = points.min(axis=0), np.ptp(points, axis=0).max()
    return [np.rint((points - low) * (255 / extent)).astype(int)]
