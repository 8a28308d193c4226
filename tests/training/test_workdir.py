"""One run at a time writes into a workdir; what storage refuses is said in one line."""

import contextlib
import errno
import itertools
import os
import signal
import socket
import subprocess
import sys
import time

from etils import epath
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import pytest

from crossattn_jax import parallel
from crossattn_jax.training import checkpoints
from crossattn_jax.training import workdir as workdir_lib

# Holds the lock of a folder until it is killed.
HOLD = """
import sys, time
from etils import epath
from crossattn_jax.training import workdir
with workdir.lock(epath.Path(sys.argv[1])):
  print('held', flush=True)
  time.sleep(600)
"""


def test_a_second_run_is_refused_and_names_the_first(tmp_path):
  workdir = epath.Path(tmp_path)
  with workdir_lib.lock(workdir):
    name = rf'in use by process {os.getpid()} on {socket.gethostname()}, since \d{{4}}-'
    with pytest.raises(workdir_lib.WorkdirInUse, match=name), workdir_lib.lock(workdir):
      pass
  with workdir_lib.lock(workdir):
    pass


@pytest.mark.extended
def test_the_lock_of_a_killed_run_is_free(tmp_path, main_environment):
  process = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path)],
    env=main_environment,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'held\n'
  refused = pytest.raises(workdir_lib.WorkdirInUse, match=f'process {process.pid} on')
  with refused, workdir_lib.lock(epath.Path(tmp_path)):
    pass
  os.kill(process.pid, signal.SIGKILL)
  process.communicate()
  with workdir_lib.lock(epath.Path(tmp_path)):
    pass


def test_a_folder_that_another_host_does_not_see_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  monkeypatch.setattr(multihost_utils, 'broadcast_one_to_all', lambda x: x)
  monkeypatch.setattr(socket, 'gethostname', lambda: 'host-b')
  monkeypatch.setattr(parallel, 'gather_texts', lambda text: ['', text])
  workdir = epath.Path(tmp_path)
  refused = pytest.raises(workdir_lib.StorageError, match='cannot be seen on host-b: give a')
  with refused, workdir_lib.lock(workdir):
    pass
  (workdir / 'run.lock').touch()  # As process 0 leaves it on a shared disk.
  with workdir_lib.lock(workdir):
    pass


def test_a_bucket_is_not_locked():
  with workdir_lib.lock(epath.Path('gs://bucket/run')):
    pass


@pytest.mark.parametrize(
  ('error', 'message'),
  [
    (OSError(errno.ENOSPC, 'x'), r'run: No space left on device; free some space there'),
    (OSError(errno.EROFS, 'x', '{workdir}/config.json'), 'Read-only file system; make it writable'),
    (PermissionError(errno.EACCES, 'x', '{parent}'), 'Permission denied; make it writable'),
    (FileExistsError(errno.EEXIST, 'x', '{workdir}'), 'File exists; give another --workdir'),
    (
      ValueError('RESOURCE_EXHAUSTED: "{workdir}/checkpoints/4": No space left on device'),
      'No space left on device; free some space',
    ),
  ],
  ids=['full', 'read-only', 'parent', 'a file', 'TensorStore'],
)
def test_what_storage_refuses_is_one_line_with_what_to_do(tmp_path, error, message):
  workdir = epath.Path(tmp_path / 'run')
  places = {'workdir': workdir, 'parent': tmp_path}
  error.args = tuple(x.format(**places) if isinstance(x, str) else x for x in error.args)
  if getattr(error, 'filename', None):
    error.filename = error.filename.format(**places)
  (workdir / 'checkpoints' / '2').mkdir(parents=True)
  with pytest.raises(workdir_lib.StorageError, match=message) as refused:  # noqa: SIM117
    with workdir_lib.storage_errors(workdir):
      raise error
  first, *rest = str(refused.value).splitlines()
  assert first.endswith('The checkpoint of step 2 is intact; then this continues after it:')
  assert len(rest) == 1


@pytest.mark.parametrize(
  'error',
  [
    FileNotFoundError(errno.ENOENT, 'x', 'image.png'),
    PermissionError(errno.EACCES, 'x', '/data/images/a.png'),
    ValueError('a wrong value'),
  ],
  ids=str,
)
def test_other_errors_are_left_as_they_are(tmp_path, error):
  with pytest.raises(type(error)) as raised, workdir_lib.storage_errors(epath.Path(tmp_path)):
    raise error
  assert raised.value is error


@pytest.mark.parametrize('within', [False, True], ids=['alone', 'in a run'])
def test_that_saving_takes_seconds_is_no_warning_of_a_run(tmp_path, caplog, monkeypatch, within):
  """What is evaluated is waited for on purpose."""
  workdir = epath.Path(tmp_path)
  checkpointer = checkpoints.Checkpointer(workdir / 'checkpoints', best_metric='accuracy')
  seconds = itertools.count(time.time(), 2)
  monkeypatch.setattr(time, 'time', lambda: next(seconds))
  with workdir_lib.storage_errors(workdir) if within else contextlib.nullcontext():
    for step in (1, 2):
      checkpointer.save(step, {'x': jnp.zeros(2)})
      checkpointer.add_metrics(step, {'accuracy': 0.5})
    checkpointer.close()
  assert ('Waiting for previous save' in caplog.text) is not within
