"""What a run and an evaluation leave to look at: pictures, and the tables behind them."""

from collections.abc import Callable
from typing import Any

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils

from crossattn_jax import tasks
from crossattn_jax.tasks import review as review_lib
from crossattn_jax.tasks import review_pictures
from crossattn_jax.training import curves, files

PREDICTIONS, CONFUSION, WORST, CURVES = (
  'predictions.png',
  'confusion.png',
  'worst.png',
  'curves.png',
)


def write_curves(task: tasks.Task, steps_per_epoch: int, workdir: epath.Path) -> list[epath.Path]:
  """Draws the metrics of a run; process 0 does. Returns the picture, if there is one."""
  path = workdir / CURVES
  return _drawn({path: lambda: curves.draw(path, workdir, task, steps_per_epoch)})


def review(task: tasks.Task, evaluation: tasks.Evaluation, examples: Any) -> tasks.Review:
  """See `Task.review`. What fails there is a warning: metrics do not depend on it."""
  try:
    return task.review(evaluation, examples)
  except Exception as error:
    logging.warning('no review of errors: %s', error, exc_info=logging.vlog_is_on(1))
    return tasks.Review()


def write(
  task: tasks.Task, variables: Any, review: tasks.Review | None, folder: epath.Path
) -> list[epath.Path]:
  """Draws predictions and what an evaluation shows; writes the counts of it as tables.

  Every process calls it, outside the mesh; process 0 draws, which for this needs all parameters. A
  picture that fails is a warning: what was learnt is saved.

  Args:
    task: that was learnt.
    variables: of its model.
    review: of the evaluation; None leaves what an earlier one wrote.
    folder: of the files.

  Returns:
    The pictures.
  """
  if jax.process_count() > 1:
    variables = multihost_utils.process_allgather(variables, tiled=True)
  if jax.process_index() > 0:
    return []
  predictor = task.Predictor(task, variables)
  drawings = {folder / PREDICTIONS: lambda: predictor.write_samples(folder / PREDICTIONS)}
  if review is not None:
    _remove(folder)
    if review.confusion is not None:
      drawings[folder / CONFUSION] = lambda: _write_confusion(review.confusion, folder / CONFUSION)
    if review.mistakes:
      drawings[folder / WORST] = lambda: _write_worst(predictor, review.mistakes, folder / WORST)
  return _drawn(drawings)


def _remove(folder: epath.Path) -> None:
  """Removes what an earlier evaluation found, which is not what this one did."""
  for name in (CONFUSION, WORST):
    for path in (folder / name, (folder / name).with_suffix('.csv')):
      try:
        path.unlink(missing_ok=True)
      except OSError as error:  # A folder that can only be read.
        logging.warning('%s is of an earlier evaluation: %s', path, error)


def _write_confusion(confusion: review_lib.Confusion, path: epath.Path) -> None:
  files.replace_text(path.with_suffix('.csv'), confusion.to_csv())
  review_pictures.confusion(path, confusion)


def _write_worst(
  predictor: tasks.Predictor, mistakes: list[review_lib.Mistake], path: epath.Path
) -> None:
  names = [predictor.mistake_name(mistake) for mistake in mistakes]
  files.replace_text(path.with_suffix('.csv'), review_lib.mistakes_csv(mistakes, names))
  predictor.write_worst(path, mistakes)


def _drawn(drawings: dict[epath.Path, Callable[[], None]]) -> list[epath.Path]:
  """The pictures that could be drawn."""
  if jax.process_index() > 0:
    return []
  drawn = []
  for path, draw in drawings.items():
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      draw()
      drawn.append(path)
    except Exception as error:
      logging.warning('no %s: %s', path.name, error, exc_info=logging.vlog_is_on(1))
  return [path for path in drawn if path.exists()]
