"""What is said where several processes cannot find each other."""

import jax
import pytest

from crossattn_jax import parallel


def test_without_a_cluster_it_says_what_to_do(monkeypatch):
  def initialize(*_, **__):
    raise ValueError('coordinator_address should be defined.')  # jax's words

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  with pytest.raises(ValueError, match=r'no cluster is found .* leave --multihost out: .*=COUNT'):
    parallel.initialize()


def test_an_address_needs_a_count_and_a_place():
  with pytest.raises(ValueError, match='--num_processes and --process_id missing: give all three'):
    parallel.initialize('host:1234')
