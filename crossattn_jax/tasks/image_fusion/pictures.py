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
  images = {'visible': sample.visible, 'infrared': sample.infrared, 'fused': sample.fused}
  tall = sample.fused.shape[0] / sample.fused.shape[1]
  page, axes = drawing.panels(
    len(images) + len(sample.attention), tall, most=3, lines=2, bars=bool(sample.attention)
  )
  for panel, (title, image) in zip(axes, images.items(), strict=False):
    drawing.show_image(panel, image)
    panel.set_title(title, fontsize=drawing.TEXT)
  for panel, (title, attention) in zip(axes[len(images) :], sample.attention.items(), strict=True):
    shown = drawing.show_attention(panel, sample.fused, attention)
    drawing.add_bar(page, shown, [panel], shrink=0.9)
    panel.set_title(drawing.wrapped(title, drawing.WIDTH / 3 - 1), fontsize=drawing.TEXT)
  caption = 'Two images of the same scene, and the one that the model makes of both.'
  if sample.attention:
    caption += (
      ' Below, in the order of the network, from where each step takes what it adds: bright places'
      ' count most; 2 is twice as much as the average place.'
    )
  drawing.save(page, path, caption)


def sheet(path: epath.Path, samples: Sequence[Sample]) -> None:
  """Draws pairs in columns: visible, infrared, fused.

  Args:
    path: of the PNG.
    samples: at least one.
  """
  titles = ('visible', 'infrared', 'fused')
  page, grid = drawing.columns(len(samples), len(titles))
  for axes, sample in zip(grid, samples, strict=True):
    for panel, title in zip(axes, titles, strict=True):
      drawing.show_image(panel, getattr(sample, title))
    axes[0].set_title(drawing.shortened(sample.name), fontsize=drawing.SMALL)
  drawing.name_panels(grid, titles)
  caption = 'Each column is two images of the same scene, and what the model makes of both.'
  drawing.save(page, path, caption)
