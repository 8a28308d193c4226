"""Drawings of the shapes of procedural scenes, made as they are asked for."""

from collections.abc import Sequence

import numpy as np

from crossattn_jax import config_errors
from crossattn_jax.data.scenes import drawings, shapes

CLASS_NAMES = shapes.ALL_SHAPES
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
    return drawings.drawing(self._part, self.class_names[label], number)
