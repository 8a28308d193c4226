"""Where the processes of a run wait for one another while a checkpoint is saved."""

import sys
import threading

import orbax.checkpoint as ocp


class SaveBarrier:
  """Where the threads of a save wait for other processes; one that has failed does not wait.

  Orbax sends it there before it tells its error, while the others wait for what it was to write.

  Attributes:
    failed: whether a save has failed in this process.
  """

  def __init__(self):
    self.failed = False

  def __call__(self, *, key: str, timeout_ms: int) -> None:
    """Waits until all processes are here; raises the error that brought a thread of Orbax here."""
    error = sys.exception()
    if error is not None and threading.current_thread() is not threading.main_thread():
      self.failed = True
      raise error
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)
