"""Processes over loopback: who is lost is named by all that are left, at once."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Waits in the body, as in a step that needs all processes, after saying that it is there.
PROGRAM = """
import os, sys, time
from crossattn_jax import parallel

def end(what):
  print(what, flush=True)
  os._exit(1)

address, index, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
parallel.initialize(address, count, index)
with parallel.watch(end):
  print('ready', parallel.gather_texts(f'text {index} of all' * (index + 1)), flush=True)
  line = sys.stdin.readline()
  if line == 'error':
    raise OSError('no space left on device')
print('in peace', flush=True)
"""


class Processes:
  """Three processes of one run, each of which has entered `watch`."""

  def __init__(self, environment, count=3):
    with socket.socket() as free:
      free.bind(('localhost', 0))
      port = free.getsockname()[1]
    self.all = [
      subprocess.Popen(
        [sys.executable, '-c', PROGRAM, f'localhost:{port}', str(index), str(count)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for index in range(count)
    ]
    self.ready = [self.line_of(index) for index in range(count)]

  def line_of(self, index):
    """The next line of ours; gloo writes into the same stream."""
    return next(line.strip() for line in self.all[index].stdout if not line.startswith('[Gloo]'))

  def tell(self, index, line):
    self.all[index].stdin.write(line)
    self.all[index].stdin.close()
    self.all[index].stdin = None

  def outputs(self, *indices):
    """What those processes printed before they ended; their input stays open until then."""
    for index in indices:
      self.all[index].wait(timeout=60)
    return [self.line_of(index) for index in indices]


@pytest.fixture(scope='module')
def environment():
  return {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': str(ROOT),
    'XLA_FLAGS': '--xla_force_host_platform_device_count=1',
  }


@pytest.fixture
def processes(environment):
  processes = Processes(environment)
  yield processes
  for process in processes.all:
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
  'lost', [pytest.param(0, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.extended)]
)
def test_a_killed_process_is_named_by_all_others_within_seconds(processes, lost):
  texts = [f'text {index} of all' * (index + 1) for index in range(3)]
  assert processes.ready == [f'ready {texts}'] * 3
  others = [index for index in range(3) if index != lost]
  started = time.monotonic()
  processes.all[lost].send_signal(signal.SIGKILL)
  for output in processes.outputs(*others):
    assert output == (
      f'process {lost} on {socket.gethostname()} is gone: it was killed, or its machine is cut off'
    )
  assert time.monotonic() - started < 10
  assert [processes.all[index].returncode for index in others] == [1, 1]


@pytest.mark.slow
def test_an_error_of_one_process_is_told_to_all(processes):
  processes.tell(1, 'error')
  for output in processes.outputs(0, 2):
    assert output == (
      f'process 1 on {socket.gethostname()} ended with an error: OSError: no space left on device'
    )


@pytest.mark.slow
def test_processes_that_end_one_after_the_other_end_in_peace(processes):
  for index in range(3):
    processes.tell(index, 'go on')
  assert processes.outputs(0, 1, 2) == ['in peace'] * 3
  assert [process.returncode for process in processes.all] == [0, 0, 0]
