"""How a run ends before its last step: on a signal, or because it no longer improves."""

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

from crossattn_jax.training import messages, metric_writers

# The exit status of a program that SIGINT ended, as shells count.
_QUIT = 128 + signal.SIGINT
# A program that starts this one, such as `timeout`, may pass a Ctrl-C on that both received.
_SECONDS_BETWEEN = 0.2


class Interrupted(SystemExit):
  """The run was asked to stop; its state is saved. Exits with status 0."""


class StopSignal:
  """Turns Ctrl-C, and the SIGTERM that clusters send ahead of a shutdown, into a clean stop.

  The first asks for a stop: the loop ends the step, saves and exits with status 0. A second Ctrl-C
  ends the process at once with status 130; so does the first one while there is nothing to save, as
  before the first step is compiled. Interactive sessions are kept: there it is KeyboardInterrupt.

  A thread of its own takes the signals. Python's handlers wait while a program is compiled or a
  step computed, and an exception out of a compilation may crash the process.

  A context manager, for the main thread; in another one it does nothing.

  Attributes:
    unsaved: whether there are steps to save, which the loop says.
  """

  def __init__(self) -> None:
    self.unsaved = False
    self._requested = False
    self._last_interrupt = -math.inf
    self._interactive = hasattr(sys, 'ps1')

  def __enter__(self) -> 'StopSignal':
    self._in_main_thread = threading.current_thread() is threading.main_thread()
    if not self._in_main_thread:
      return self
    # Of several processes all must stop after the same step: jax agrees on one after a SIGTERM.
    numbers = [signal.SIGINT] + [signal.SIGTERM] * (jax.process_count() == 1)
    self._handlers = {number: signal.signal(number, self._handle) for number in numbers}
    self._reader, self._writer = os.pipe()
    os.set_blocking(self._writer, False)
    self._wakeup = signal.set_wakeup_fd(self._writer)
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    if not self._in_main_thread:
      return
    signal.set_wakeup_fd(self._wakeup)
    for number, handler in self._handlers.items():
      signal.signal(number, handler)
    os.close(self._writer)
    self._thread.join()
    os.close(self._reader)

  def requested(self, step: int) -> bool:
    """Whether to stop after this step; all processes agree on the step."""
    if jax.process_count() == 1:
      return self._requested
    return multihost_utils.reached_preemption_sync_point(step)

  def _handle(self, number: int, _: Any) -> None:
    """Called by Python in the main thread, where alone an exception reaches an interactive user."""
    if self._interactive:
      self._receive(number)

  def _listen(self) -> None:
    """Reads the signals, a byte each, as they come."""
    while byte := os.read(self._reader, 1):
      if byte[0] in self._handlers and not self._interactive:
        self._receive(byte[0])

  def _receive(self, number: int) -> None:
    again = self._requested
    if number == signal.SIGINT:
      previous, self._last_interrupt = self._last_interrupt, time.monotonic()
      if self._last_interrupt - previous < _SECONDS_BETWEEN:
        return
      if previous > -math.inf or not self.unsaved:
        self._quit()
    self._requested = True
    if not again:
      messages.say('stopping: this step is finished and saved; Ctrl-C again quits at once')
      if jax.process_count() > 1:
        os.kill(os.getpid(), signal.SIGTERM)

  def _quit(self) -> None:
    if self._interactive:
      raise KeyboardInterrupt
    command = messages.this_command()
    messages.say(f'quit; what was saved is kept, and this continues:\n  {command}')
    for worker in multiprocessing.active_children():
      worker.kill()
    os._exit(_QUIT)


def without_improvement(workdir: epath.Path, metric: str, mode: str) -> int:
  """How many evaluations of a run were no better than one before them, up to the last.

  Args:
    workdir: of the run, whose `metrics.jsonl` has all evaluations, those before a restart too.
    metric: of the evaluations.
    mode: 'max' or 'min', which is best.
  """
  count, values = 0, {}
  if jax.process_index() == 0 and (workdir / metric_writers.METRICS_FILE).exists():
    sign, best = 1 if mode == 'max' else -1, -math.inf
    for line in metric_writers.read_metrics(workdir):
      if f'eval/{metric}' in line:
        # A run that was killed after writing it evaluates the same step again.
        values[line['step']] = sign * line[f'eval/{metric}']
    for value in values.values():
      count = 0 if value > best else count + 1
      best = max(best, value)
  if jax.process_count() > 1:
    count = int(multihost_utils.broadcast_one_to_all(np.asarray(count)))
  return count
