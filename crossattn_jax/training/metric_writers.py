"""What a run tells: metrics as JSON lines and TensorBoard events, one progress line, a final table.

`metrics.jsonl` holds one JSON object per line. Numbers are written with every digit, so that equal
lines mean bit-identical metrics. JSON has no non-finite numbers: they are written as the strings
'nan', 'inf' and '-inf', which Python's `float` reads.
"""

import collections
from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import math
import os
import time
from typing import Any, Protocol, TextIO

from etils import epath
import jax
import numpy as np
from PIL import Image
import rich.console
import rich.markup
import rich.progress
import rich.table
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2, summary_pb2

from crossattn_jax.training import files

METRICS_FILE = 'metrics.jsonl'
_FLUSH_SECONDS = 10.0
# Share of the time that the devices have nothing to do, from which on that is said.
_NOTICEABLE = 0.1
_NON_FINITE = {'nan': math.nan, 'inf': math.inf, '-inf': -math.inf}


# What the metrics of training steps are, each of a batch.
TRAINING_WORDS: Mapping[str, str] = {
  'loss': 'what training lowers, of each batch',
  'learning_rate': 'of the step, before multipliers of parameters',
  'gradient_norm': 'length of the gradient of all parameters, before it is clipped',
  'accuracy': 'share of the batch that is right',
  'skipped_examples': 'examples that could not be read, since the start',
  'padding': 'share of the batch that is padding',
  # Parts of the loss.
  'angular_loss': 'how far pairs are from the angle that SAEM wants between them',
  'auxiliary_loss': 'the same losses of earlier layers',
  'box_loss': 'how far boxes are from the true ones',
  'class_loss': 'how wrong the classes of what was found are',
  'consistency_loss': 'how much what belongs together differs',
  'cross_loss': 'how wrong the tags are that points and photographs give together',
  'distillation_loss': 'how far the model is from its teacher',
  'giou_loss': 'how little boxes overlap the true ones',
  'gradient_loss': 'how far edges are from the strongest of both images',
  'intensity_loss': 'how far levels are from those of the images',
  'iou_loss': 'how wrong the model is about how well its boxes fit',
  'lovasz_loss': 'one minus a smooth form of the IoU',
  'margin_loss': 'by how much less than a margin what was found scores above the rest',
  'mask_loss': 'how wrong the pixels of masks are',
  'norm_penalty': "length of the image branch's kernels, which SAEM keeps short",
  'objectness_loss': 'how wrong it is where anything is',
  'pair_margin_loss': 'the same as margin_loss, of all pairs',
  'proposal_loss': 'how far proposed boxes are from the true ones',
  'token_similarity_loss': 'how little class tokens look at their like in the other modality',
  'triplet_loss': 'by how much less than a margin true pairs score above false ones',
  'view_cam_loss': 'how wrong the tags are that places of the photographs give',
  'view_class_loss': 'how wrong the tags are that the photographs give',
  'voxel_cam_loss': 'how wrong the tags are that single supervoxels give',
  'voxel_class_loss': 'how wrong the tags are that the points give',
  # Of detectors.
  'cardinality_error': 'by how many the number of boxes is wrong, mean over images',
  'class_error': 'share of the boxes of objects whose class is wrong, in percent',
  'region_accuracy': 'share of the regions whose best class is right',
}


def explain_training(metric: str) -> str:
  """What a metric of training steps is, in plain words; '' where nobody says."""
  return TRAINING_WORDS.get(metric, '')


class Tracker(Protocol):
  """A service that shows metrics and pictures of runs; see `weights_and_biases`."""

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Sends metrics of a step."""

  def write_picture(self, step: int, name: str, picture: Image.Image) -> None:
    """Sends a picture."""

  def close(self) -> None:
    """Ends the run once all is sent."""


class MetricWriter:
  """Writes the metrics of a run into its workdir; only process 0 does, the others do nothing.

  A JSON line has left the process when `write` returns: a killed run loses none.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    explain: Callable[[str], str] = lambda name: '',
    create_tracker: Callable[[], Tracker] | None = None,
  ):
    """Creates `workdir` if need be; lines that are there already are kept.

    Args:
      workdir: of the run.
      explain: name of an evaluation metric -> what that is in plain words.
      create_tracker: starts a service that gets the same.
    """
    self._path = epath.Path(workdir) / METRICS_FILE
    self._active = jax.process_index() == 0
    self._explain, self._explained = explain, set()
    self._tracker = create_tracker() if self._active and create_tracker else None
    if self._active:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      # Not `SummaryWriter`, whose thread ends where the disk is full; the run would wait for it.
      self._events = event_file_writer.EventsWriter(os.fspath(self._path.with_name('events')))
      self._last_flush = time.monotonic()

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Writes scalars.

    Args:
      step: of the run.
      metrics: by name, such as 'train/loss'; Python numbers or arrays of one element.

    Raises:
      ValueError: a metric is called 'step' or 'time', which every line has.
    """
    if not self._active:
      return
    if taken := {'step', 'time'} & metrics.keys():
      raise ValueError(f'a metric may not be called {min(taken)!r}: every line has one')
    scalars = {name: np.asarray(value).item() for name, value in metrics.items()}
    line = {'step': int(step), **scalars, 'time': time.time()}
    text = json.dumps({name: _encode(value) for name, value in line.items()}, allow_nan=False)
    with self._path.open('a') as file:
      file.write(text + '\n')
    for name, value in scalars.items():
      words = {'summary_description': self._words(name)}
      self._write_event(int(step), summary.scalar(name, value, **words), line['time'])
    if self._tracker:
      self._tracker.write(int(step), scalars)
    if time.monotonic() - self._last_flush > _FLUSH_SECONDS:
      self._events.flush()
      self._last_flush = time.monotonic()

  def write_picture(self, step: int, path: epath.Path) -> None:
    """Shows a picture of the workdir in TensorBoard, under the name of its file."""
    if not self._active:
      return
    with path.open('rb') as file, Image.open(file) as opened:
      picture = opened.convert('RGB')
    image = summary.image(f'pictures/{path.stem}', np.asarray(picture), dataformats='HWC')
    self._write_event(int(step), image, time.time())
    if self._tracker:
      self._tracker.write_picture(int(step), path.stem, picture)

  def _write_event(self, step: int, content: summary_pb2.Summary, now: float) -> None:
    self._events.write_event(event_pb2.Event(wall_time=now, step=step, summary=content))

  def _words(self, name: str) -> str:
    """What TensorBoard says of a metric, with its first value."""
    if name in self._explained:
      return ''
    self._explained.add(name)
    part, _, metric = name.partition('/')
    return {'train': explain_training, 'eval': self._explain}.get(part, lambda _: '')(metric)

  def truncate(self, step: int) -> None:
    """Drops the JSON lines of steps after `step`, which a resumed run writes again.

    A last line that a crash cut short goes too. The file is replaced in one operation. TensorBoard
    keeps the old events and draws the new ones over them.

    Args:
      step: that the run resumes from.
    """
    if not self._active or not self._path.exists():
      return
    kept = [line for line in _complete_lines(self._path) if json.loads(line)['step'] <= step]
    files.replace_text(self._path, ''.join(kept))

  def close(self) -> None:
    """Flushes and closes the TensorBoard events and the tracker."""
    if self._active:
      self._events.close()
    if self._tracker:
      self._tracker.close()


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """Returns the lines of a workdir's `metrics.jsonl`, with non-finite numbers as floats."""
  lines = _complete_lines(epath.Path(workdir) / METRICS_FILE)
  return [
    {name: _NON_FINITE.get(value, value) for name, value in json.loads(line).items()}
    for line in lines
  ]


class ProgressLine:
  """One line that says how far a run is: step, metrics, speed, waiting for data, time left.

  On a terminal and in a notebook the line is refreshed in place; elsewhere a new one is printed
  every ten seconds.
  Only process 0 prints. A context manager: leaving it ends the line.
  """

  def __init__(
    self,
    total_steps: int,
    *,
    batch_size: int,
    unit: str = 'examples',
    start_step: int = 0,
    stream: TextIO | None = None,
  ):
    """Prepares the line; the first `update` starts the clock, so that compiling is not counted.

    Args:
      total_steps: of the run.
      batch_size: examples per step, over all processes.
      unit: what these are, such as 'images'.
      start_step: that the run starts or resumes from.
      stream: where to print; standard error if None.
    """
    console = rich.console.Console(file=stream, stderr=stream is None, soft_wrap=True)
    self._total = total_steps
    self._batch_size, self._unit = batch_size, unit
    self._metrics: dict[str, float] = {}
    self._waited = 0.0
    # The speed is that of the last updates: evaluations and checkpoints in between count.
    self._times: collections.deque[tuple[float, int, float]] = collections.deque(maxlen=256)
    self._last_print = -math.inf
    self._console = console if jax.process_index() == 0 else None
    self._bar = self._cell = None
    if self._console and console.is_terminal:
      self._bar = rich.progress.Progress(
        rich.progress.BarColumn(bar_width=20),
        rich.progress.TextColumn('{task.description}', markup=False),
        console=console,
        auto_refresh=False,
      )
      self._task = self._bar.add_task('compiling', total=total_steps, completed=start_step)
      self._bar.start()
    elif self._console and console.is_jupyter:
      self._cell = _NotebookLine()

  def __enter__(self) -> 'ProgressLine':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts the time until its end as waiting for data."""
    started = time.monotonic()
    yield
    self._waited += time.monotonic() - started

  def update(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
    """Shows that `step` steps are done.

    Args:
      step: steps done since the start of the run.
      metrics: to show, by name, until newer ones come. Give them when they are on the host anyway:
        a device array is waited for.
    """
    if not self._console:
      return
    now = time.monotonic()
    self._times.append((now, step, self._waited))
    if metrics is not None:
      self._metrics = {name: float(value) for name, value in metrics.items()}
    refresh = 0.1 if self._bar else 1.0 if self._cell else 10.0
    if now - self._last_print < refresh and step < self._total:
      return
    self._last_print = now
    if self._bar:
      self._bar.update(self._task, completed=step, description=self._text(step))
      self._bar.refresh()
    elif self._cell:
      self._cell.show(self._text(step))
    else:
      self._console.print(self._text(step), markup=False, highlight=False)

  def close(self) -> None:
    """Ends the line; printing goes on below it."""
    if self._bar:
      self._bar.stop()

  def _text(self, step: int) -> str:
    parts = [f'step {step}/{self._total}']
    parts += [f'{name} {value:.4g}' for name, value in self._metrics.items()]
    (first_time, first_step, waited), (last_time, last_step, waited_since) = (
      self._times[0],
      self._times[-1],
    )
    if last_step > first_step:
      seconds = last_time - first_time
      speed = (last_step - first_step) / seconds
      parts.append(f'{speed * self._batch_size:.4g} {self._unit}/s')
      if (share := (waited_since - waited) / seconds) >= _NOTICEABLE:
        parts.append(f'{share:.0%} waiting for data')
      parts.append(f'{_duration((self._total - step) / speed)} left')
    return '  '.join(parts)


class _NotebookLine:
  """A line below a notebook's cell; rich's own bar would need ipywidgets there."""

  def __init__(self):
    from IPython import display

    self._handle = display.DisplayHandle()
    self._write = self._handle.display

  def show(self, text: str) -> None:
    """Puts the text in the place of the last one."""
    self._write({'text/plain': text}, raw=True)
    self._write = self._handle.update


def summary_table(
  metrics: Mapping[str, Any], explain: Callable[[str], str] = lambda name: ''
) -> rich.table.Table:
  """Returns a table of metrics by name, for `rich.print`.

  Args:
    metrics: by name.
    explain: name -> what that is in plain words.
  """
  words = [explain(name) for name in metrics]
  table = rich.table.Table('metric', rich.table.Column('value', justify='right'))
  if any(words):
    table.add_column('which is')
  for (name, value), meaning in zip(metrics.items(), words, strict=True):
    number = np.asarray(value).item()
    row = (name, f'{number:.6g}' if isinstance(number, float) else str(number), meaning)
    table.add_row(*map(rich.markup.escape, row[: len(table.columns)]))
  return table


def _encode(value: float) -> float | str:
  """Returns a number as JSON can hold it."""
  return value if math.isfinite(value) else str(value)


def _complete_lines(path: epath.Path) -> list[str]:
  """Returns the lines that end in a newline, which only a crash's last one does not."""
  return [line for line in path.read_text().splitlines(keepends=True) if line.endswith('\n')]


def _duration(seconds: float) -> str:
  """Formats as h:mm:ss or m:ss."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
