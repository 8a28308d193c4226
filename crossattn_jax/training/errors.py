"""The errors whose message is all that a user needs to see."""

from crossattn_jax.conversion import published
from crossattn_jax.training import checkpoints


class NonFiniteError(FloatingPointError):
  """The loss or its gradient was not finite for too many steps."""


USER_ERRORS = (
  checkpoints.UnreadableCheckpoints,
  NonFiniteError,
  FileNotFoundError,
  published.DownloadError,
  # ConfigError, CheckpointMismatch and what models and data refuse.
  ValueError,
)
