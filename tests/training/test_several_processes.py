"""Runs of several processes, hurt on purpose: what is said, how soon, and that nothing is lost."""

import json
import pathlib
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
HOST = socket.gethostname()
SECONDS = 20  # In which those that are left must end, on a busy machine too.

pytestmark = pytest.mark.slow


class Run:
  """A run on digits in several processes over loopback; all go when the test ends."""

  def __init__(self, environment, datasets_dir, workdir):
    self.workdir = workdir
    self._environment = environment
    self._datasets_dir = datasets_dir
    self.processes = []

  def start(self, *flags, count=2, flags_of=lambda index: (), delays=()):
    """Starts all processes; returns nothing, they train."""
    with socket.socket() as free:
      free.bind(('localhost', 0))
      port = free.getsockname()[1]
    self.processes = []
    for index in range(count):
      time.sleep(dict(delays).get(index, 0))
      command = [
        *(sys.executable, 'main.py', '--config=configs/crossvit_digits.py'),
        f'--config.dataset.data_dir={self._datasets_dir}',
        *('--config.model.widths=(16,32)', '--config.model.depths=((1,1,0),)'),
        *('--config.schedule.warmup_epochs=0', '--config.evaluation.every_steps=1000000'),
        *('--config.logging.every_steps=1', '--config.checkpoint.every_steps=5'),
        f'--workdir={self.workdir}',
        *(f'--coordinator_address=localhost:{port}', f'--num_processes={count}'),
        f'--process_id={index}',
        *flags,
        *flags_of(index),
      ]
      self.processes.append(
        subprocess.Popen(
          command,
          cwd=ROOT,
          env=self._environment,
          stderr=subprocess.PIPE,
          text=True,
        )
      )

  def history(self):
    lines = (self.workdir / 'metrics.jsonl').read_text().splitlines()
    return [{name: x for name, x in json.loads(line).items() if name != 'time'} for line in lines]

  def wait_for_step(self, step):
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and all(p.poll() is None for p in self.processes):
      if (self.workdir / 'metrics.jsonl').exists() and len(self.history()) >= step:
        return
      time.sleep(0.01)  # Polls other processes.
    raise AssertionError(f'no step {step}: {self.ends()}')

  def ends(self, timeout=600):
    """Exit status and errors of each process."""
    ends = []
    for process in self.processes:
      errors = process.communicate(timeout=timeout)[1]
      ends.append((process.returncode, errors))
    return ends

  def kill(self):
    for process in self.processes:
      process.kill()
      process.communicate()


@pytest.fixture
def run(main_environment, datasets_dir, tmp_path):
  run = Run(main_environment, datasets_dir, tmp_path / 'run')
  yield run
  run.kill()


@pytest.fixture(scope='module')
def uninterrupted(main_environment, datasets_dir, tmp_path_factory):
  """What a run of 60 steps in two processes reports when nobody hurts it."""
  run = Run(main_environment, datasets_dir, tmp_path_factory.mktemp('uninterrupted') / 'run')
  run.start('--config.num_steps=60')
  assert [status for status, _ in run.ends()] == [0, 0]
  return run.history()


@pytest.mark.parametrize('lost', [0, 1])
def test_a_killed_process_is_named_and_the_restart_continues_bit_for_bit(run, uninterrupted, lost):
  run.start('--config.num_steps=60')
  run.wait_for_step(23)
  run.processes[lost].send_signal(signal.SIGKILL)
  started = time.monotonic()
  status, errors = run.ends(timeout=SECONDS)[1 - lost]
  assert time.monotonic() - started < SECONDS
  assert status == 1
  assert f'error: process {lost} on {HOST} is gone' in errors
  assert 'start all processes again' in errors.splitlines()[-1]
  assert 'Traceback' not in errors
  run.start('--config.num_steps=60')
  assert [status for status, _ in run.ends()] == [0, 0]
  assert run.history() == uninterrupted


def test_twenty_random_kills_of_either_process_continue_bit_for_bit(run, uninterrupted):
  rng, last = random.Random(0), 0
  for step in sorted(rng.sample(range(1, 50), k=20)):
    run.start('--config.num_steps=60')
    # A step that no run before has reached: both processes train.
    run.wait_for_step(max(step, last + 1))
    run.processes[rng.randrange(2)].send_signal(signal.SIGKILL)
    run.ends(timeout=SECONDS)
    last = len(run.history())
    assert last < 60
  run.start('--config.num_steps=60')
  assert [status for status, _ in run.ends()] == [0, 0]
  assert run.history() == uninterrupted


def test_sigterm_to_one_of_four_stops_all_after_the_same_step(run):
  run.start('--config.num_steps=100000', '--stopped_status=75', count=4)
  run.wait_for_step(3)
  run.processes[2].send_signal(signal.SIGTERM)
  ends = run.ends(timeout=120)
  assert [status for status, _ in ends] == [75] * 4, ends
  stopped = max(int(path.name) for path in (run.workdir / 'checkpoints').iterdir())
  assert stopped == run.history()[-1]['step']
  assert f'stopped after step {stopped} of 100000' in ends[0][1]


def test_processes_that_differ_are_refused(run):
  run.start('--config.num_steps=60', flags_of=lambda index: (f'--config.seed={index}',))
  for status, errors in run.ends():
    assert status == 1
    assert f'config.seed: 0 in process 0 on {HOST}, 1 in process 1 on {HOST}' in errors
  assert not (run.workdir / 'checkpoints').exists()


def test_a_process_may_start_late(run):
  run.start('--config.num_steps=3', delays={1: 15})
  (status, errors), (other, _) = run.ends()
  assert (status, other) == (0, 0)
  assert 'waiting for all processes to start and to reach localhost:' in errors


@pytest.mark.parametrize('full', [(0, 1), (0,), (1,)], ids=str)
def test_a_disk_that_fills_on_any_host_ends_all_and_loses_nothing(run, full):
  flags = ('--config.mesh.fsdp=-1', '--config.mesh.data=1')
  run.start('--config.num_steps=100000', *flags)
  run.wait_for_step(23)
  for index in full:
    resource.prlimit(run.processes[index].pid, resource.RLIMIT_FSIZE, (2**15, 2**15))
  started = time.monotonic()
  ends = run.ends(timeout=300)
  assert time.monotonic() - started < SECONDS
  assert [status for status, _ in ends] == [1, 1], ends
  for index, (_, errors) in enumerate(ends):
    last = errors.splitlines()[-1]
    assert f'cannot write to {run.workdir} from {HOST}: File too large' in last
    assert 'raise the limit of a file there' in last
    assert 'start all processes again' in last
    assert 'Traceback' not in errors
    if index not in full:
      assert f'error: process {full[0]} on {HOST} ended with an error' in last
  kept = int(re.search(r'The checkpoint of step (\d+) is intact', ends[full[0]][1])[1])
  assert kept >= 20
  run.start(f'--config.num_steps={kept + 3}', *flags)
  assert [status for status, _ in run.ends()] == [0, 0]
  assert [line['step'] for line in run.history()][: kept + 3] == [*range(1, kept + 4)]


def test_a_checkpoint_folder_that_vanishes_ends_all_with_its_name(run):
  run.start('--config.num_steps=100000')
  run.wait_for_step(7)
  shutil.rmtree(run.workdir)
  ends = run.ends(timeout=300)
  assert [status for status, _ in ends] == [1, 1], ends
  assert str(run.workdir) in ends[0][1].splitlines()[-1]
