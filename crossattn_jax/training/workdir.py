"""The folder of a run: one run at a time writes into it, and what storage refuses is said."""

from collections.abc import Iterator
import contextlib
import datetime
import errno
import fcntl
import json
import logging as python_logging
import os
import socket
import sys
import types
from typing import IO, Any

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

from crossattn_jax import parallel
from crossattn_jax.training import checkpoints, messages

_LOCK = 'run.lock'
_ADVICE = {
  errno.ENOSPC: 'free some space there (config.checkpoint.keep_last and keep_best say how many '
  'checkpoints there are)',
  errno.EDQUOT: 'free some of your quota there',
  errno.EFBIG: 'raise the limit of a file there (`ulimit -f`)',
  errno.EROFS: 'make it writable, or give another --workdir',
  errno.EACCES: 'make it writable, or give another --workdir',
  errno.EPERM: 'make it writable, or give another --workdir',
  errno.ENOTDIR: 'give another --workdir',
  errno.EEXIST: 'give another --workdir',
}


class WorkdirInUse(RuntimeError):
  """Another run writes into the workdir."""


class StorageError(OSError):
  """The workdir cannot be written."""


@contextlib.contextmanager
def lock(workdir: epath.Path) -> Iterator[None]:
  """Keeps other runs out of a workdir; the processes of one run share it.

  The lock is the operating system's (`flock`) on the file `run.lock`, which says who holds it. It
  goes with its process, however that ends, so no lock is ever stale. Between hosts it reaches as
  far as their file system passes locks on (NFS does). On a bucket there are none: nothing is
  locked.

  Args:
    workdir: of the run, an existing folder.

  Raises:
    WorkdirInUse: another run holds it; the message names its process, its host and since when.
    StorageError: it is not one folder for all processes.
  """
  file = holder = None
  if jax.process_index() == 0 and '://' not in os.fspath(workdir):
    file = open(workdir / _LOCK, 'a+')  # noqa: SIM115  (closed below)
    holder = _acquire(file)
  # All processes of a run stop, not only the one that asks.
  refused = np.asarray(holder is not None)
  if jax.process_count() > 1:
    refused = multihost_utils.broadcast_one_to_all(refused)
  with file or contextlib.nullcontext():
    if refused:
      raise WorkdirInUse(
        f'{workdir} is in use by {holder or "another run"}: stop that run, or give another '
        '--workdir. (--mode=eval and --mode=predict may use it meanwhile)'
      )
    if '://' not in os.fspath(workdir):
      _check_shared(workdir)
    yield
    if file:
      file.truncate(0)


def _check_shared(workdir: epath.Path) -> None:
  """Refuses a folder that is another one on another host: a run has one; collective."""
  is_there = jax.process_count() == 1 or (workdir / _LOCK).exists()
  apart = sorted({*parallel.gather_texts('' if is_there else socket.gethostname())} - {''})
  if apart:
    raise StorageError(
      f'{workdir} of process 0 cannot be seen on {", ".join(apart)}: give a --workdir on a disk '
      'that all hosts share, or in a bucket'
    )


def _acquire(file: IO[str]) -> str | None:
  """Locks a file and writes into it who holds it; returns who does if it is another."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    try:
      return 'process {pid} on {host}, since {since}'.format(**json.load(file))
    except (ValueError, KeyError):  # It is about to write it.
      return 'another run'
  except OSError as error:
    logging.warning('%s cannot be locked (%s): start no other run there', file.name, error.strerror)
  now = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')
  file.truncate(0)
  json.dump({'pid': os.getpid(), 'host': socket.gethostname(), 'since': now}, file)
  file.flush()
  return None


def check(workdir: epath.Path) -> None:
  """Checks that the folder of a run under way is still what it was.

  Raises:
    StorageError: it is not there any more. Orbax would make another one, with a part of the run.
  """
  # A bucket has no empty folders.
  folders = () if '://' in os.fspath(workdir) else ('checkpoints',)
  for name in ('config.json', *folders):
    if not (workdir / name).exists():
      raise StorageError(
        f'{workdir / name} is gone: the folder of this run was removed, or its disk is not there. '
        'Once it is back, the same command continues after the last checkpoint; else it begins anew'
      )


@contextlib.contextmanager
def storage_errors(workdir: epath.Path) -> Iterator[None]:
  """Says in one line what storage refuses: a full disk, a folder that cannot be written.

  Args:
    workdir: of the run.

  Raises:
    StorageError: instead of what Python and TensorStore raise.
  """
  try:
    with _without_echoes():
      yield
  except (OSError, ValueError) as error:
    number = _storage_errno(error, workdir)
    if number is None:
      raise
    kept = max(checkpoints.find_steps(workdir / 'checkpoints'), default=None)
    where, then = '', f'this continues after it:\n  {messages.this_command()}'
    if jax.process_count() > 1:
      where = f' from {socket.gethostname()}'
      then = 'start all processes again, to continue after it'
    intact = f'. The checkpoint of step {kept} is intact; then {then}' if kept else ''
    raise StorageError(
      f'cannot write to {workdir}{where}: {os.strerror(number)}; {_ADVICE[number]}{intact}'
    ) from error


@contextlib.contextmanager
def _without_echoes() -> Iterator[None]:
  """Keeps Orbax and TensorStore from printing errors that they also raise, and waits we mean."""

  def is_news(record: python_logging.LogRecord) -> bool:
    # It counts among its own waits that of `Checkpointer.add_metrics`, for what was evaluated.
    waited = str(record.msg).startswith('Waiting for previous save')
    return not (f'{os.sep}orbax{os.sep}' in record.pathname and (record.exc_info or waited))

  def is_echo(error: BaseException | None) -> bool:
    return 'Event loop is closed' in str(error)

  def show(kind: type[BaseException], error: BaseException, trace: types.TracebackType) -> None:
    if not is_echo(error):
      hooks[0](kind, error, trace)

  def show_unraisable(unraisable: Any) -> None:
    if not is_echo(unraisable.exc_value):
      hooks[1](unraisable)

  logger, failed = python_logging.getLogger('absl'), False
  hooks = sys.excepthook, sys.unraisablehook
  logger.addFilter(is_news)
  sys.excepthook, sys.unraisablehook = show, show_unraisable
  try:
    yield
  except Exception:
    # Futures that nobody awaits any more tell it when they end or are collected, much later maybe.
    failed = True
    python_logging.getLogger('asyncio').setLevel(python_logging.CRITICAL)
    raise
  finally:
    logger.removeFilter(is_news)
    if not failed:
      sys.excepthook, sys.unraisablehook = hooks


def _storage_errno(error: Exception, workdir: epath.Path) -> int | None:
  """The number of the operating system's error, if it is about the workdir."""
  if isinstance(error, OSError) and error.errno is not None:
    number, name = error.errno, error.filename
    # A parent of the workdir is what cannot be made it in.
    about = name is None or _related(os.fspath(name), os.fspath(workdir))
  else:
    # TensorStore says it in words alone.
    number = next((n for n in _ADVICE if os.strerror(n) in str(error)), None)
    about = os.fspath(workdir) in str(error)
  return number if about and number in _ADVICE else None


def _related(name: str, workdir: str) -> bool:
  name, workdir = os.path.abspath(name), os.path.abspath(workdir)
  return os.path.commonpath([name, workdir]) in (name, workdir)
