"""Pictures of fused images beside what they were fused from."""

from collections.abc import Mapping, Sequence
import dataclasses

from etils import epath, epy
import numpy as np

from crossattn_jax.tasks import attention_maps, drawing

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from matplotlib import figure


@dataclasses.dataclass(frozen=True)
class Sample:
  """A pair and what was made of it, uint8 `[height, width]` or `[height, width, 3]`.

  Attributes:
    visible: image.
    infrared: image.
    fused: image.
  """

  visible: np.ndarray
  infrared: np.ndarray
  fused: np.ndarray


def _show(axes, image: np.ndarray) -> None:
  if image.ndim == 2:
    # Else matplotlib stretches the levels that occur to black and white.
    image = np.repeat(image[..., None], 3, axis=-1)
  drawing.show_image(axes, image)


def side_by_side(
  path: epath.Path, sample: Sample, attention: Mapping[str, attention_maps.Attention]
) -> None:
  """Draws both images, the fused one, and attention maps over it.

  Args:
    path: of the PNG.
    sample: of the pair.
    attention: named maps over the fused image.
  """
  panels = {'visible': sample.visible, 'infrared': sample.infrared, 'fused': sample.fused}
  tall = sample.fused.shape[0] / sample.fused.shape[1]
  count = len(panels) + len(attention)
  page = figure.Figure(figsize=(3.4 * count, 3.4 * tall + 0.4), layout='constrained')
  axes = page.subplots(1, count)
  for panel, (title, image) in zip(axes, panels.items(), strict=False):
    _show(panel, image)
    panel.set_title(title, fontsize=9)
  for panel, (title, shown) in zip(axes[len(panels) :], attention.items(), strict=True):
    drawing.show_attention(panel, sample.fused, shown)
    panel.set_title(title, fontsize=9)
  drawing.save(page, path)


def sheet(path: epath.Path, samples: Sequence[Sample]) -> None:
  """Draws pairs in columns: visible, infrared, fused.

  Args:
    path: of the PNG.
    samples: at least one.
  """
  page = figure.Figure(figsize=(1.9 * len(samples), 6.0), layout='constrained')
  grid = page.subplots(3, len(samples), squeeze=False)
  for column, sample in enumerate(samples):
    for row, title in enumerate(('visible', 'infrared', 'fused')):
      _show(grid[row, column], getattr(sample, title))
      if column == 0:
        grid[row, 0].set_title(title, fontsize=8, loc='left')
  drawing.save(page, path)
