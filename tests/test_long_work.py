"""What takes long says so, and nothing else does."""

import time

from crossattn_jax import long_work


def test_only_what_takes_long_is_said(monkeypatch, capsys):
  with long_work.said('blinking'):
    pass
  monkeypatch.setattr(long_work, '_PATIENCE', 0.01)
  with long_work.said('compiling the step'):
    time.sleep(0.4)
  lines = capsys.readouterr().err.splitlines()
  assert lines == ['compiling the step ...', 'compiling the step took 0 s']


def test_a_part_says_it_for_the_whole(monkeypatch, capsys):
  monkeypatch.setattr(long_work, '_PATIENCE', 0.01)
  with long_work.said('opening the data set'), long_work.said('drawing scenes'):
    time.sleep(0.4)
  assert capsys.readouterr().err.splitlines() == ['drawing scenes ...', 'drawing scenes took 0 s']
