"""The course of a run: loss, learning rate and evaluation metrics over steps."""

import math
from typing import Any

from etils import epath
import numpy as np

from crossattn_jax import tasks
from crossattn_jax.tasks import drawing
from crossattn_jax.training import metric_writers

# Points of which a running mean is drawn too, and how many it is of.
_MANY, _SMOOTHED_SHARE = 100, 0.02

Points = tuple[np.ndarray, np.ndarray]


def read(workdir: epath.Path) -> dict[str, Points]:
  """Steps and values of each metric of a run, restarts included; not finite ones left out."""
  found: dict[str, list[tuple[int, float]]] = {}
  for line in metric_writers.read_metrics(workdir):
    for name, value in line.items():
      if name not in ('step', 'time') and math.isfinite(value):
        found.setdefault(name, []).append((line['step'], value))
  return {name: tuple(map(np.array, zip(*points, strict=True))) for name, points in found.items()}


def draw(path: epath.Path, workdir: epath.Path, task: tasks.Task, steps_per_epoch: int) -> None:
  """Draws the metrics of a run; nothing where it has none yet.

  Args:
    path: of the PNG.
    workdir: of the run.
    task: that was learnt.
    steps_per_epoch: training steps in an epoch.
  """
  points = read(workdir)
  shown = [name for name in task.main_metrics if name != 'loss' and f'eval/{name}' in points]
  panels = [name for name in ('loss', 'learning_rate') if f'train/{name}' in points] + shown
  if not panels:
    return
  page, axes = drawing.panels(len(panels), 0.6, most=2, lines=2)
  for panel, name in zip(axes, panels, strict=True):
    if name == 'loss':
      _draw_loss(panel, points)
    elif name == 'learning_rate':
      panel.plot(*points['train/learning_rate'], color='tab:gray')
      _label(panel, 'learning rate', metric_writers.explain_training(name))
    else:
      _draw_evaluations(panel, points[f'eval/{name}'], task.metric_modes[name])
      _label(panel, name, task.explain(name))
    panel.set_xlabel(f'step ({steps_per_epoch:,} are an epoch)', fontsize=drawing.SMALL)
    panel.tick_params(labelsize=drawing.SMALL)
    panel.grid(alpha=0.3)
  drawing.save(page, path)


def _draw_loss(panel: Any, points: dict[str, Points]) -> None:
  steps, values = points['train/loss']
  many = len(steps) > _MANY
  panel.plot(
    steps, values, color='tab:blue', alpha=0.3 if many else 1, linewidth=1, label='training batch'
  )
  if many:
    count = max(2, round(_SMOOTHED_SHARE * len(steps)))
    mean = np.convolve(values, np.full(count, 1 / count), 'valid')
    panel.plot(steps[count - 1 :], mean, color='tab:blue', label=f'mean of {count} batches')
  if 'eval/loss' in points:
    panel.plot(*points['eval/loss'], color='tab:orange', marker='.', label='evaluation')
  if many or 'eval/loss' in points:
    panel.legend(fontsize=drawing.SMALL)
  _label(panel, 'loss', metric_writers.explain_training('loss'))


def _draw_evaluations(panel: Any, points: Points, mode: str) -> None:
  steps, values = points
  panel.plot(steps, values, color='tab:orange', marker='.')
  best = int(values.argmax() if mode == 'max' else values.argmin())
  panel.plot(steps[best], values[best], 'o', color='tab:green')
  highest = {'max': 'highest', 'min': 'lowest'}[mode]
  panel.legend(
    panel.lines[1:],
    [f'{highest}: {values[best]:.4g} after step {steps[best]:,}'],
    fontsize=drawing.SMALL,
  )


def _label(panel: Any, name: str, words: str) -> None:
  panel.set_ylabel(name, fontsize=drawing.TEXT)
  panel.set_title(drawing.wrapped(words, drawing.WIDTH / 2 - 1), fontsize=drawing.SMALL, loc='left')
