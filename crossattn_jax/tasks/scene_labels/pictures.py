"""Pictures of what scenes hold, and of what photographs of them look at."""

from collections.abc import Mapping, Sequence
import dataclasses

from etils import epath, epy
import numpy as np

from crossattn_jax.tasks import drawing, point_pictures

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from matplotlib import cm, colors, figure

# Photographs and classes of a picture, and scenes beside each other of a sheet.
_MOST = 4
_TALL = 0.75  # Height of a panel, of its width.


@dataclasses.dataclass(frozen=True)
class Sample:
  """A scene and what is said of it.

  Attributes:
    points: `[points, 3]` in metres.
    colors: uint8 `[points, 3]`.
    classes: `[points]`, -1 for none; None of models that see no points.
    true: the same as it should be; None where nobody knows.
    photographs: uint8 `[views, height, width, 3]`; none of models that see none.
    views_look: `[views, points]`, how much each photograph looks at each point; 1 where it looks at
      all of the scene alike. None of models that do not see both.
    classes_look: likewise `[points]`, how much class tokens of the photographs do, by class.
    name: of the scene, for sheets; '' where it has none.
  """

  points: np.ndarray
  colors: np.ndarray
  classes: np.ndarray | None = None
  true: np.ndarray | None = None
  photographs: np.ndarray = ()
  views_look: np.ndarray | None = None
  classes_look: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  name: str = ''


def scene(path: epath.Path, sample: Sample, names: Sequence[str]) -> None:
  """Draws a scene from two sides, in its colours and by classes, and what is looked at in it.

  Args:
    path: of the PNG.
    sample: what is drawn.
    names: of the classes.
  """
  first = [
    (f'{what}, {where}', point_pictures.render(sample.points, shown, side))
    for what, shown in _colorings(sample, names).items()
    for where, side in point_pictures.SIDES.items()
  ]
  rows, scale = [first], None
  caption = 'The scan of a room, what the model finds in it, and photographs of it.'
  shown = [int(k) for k in np.unique(np.linspace(0, len(sample.photographs) - 1, _MOST))]
  if len(sample.photographs):
    rows.append([(f'photograph {k + 1}', sample.photographs[k]) for k in shown])
  if sample.views_look is not None:
    looks = [sample.views_look[k] for k in shown]
    of_classes = dict(list(sample.classes_look.items())[:_MOST])
    scale = colors.LogNorm(*_range([*looks, *of_classes.values()]))
    rows.append(
      [
        (f'where photograph {k + 1} looks', _heat(sample, look, scale))
        for k, look in zip(shown, looks, strict=True)
      ]
    )
    caption += f' Below: {drawing.LOOKING[0].lower()}{drawing.LOOKING[1:]}'
    if of_classes:
      rows.append(
        [
          (f'where the class {name!r} looks', _heat(sample, look, scale))
          for name, look in of_classes.items()
        ]
      )
      caption += ' A class looks by its token of the photographs.'
  # Photographs and scenes are wider than high.
  size = (drawing.WIDTH, len(rows) * (_TALL * drawing.WIDTH / _MOST + 0.25))
  page = figure.Figure(figsize=size, layout='constrained')
  grid = page.subplots(len(rows), _MOST, squeeze=False)
  for axes in grid.flat:
    axes.set_axis_off()
  for axes, row in zip(grid, rows, strict=True):
    for panel, (title, picture) in zip(axes, row, strict=False):
      drawing.show_image(panel, picture)
      panel.set_title(title, fontsize=drawing.SMALL)
  if scale is not None:
    bar = page.colorbar(cm.ScalarMappable(scale, 'inferno'), ax=grid[2:], aspect=30, format='{x:g}')
    bar.set_label(drawing.TIMES_AVERAGE, fontsize=drawing.SMALL)
    bar.ax.tick_params(labelsize=drawing.SMALL)
  if sample.classes is not None:
    point_pictures.legend(page, [sample.classes], names)
  drawing.save(page, path, caption)


def _colorings(sample: Sample, names: Sequence[str]) -> dict[str, np.ndarray]:
  """Colours of points by what they show."""
  colorings = {'the scan': sample.colors}
  palette = point_pictures.palette(len(names))
  if sample.classes is not None:
    colorings['found'] = palette[sample.classes]
  return colorings


def _range(looks: Sequence[np.ndarray]) -> tuple[float, float]:
  """The least and the largest value that colours tell apart, of values around 1."""
  most = max(float(np.percentile(look, 99.5)) for look in looks)
  return 0.1, max(most, 2.0)


def _heat(sample: Sample, look: np.ndarray, scale: 'colors.Normalize') -> np.ndarray:
  """A scene, seen from the first side, bright where it is looked at."""
  shades = cm.ScalarMappable(scale, 'inferno').to_rgba(np.maximum(look, scale.vmin), bytes=True)
  return point_pictures.render(sample.points, shades[:, :3])


def sheet(path: epath.Path, samples: Sequence[Sample], names: Sequence[str]) -> None:
  """Draws scenes in columns: a photograph, the points, their classes as found, the true ones.

  Args:
    path: of the PNG.
    samples: at least one, all of one model; true classes may be known of some.
    names: of the classes.
  """
  first, palette = samples[0], point_pictures.palette(len(names))
  side = next(iter(point_pictures.SIDES.values()))
  titles = [
    *(['a photograph'] if len(first.photographs) else []),
    'the scan',
    *(['found'] if first.classes is not None else []),
    *(['true'] if any(sample.true is not None for sample in samples) else []),
  ]
  page, grid = drawing.columns(len(samples), len(titles), _MOST, _TALL, lines=2)
  for axes, sample in zip(grid, samples, strict=True):
    panels = dict(zip(titles, axes, strict=True))
    if 'a photograph' in panels:
      drawing.show_image(panels['a photograph'], sample.photographs[len(sample.photographs) // 2])
    colorings = {'the scan': sample.colors}
    if sample.classes is not None:
      colorings['found'] = palette[sample.classes]
    if sample.true is not None:
      colorings['true'] = palette[sample.true]
    for title, shown in colorings.items():
      drawing.show_image(panels[title], point_pictures.render(sample.points, shown, side))
    axes[0].set_title(drawing.shortened(sample.name), fontsize=drawing.SMALL)
    if sample.classes is not None and sample.true is not None:
      known = sample.true >= 0
      right = (sample.classes == sample.true)[known].mean() if known.any() else np.nan
      panels['found'].set_title(f'{right:.1%} right', fontsize=drawing.SMALL)
  drawing.name_panels(grid, titles, _MOST)
  shown = [x for sample in samples for x in (sample.classes, sample.true) if x is not None]
  if shown:
    point_pictures.legend(page, shown, names)
  drawing.save(page, path, 'Each column is a room; walls and ceilings in front are left out.')
