"""What takes long says so, once, to whoever waits at a terminal or reads a log."""

from collections.abc import Iterator
import contextlib
import sys
import threading
import time

import jax

# Seconds after which people wonder.
_PATIENCE = 5.0


class _Work:
  """A piece of work; `part_said` is whether a part of it was announced instead."""

  def __init__(self, what: str):
    self.what, self.part_said = what, False


# Each is a part of the one before.
_under_way: list[_Work] = []


@contextlib.contextmanager
def said(what: str) -> Iterator[None]:
  """Says what is being done once that takes more than five seconds, and then how long it took.

  Of work that is part of other work, the part says it.

  Args:
    what: such as 'compiling the training step'.
  """
  work, started = _Work(what), time.monotonic()
  timer = threading.Timer(_PATIENCE, _announce, [work])
  timer.daemon = True
  _under_way.append(work)
  timer.start()
  try:
    yield
  finally:
    timer.cancel()
    _under_way.remove(work)
  seconds = time.monotonic() - started
  if seconds > _PATIENCE and not work.part_said:
    _say(f'{what} took {seconds:.0f} s')


def _announce(work: _Work) -> None:
  if _under_way and _under_way[-1] is work:
    for whole in _under_way[:-1]:
      whole.part_said = True
    _say(f'{work.what} ...')


def _say(message: str) -> None:
  if jax.process_index() == 0:
    print(message, file=sys.stderr, flush=True)
