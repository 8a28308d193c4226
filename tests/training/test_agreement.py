"""Processes that are set up differently are refused before the first step."""

import json

import jax
import ml_collections
import pytest

from crossattn_jax import config_errors, parallel
from crossattn_jax.training import agreement

CONFIG = ml_collections.ConfigDict({'batch_size': 64, 'model': {'name': 'crossvit_tiny_240'}})


def others(monkeypatch, *changes):
  """Has every call of `gather_texts` return this process's text and changed ones."""

  def gather(text):
    own = json.loads(text)
    return [text, *(json.dumps(own | change) for change in changes)]

  monkeypatch.setattr(parallel, 'gather_texts', gather)
  monkeypatch.setattr(jax, 'process_count', lambda: 1 + len(changes))


def test_processes_that_are_the_same_go_on(monkeypatch):
  others(monkeypatch, {'host': 'host-b'}, {'host': 'host-c'})
  agreement.check(CONFIG)
  monkeypatch.undo()
  agreement.check(CONFIG)  # The only process.


def test_a_difference_is_named_with_both_values_and_hosts(monkeypatch):
  others(
    monkeypatch,
    {'host': 'host-b'},
    {'host': 'host-c', 'config.batch_size': '128', 'jax': '0.1', 'code of crossattn_jax': 'other'},
  )
  with pytest.raises(config_errors.ConfigError) as caught:
    agreement.check(CONFIG)
  message = str(caught.value)
  assert 'config.batch_size: 64 in process 0 on ' in message
  assert ', 128 in process 2 on host-c' in message
  assert ', 0.1 in process 2 on host-c' in message
  assert 'code of crossattn_jax: ' in message
  assert 'process 1' not in message


def test_of_many_differences_some_are_shown(monkeypatch):
  others(monkeypatch, {f'config.key_{index}': 'true' for index in range(20)})
  with pytest.raises(config_errors.ConfigError, match='and 15 more'):
    agreement.check(CONFIG)
