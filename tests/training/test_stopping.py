"""A run ends in good order before its last step: on signals, and where it no longer improves."""

import json
import os
import signal
import threading
import time

import pytest

from crossattn_jax.training import stopping


@pytest.fixture
def exits(monkeypatch):
  """The exit statuses that were asked for, with the process left alive."""
  statuses = []
  monkeypatch.setattr(os, '_exit', statuses.append)
  monkeypatch.setattr(stopping, '_SECONDS_BETWEEN', 0.0)
  return statuses


def wait_until(condition):
  deadline = time.monotonic() + 10
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.001)  # A thread takes the signals.


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_for_a_stop(exits, capsys, number):
  handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  with stopping.StopSignal() as stop:
    stop.unsaved = True
    assert not stop.requested(1)
    signal.raise_signal(number)
    wait_until(lambda: stop.requested(1))
    wait_until(lambda: 'this step is finished and saved' in capsys.readouterr().err)
  assert not exits
  assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_a_second_interrupt_quits_with_status_130_and_says_what_continues(exits, capsys):
  with stopping.StopSignal() as stop:
    stop.unsaved = True
    signal.raise_signal(signal.SIGINT)
    wait_until(lambda: stop.requested(1))
    signal.raise_signal(signal.SIGINT)
    wait_until(lambda: exits)
  assert exits == [130]
  assert 'this continues:\n  ' in capsys.readouterr().err


def test_without_anything_to_save_the_first_interrupt_quits(exits):
  with stopping.StopSignal():
    signal.raise_signal(signal.SIGINT)
    wait_until(lambda: exits)
  assert exits == [130]


def test_an_interrupt_that_came_twice_at_once_is_one(exits, monkeypatch):
  monkeypatch.setattr(stopping, '_SECONDS_BETWEEN', 60.0)
  with stopping.StopSignal() as stop:
    stop.unsaved = True
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    wait_until(lambda: stop.requested(1))
  assert not exits


def test_an_interactive_session_is_kept(exits, monkeypatch):
  monkeypatch.setattr('sys.ps1', '>>> ', raising=False)
  with stopping.StopSignal() as stop:
    stop.unsaved = True
    signal.raise_signal(signal.SIGINT)
    assert stop.requested(1)
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  assert not exits


def test_in_another_thread_signals_are_left_alone():
  handlers = []

  def enter():
    with stopping.StopSignal() as stop:
      handlers.append(signal.getsignal(signal.SIGINT))
      assert not stop.requested(1)

  before = signal.getsignal(signal.SIGINT)
  thread = threading.Thread(target=enter)
  thread.start()
  thread.join()
  assert handlers == [before]


@pytest.mark.parametrize(
  ('mode', 'values', 'expected'),
  [
    ('max', [], 0),
    ('max', [0.5], 0),
    ('max', [0.5, 0.4, 0.5], 2),
    ('max', [0.5, 0.4, 0.6], 0),
    ('max', [0.5, 'nan', 'nan'], 2),
    ('max', ['nan', 0.1, 0.0], 1),
    ('min', [2.0, 1.0, 1.5, 1.0], 2),
    ('min', [2.0, 1.0, 0.5], 0),
  ],
)
def test_evaluations_without_improvement_are_counted(tmp_path, mode, values, expected):
  assert stopping.without_improvement(tmp_path, 'loss', mode) == 0
  lines = [{'step': step, 'eval/loss': value} for step, value in enumerate(values)]
  text = ''.join(json.dumps(line) + '\n' for line in [{'step': 0, 'train/loss': 9.0}, *lines])
  (tmp_path / 'metrics.jsonl').write_text(text)
  assert stopping.without_improvement(tmp_path, 'loss', mode) == expected


def test_a_step_that_is_evaluated_again_counts_once(tmp_path):
  lines = [{'step': step, 'eval/loss': value} for step, value in ((1, 2.0), (2, 3.0), (2, 3.0))]
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  assert stopping.without_improvement(tmp_path, 'loss', 'min') == 1
