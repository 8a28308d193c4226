"""Pictures of clouds of points, such as scans of rooms: seen from two sides, or from any.

Points are `[points, 3]`, in metres, and z points up.
"""

from collections.abc import Mapping, Sequence
import html
import importlib.util
from typing import Any

from etils import epath, epy
import numpy as np
from scipy import spatial

from crossattn_jax.tasks import drawing
from crossattn_jax.tasks.detection import overlay

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from matplotlib import figure
  from plotly import graph_objects

UNLABELLED = 'no class'
_GREY = (160, 160, 160)
# From where clouds are looked at: degrees from the x axis towards y, and above the ground.
SIDES = {'from a corner': (-60.0, 40.0), 'from above': (-90.0, 90.0)}
_PIXELS = 480
_LARGEST = 8  # Radius of a dot.
# A layer at the side of the viewer, of that share of the cloud's extent, is a wall or a ceiling and
# is left out, where it has that share of all points and is as wide as that share of the cloud.
_LAYER, _WALL, _WIDE = 0.03, 0.06, 0.7
# Edges are darkened where something else is so much nearer, in metres, and at most so much.
_STEP, _SHADE = 0.3, 0.7
# Of a page that a browser turns quickly.
MOST_POINTS = 60_000


def palette(num_classes: int) -> np.ndarray:
  """Colours of classes and, in the last row, of what has none; uint8 `[classes + 1, 3]`."""
  return np.append(overlay.colors(num_classes), [_GREY], axis=0).astype(np.uint8)


def render(
  points: np.ndarray,
  colors: np.ndarray,
  side: tuple[float, float] = SIDES['from a corner'],
  pixels: int = _PIXELS,
) -> np.ndarray:
  """A cloud as seen from far away; white where nothing is.

  Walls in front and ceilings are left out.

  Args:
    points: `[points, 3]`.
    colors: uint8 `[points, 3]`.
    side: from where, one of `SIDES`.
    pixels: of the longer side of the picture.

  Returns:
    uint8 `[height, width, 3]`.
  """
  turned, raised = np.radians(side)
  right = np.array([-np.sin(turned), np.cos(turned), 0])
  towards = np.array(
    [*(np.cos(raised) * np.array([np.cos(turned), np.sin(turned)])), np.sin(raised)]
  )
  seen = _not_hiding(points, towards)
  axes = np.stack([right, -np.cross(towards, right), towards], axis=1)
  across, down, near = (points[seen] @ axes).T
  across, down = across - across.min(), down - down.min()
  scale = (pixels - 1) / max(across.max(), down.max(), 1e-6)
  width, height = (int(scale * x.max()) + 1 for x in (across, down))
  # Dots that just about touch each other.
  radius = int(np.clip(np.ceil(0.8 * scale * _spacing(points)), 1, _LARGEST))
  offsets = np.indices((2 * radius + 1, 2 * radius + 1)).reshape(2, -1) - radius
  offsets = offsets[:, (offsets**2).sum(axis=0) <= radius**2]
  far_to_near = np.argsort(near, kind='stable')
  rows, columns = (
    (scale * x[far_to_near]).astype(int)[:, None] + radius + offset
    for x, offset in zip((down, across), offsets, strict=True)
  )
  shape = height + 2 * radius, width + 2 * radius
  # Where several dots are in one place, the last one stays.
  winner = np.full(shape, -1)
  winner[rows, columns] = np.arange(len(near))[:, None]
  picture = colors[seen][far_to_near][winner] * _shades(near[far_to_near][winner], winner < 0)
  return np.where(winner[..., None] < 0, 255, picture).astype(np.uint8)


def _spacing(points: np.ndarray) -> float:
  """How far apart points are, in metres."""
  some = points[:: -(-len(points) // 1000)]
  distances, _ = spatial.KDTree(points).query(some, k=min(5, len(points)))
  return float(np.median(np.atleast_2d(distances)[..., -1]))


def _not_hiding(points: np.ndarray, towards: np.ndarray) -> np.ndarray:
  """Bool `[points]`: those that are in no wall between the viewer and the rest."""
  low, high = np.percentile(points, (0.5, 99.5), axis=0)
  shares = (points - low) / np.maximum(high - low, 1e-6)
  kept = np.ones(len(points), bool)
  for axis in np.flatnonzero(np.abs(towards) > 0.1):
    layer = (1 - shares[:, axis] if towards[axis] > 0 else shares[:, axis]) < _LAYER
    if layer.mean() > _WALL:
      extent = np.ptp(
        np.percentile(np.delete(shares[layer], axis, axis=1), (1, 99), axis=0), axis=0
      )
      kept &= ~(layer & (extent.min() > _WIDE))
  return kept if kept.any() else ~kept


def _shades(near: np.ndarray, empty: np.ndarray) -> np.ndarray:
  """How bright each pixel is, `[height, width, 1]`: darker next to what is in front of it."""
  near = np.pad(np.where(empty, -np.inf, near), 1, constant_values=-np.inf)
  own = near[1:-1, 1:-1]
  around = (near[:-2, 1:-1], near[2:, 1:-1], near[1:-1, :-2], near[1:-1, 2:])
  with np.errstate(invalid='ignore'):
    steps = [
      np.clip(np.nan_to_num(other - own, posinf=0, neginf=0) / _STEP, 0, 1) for other in around
    ]
  return (1 - _SHADE * np.mean(steps, axis=0))[..., None]


def legend(page: 'figure.Figure', shown: Sequence[np.ndarray], names: Sequence[str]) -> None:
  """Names the classes that occur, and their colours, below a page.

  Args:
    page: of matplotlib.
    shown: classes, -1 for none.
    names: of the classes.
  """
  colors = palette(len(names)) / 255
  present = np.unique(np.concatenate([np.ravel(classes) for classes in shown]))
  order = np.append(present[present >= 0], present[present < 0])
  drawing.legend(page, {[*names, UNLABELLED][index]: colors[index] for index in order})


def picture(
  path: epath.Path,
  points: np.ndarray,
  colorings: Mapping[str, np.ndarray],
  classes: Sequence[np.ndarray],
  names: Sequence[str],
) -> None:
  """Draws a cloud from two sides, in a column for each way to colour it.

  Args:
    path: of the PNG.
    points: `[points, 3]`.
    colorings: colours of the points, uint8 `[points, 3]`, by what they show.
    classes: that occur, for the legend; -1 for none.
    names: of the classes.
  """
  views = [
    [render(points, colors, side) for colors in colorings.values()] for side in SIDES.values()
  ]
  heights = [row[0].shape[0] for row in views]
  width = drawing.WIDTH / len(colorings)
  size = (drawing.WIDTH, width * sum(heights) / _PIXELS + 0.3)
  page = figure.Figure(figsize=size, layout='constrained')
  grid = page.subplots(
    len(SIDES), len(colorings), squeeze=False, gridspec_kw={'height_ratios': heights}
  )
  for axes, row in zip(grid, views, strict=True):
    for panel, view in zip(axes, row, strict=True):
      drawing.show_image(panel, view)
  for panel, name in zip(grid[0], colorings, strict=True):
    panel.set_title(name, fontsize=drawing.TEXT)
  legend(page, classes, names)
  sides = ' and '.join(SIDES)
  drawing.save(page, path, f'The scan, seen {sides}; walls and ceilings in front are left out.')


def can_be_turned() -> bool:
  """Whether `page` has what it needs: the extra `points`."""
  return importlib.util.find_spec('plotly') is not None


def page(
  path: epath.Path,
  points: np.ndarray,
  colors: np.ndarray,
  classes: np.ndarray,
  names: Sequence[str],
  title: str,
) -> None:
  """Writes a web page that needs nothing else, on which a cloud is turned with the mouse.

  A click on a class hides it, a button shows true colours in place of those of the classes. Of
  large clouds, `MOST_POINTS` are shown.

  Args:
    path: of the HTML.
    points: `[points, 3]`.
    colors: uint8 `[points, 3]`, the true ones.
    classes: `[points]`, -1 for none.
    names: of the classes.
    title: of the page, to which the number of points is added.
  """
  title = f'{title}: {len(points):,} points'
  if len(points) > MOST_POINTS:
    title += f', of which {MOST_POINTS:,} are shown'
    chosen = np.random.default_rng(0).choice(len(points), MOST_POINTS, replace=False)
    chosen.sort()
    points, colors, classes = points[chosen], colors[chosen], classes[chosen]
  points = points.astype(np.float32)
  true_colors = np.array([f'#{r:02x}{g:02x}{b:02x}' for r, g, b in colors.tolist()])
  of_classes = ['#{:02x}{:02x}{:02x}'.format(*color) for color in palette(len(names))]
  members = {index: np.flatnonzero(classes == index) for index in np.unique(classes)}
  traces = [
    graph_objects.Scatter3d(
      x=points[rows, 0],
      y=points[rows, 1],
      z=points[rows, 2],
      mode='markers',
      marker={'size': 2, 'color': of_classes[index]},
      name=[*names, UNLABELLED][index],
      hovertemplate='%{x:.2f}, %{y:.2f}, %{z:.2f} m',
    )
    for index, rows in members.items()
  ]
  buttons = {
    'classes': ([of_classes[index] for index in members], True),
    'colours': ([true_colors[rows].tolist() for rows in members.values()], False),
  }
  shown = graph_objects.Figure(traces, layout=_layout(title, buttons))
  body = shown.to_html(
    full_html=False,
    include_plotlyjs=True,
    config={'responsive': True, 'displaylogo': False},
    default_height='100vh',
    # Narrow screens show the whole width from farther away.
    post_script="if (innerWidth < innerHeight) Plotly.relayout('{plot_id}', "
    "{'scene.camera.eye': {x: 1.6, y: -2.6, z: 2.6}})",
  )
  head = (
    f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>body {{margin: 0}}</style>'
  )
  path.write_text(f'<!doctype html><html><head>{head}</head><body>{body}</body></html>\n')


def _layout(title: str, buttons: Mapping[str, tuple[Sequence, bool]]) -> dict[str, Any]:
  """Of plotly: a scene without axes, and buttons.

  Args:
    title: of the page.
    buttons: colours of each trace, and whether the legend is shown, by what is written on them.
  """
  axis = {'visible': False}
  return {
    'title': {'text': html.escape(title), 'font': {'size': 14}, 'x': 0.02},
    'scene': {
      'xaxis': axis,
      'yaxis': axis,
      'zaxis': axis,
      'aspectmode': 'data',
      'camera': {'eye': {'x': 0.9, 'y': -1.5, 'z': 1.5}},
    },
    'margin': {'l': 0, 'r': 0, 't': 90, 'b': 0},
    'legend': {'itemsizing': 'constant', 'orientation': 'h', 'y': 0, 'yanchor': 'bottom'},
    'updatemenus': [
      {
        'type': 'buttons',
        'direction': 'right',
        'x': 0.02,
        'xanchor': 'left',
        'y': 1,
        'yanchor': 'bottom',
        'buttons': [
          {
            'label': label,
            'method': 'update',
            'args': [{'marker.color': colors}, {'showlegend': legend}],
          }
          for label, (colors, legend) in buttons.items()
        ],
      }
    ],
  }
