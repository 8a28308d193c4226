"""Pictures of fused images beside what they were fused from."""

from collections.abc import Mapping, Sequence
import dataclasses

from etils import epath
import numpy as np

from crossattn_jax.tasks import attention_maps, drawing


@dataclasses.dataclass(frozen=True)
class Sample:
  """A pair and what was made of it.

  Attributes:
    visible: image, uint8 `[height, width]` or `[height, width, 3]`.
    infrared: likewise.
    fused: likewise.
    attention: named maps over the fused image.
    name: of the visible file, for sheets; '' where it has none.
  """

  visible: np.ndarray
  infrared: np.ndarray
  fused: np.ndarray
  attention: Mapping[str, attention_maps.Attention]
  name: str = ''


def side_by_side(path: epath.Path, sample: Sample) -> None:
  """Draws both images, the fused one, and attention maps over it.

  Args:
    path: of the PNG.
    sample: of the pair.
  """
  panels = {'visible': sample.visible, 'infrared': sample.infrared, 'fused': sample.fused}
  tall = sample.fused.shape[0] / sample.fused.shape[1]
  count = len(panels) + len(sample.attention)
  page, axes = drawing.panels(count, (3.4, 3.4 * tall + 0.4))
  for panel, (title, image) in zip(axes, panels.items(), strict=False):
    drawing.show_image(panel, image)
    panel.set_title(title, fontsize=9)
  for panel, (title, shown) in zip(axes[len(panels) :], sample.attention.items(), strict=True):
    drawing.show_attention(panel, sample.fused, shown)
    panel.set_title(title, fontsize=9)
  drawing.save(page, path)


def sheet(path: epath.Path, samples: Sequence[Sample]) -> None:
  """Draws pairs in columns: visible, infrared, fused.

  Args:
    path: of the PNG.
    samples: at least one.
  """
  titles = ('visible', 'infrared', 'fused')
  page, grid = drawing.columns(len(samples), len(titles), (1.9, 2.0))
  for axes, sample in zip(grid, samples, strict=True):
    for panel, title in zip(axes, titles, strict=True):
      drawing.show_image(panel, getattr(sample, title))
    axes[0].set_title(drawing.shortened(sample.name), fontsize=8, loc='right')
  drawing.name_panels(grid, titles)
  drawing.save(page, path)
