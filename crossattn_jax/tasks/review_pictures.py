"""Pictures of which classes are taken for which."""

from etils import epath, epy
import numpy as np

from crossattn_jax.tasks import drawing, review

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from matplotlib import figure

# Classes whose matrix can be read, and of those whose shares can be written into it.
_MOST_CLASSES, _MOST_WRITTEN = 40, 21
# Bars of a page where there are more classes.
_BARS = 25


def confusion(path: epath.Path, shown: review.Confusion) -> None:
  """Draws how much of each true class is said to be of which class.

  Of many classes, it draws the pairs that are confused most, and the classes that are found least.

  Args:
    path: of the PNG.
    shown: counts.
  """
  many = max(shown.counts.shape) > _MOST_CLASSES
  page = _pairs(shown) if many else _matrix(shown)
  drawing.save(page, path)


def _matrix(shown: review.Confusion) -> 'figure.Figure':
  shares, (rows, columns) = shown.shares, shown.counts.shape
  most = max(rows, columns)
  written = most <= _MOST_WRITTEN
  # Inches of a cell.
  size = 0.55 if most <= 12 else 0.42 if written else 0.26
  longest = max(map(len, [*shown.names, *shown.columns]))
  margin = 1.2 + 0.075 * min(longest, 24)
  page = figure.Figure(
    figsize=(max(3.2, size * columns) + margin + 1, max(2.4, size * rows) + margin),
    layout='constrained',
  )
  axes = page.subplots()
  axes.set_facecolor('lightgray')  # Of classes that do not occur.
  image = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
  axes.set_xticks(range(columns), _short(shown.columns), rotation=90 if columns > 4 else 0)
  axes.set_yticks(range(rows), _short(shown.names))
  axes.tick_params(labelsize=9)
  axes.set_xlabel('predicted')
  axes.set_ylabel('true')
  page.colorbar(image, label=f'share of the {shown.unit} of the true class', shrink=0.8)
  if written:
    for row, column in np.argwhere(shown.counts > 0):
      share = shares[row, column]
      axes.text(
        column,
        row,
        _percent(share),
        ha='center',
        va='center',
        fontsize=9 if most <= 12 else 7,
        color='white' if share > 0.5 else 'black',
      )
  title = f'{_right(shown)}; numbers are % of the true class' if written else _right(shown)
  axes.set_title(title, fontsize=10)
  return page


def _pairs(shown: review.Confusion) -> 'figure.Figure':
  shares = shown.shares
  counts, common = shown.counts.copy(), min(shown.counts.shape)
  own = np.arange(common)
  counts[own, own] = 0
  order = np.argsort(-counts.ravel(), kind='stable')[:_BARS]
  order = order[counts.ravel()[order] > 0]
  pairs = np.stack(np.unravel_index(order, counts.shape), axis=1)
  recall = shares[own, own]
  least = np.argsort(np.where(np.isnan(recall), np.inf, recall), kind='stable')[:_BARS]
  least = least[~np.isnan(recall[least])]

  page = figure.Figure(figsize=(13, 7), layout='constrained')
  page.suptitle(f'{len(shown.names)} classes, {_right(shown)}')
  left, right = page.subplots(1, 2, width_ratios=(3, 2))
  _bars(
    left,
    [f'{_clip(shown.names[row])} → {_clip(shown.columns[column])}' for row, column in pairs],
    [counts[row, column] for row, column in pairs],
    [f'{counts[row, column]:,} ({_percent(shares[row, column])} %)' for row, column in pairs],
  )
  left.set_title('confused most often (true → predicted)')
  left.set_xlabel(f'{shown.unit} (% of those of the true class)')
  _bars(
    right,
    [_clip(shown.names[row]) for row in least],
    [100 * recall[row] for row in least],
    [f'{_percent(recall[row])} %' for row in least],
  )
  right.set_xlim(0, 115)
  right.set_title('classes that are found least')
  right.set_xlabel(f'% of the {shown.unit} of the class that are found')
  return page


def _bars(axes, names: list[str], values: list[float], texts: list[str]) -> None:
  bars = axes.barh(range(len(names)), values)
  axes.bar_label(bars, texts, padding=3, fontsize=8)
  axes.set_yticks(range(len(names)), names, fontsize=8)
  axes.invert_yaxis()
  axes.margins(x=0.2)


def _right(shown: review.Confusion) -> str:
  """How much is right of all."""
  total = shown.counts.sum() if shown.totals is None else shown.totals.sum()
  right = np.trace(shown.counts)
  return f'{right / max(total, 1):.1%} of {int(total):,} {shown.unit} are right'


def _percent(share: float) -> str:
  return '<1' if 0 < share < 0.005 else f'{100 * share:.0f}'


def _short(names: list[str]) -> list[str]:
  return [_clip(name) for name in names]


def _clip(name: str) -> str:
  return name if len(name) <= 24 else name[:23] + '…'
