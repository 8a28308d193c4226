"""The errors whose message is all that a user needs to see."""

from crossattn_jax.conversion import published
from crossattn_jax.training import checkpoints, device_memory, workdir


class NonFiniteError(FloatingPointError):
  """The loss or its gradient was not finite for too many steps."""


USER_ERRORS = (
  checkpoints.UnreadableCheckpoints,
  workdir.StorageError,
  workdir.WorkdirInUse,
  NonFiniteError,
  device_memory.OutOfMemoryError,
  FileNotFoundError,
  published.DownloadError,
  # ConfigError, CheckpointMismatch and what models and data refuse.
  ValueError,
)


def message(error: BaseException) -> str:
  """What a user is told of an error: its message and the notes that were added on its way."""
  # Grain's is about the traceback, which is not shown.
  notes = [note for note in getattr(error, '__notes__', ()) if 'Grain has removed' not in note]
  return '\n'.join([str(error), *notes])
