"""Every recorded case under tests/reference, in both precisions."""

import functools
import pathlib

import pytest

from crossattn_jax.parity import bounds, cases, replay

REFERENCE = pathlib.Path(__file__).parents[1] / 'reference'
# Full-size models beyond one of each kind: minutes together.
SLOW = {
  'crossvit_15_224',
  'crossvit_15_dagger_224',
  'crossvit_15_dagger_384',
  'crossvit_18_224',
  'crossvit_18_dagger_224',
  'crossvit_18_dagger_384',
  'crossvit_9_224',
  'crossvit_base_224',
  'crossvit_small_224',
}


def recorded_cases():
  for path in cases.find_manifests([REFERENCE]):
    name = f'{path.parent.name}/{path.stem}'
    yield pytest.param(path, id=name, marks=[pytest.mark.slow] if path.stem in SLOW else [])


@functools.lru_cache(maxsize=1)
def read_case(path):
  """Weights are generated once for both precisions."""
  return cases.read_case(path)


@pytest.mark.parametrize('path', recorded_cases())
@pytest.mark.parametrize('precision', bounds.PRECISIONS)
def test_recorded_case_is_within_the_bound(path, precision):
  result = replay.replay_case(read_case(path), precision)
  assert result.rows
  assert result.passed, result.failures()
