"""Writing the data sets that this library generates, as TFDS datasets."""

from collections.abc import Iterator
import contextlib
import errno
import io
import os

from absl import logging
import tensorflow_datasets as tfds

from crossattn_jax import long_work
from crossattn_jax.data import sources

# What a system says that refuses to store anything.
_REFUSALS = [
  os.strerror(number)
  for number in (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
  )
]


def write_once(builder: tfds.core.DatasetBuilder) -> None:
  """Writes a dataset unless it is there.

  TFDS writes into a temporary folder and renames it, so that a reader never sees half a dataset.
  Of several processes that write at once the first to finish wins.

  Args:
    builder: of a dataset that needs no download.

  Raises:
    NotPreparedError: the system refuses to store it; the message says why.
  """
  if builder.data_path.exists():
    return
  try:
    with long_work.said(f'writing data set {builder.name} to {builder.data_dir}'), _quiet():
      builder.download_and_prepare()
  except (OSError, RuntimeError) as error:  # array_record's have no class of their own.
    # Renaming onto a folder that is not empty: another process has finished in the meantime.
    if builder.data_path.exists():
      return
    reason = next((words for words in _REFUSALS if words in str(error)), None)
    if reason is None:
      raise
    raise sources.NotPreparedError(
      f'cannot write data set {builder.name!r} to {builder.data_dir}: {reason}; make room there '
      'or make it writable, or give another folder: --config.dataset.data_dir=FOLDER'
    ) from error
  else:
    logging.info('wrote dataset %s to %s', builder.name, builder.data_dir)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides TFDS's progress bars and its talk of a download that does not take place."""
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.enable_progress_bar()
