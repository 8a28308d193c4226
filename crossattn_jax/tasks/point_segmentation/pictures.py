"""Pictures of classes of points."""

from collections.abc import Sequence
import dataclasses

from etils import epath
import numpy as np

from crossattn_jax.tasks import drawing, point_pictures


@dataclasses.dataclass(frozen=True)
class Sample:
  """A cloud and the classes of its points.

  Attributes:
    points: `[points, 3]`.
    colors: uint8 `[points, 3]`.
    predicted: classes `[points]`.
    true: classes `[points]`, -1 where there are none; None where they are not known.
    name: of the file, for sheets; '' where it has none.
  """

  points: np.ndarray
  colors: np.ndarray
  predicted: np.ndarray
  true: np.ndarray | None
  name: str = ''

  @property
  def classes(self) -> list[np.ndarray]:
    """That are shown."""
    return [self.predicted] if self.true is None else [self.predicted, self.true]

  def colorings(self, num_classes: int) -> dict[str, np.ndarray]:
    """What each picture of the cloud shows, and its colours."""
    palette = point_pictures.palette(num_classes)
    of_classes = zip(('predicted classes', 'true classes'), self.classes, strict=False)
    return {'the scan': self.colors} | {name: palette[classes] for name, classes in of_classes}

  @property
  def right(self) -> str:
    """How many of the points that have a class have the right one; '' where none has."""
    if self.true is None or not (counted := self.true >= 0).any():
      return ''
    return f'{(self.predicted == self.true)[counted].mean():.1%} right'


def overview(path: epath.Path, sample: Sample, names: Sequence[str]) -> None:
  """Draws a cloud in its colours and in those of its classes, from two sides, with a legend."""
  colorings = sample.colorings(len(names))
  point_pictures.picture(path, sample.points, colorings, sample.classes, names)


def sheet(path: epath.Path, samples: Sequence[Sample], names: Sequence[str]) -> None:
  """Draws clouds in columns: in their colours, those of the predicted classes, of the true ones.

  Args:
    path: of the PNG.
    samples: at least one.
    names: of the classes.
  """
  titles = list(samples[0].colorings(len(names)))
  page, grid = drawing.columns(len(samples), len(titles), most=4, tall=0.7, lines=2)
  for axes, sample in zip(grid, samples, strict=True):
    for panel, colors in zip(axes, sample.colorings(len(names)).values(), strict=True):
      drawing.show_image(panel, point_pictures.render(sample.points, colors))
    axes[0].set_title(drawing.shortened(sample.name, 18), fontsize=drawing.SMALL)
    axes[1].set_title(sample.right, fontsize=drawing.SMALL)
  drawing.name_panels(grid, titles, most=4)
  point_pictures.legend(page, [x for sample in samples for x in sample.classes], names)
  caption = 'Each column is a scan; walls and ceilings in front are left out.'
  if samples[0].true is not None:
    caption += ' Right: the share of the points whose predicted class is the true one.'
  drawing.save(page, path, caption)
