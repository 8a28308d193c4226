"""Patterns are refused where they, or one of their alternatives, match no parameter."""

from jax.sharding import PartitionSpec
import pytest

from crossattn_jax.training import experiment as experiment_lib
from crossattn_jax.training import patterns

PATHS = (
  'embedding/norm/scale',
  'embedding/norm/bias',
  'downsampling_1/norm/scale',
  'downsampling_1/(odd)/kernel',
  'stage_0/block_0/mlp/fc1/kernel',
)


@pytest.mark.parametrize(
  'pattern',
  [
    '.*',
    'embedding/.*|downsampling_1/.*',
    r'(embedding|downsampling_\d)/norm/(scale|bias)',
    r'(?:embedding|stage_(?P<stage>\d)|.*)/.*',
    r'(stage_\d/|block_\d/|mlp/|fc1/)*kernel',
    r'(stage_0/)?(block_0/mlp/fc1/kernel)|e.*',
    # Neither of these bars is an alternative.
    r'[(|]*downsampling_1/\(odd\)[|)/]kernel|[]|x]*embedding/.*',
    # Not looked into.
    r'(?!stem|embedding/).*',
  ],
)
def test_a_pattern_whose_alternatives_all_match_is_taken(pattern):
  patterns.check('key', [pattern], PATHS)


@pytest.mark.parametrize(
  ('pattern', 'message'),
  [
    ('head/.*', r"key: the pattern 'head/\.\*' matches none of the 5 parameters"),
    ('embedding/.*|head/.*', r"key: the alternative 'head/\.\*' of the pattern"),
    (r'(embedding|merging_\d)/norm/.*', r"the alternative 'merging_.*' of the pattern"),
    (r'(?:embedding|merging_\d)/norm/.*', "the alternative 'merging_"),
    # Alternatives of an alternative; of a group that may be left out, and that may repeat.
    (r'(embedding|(merging|downsampling)_\d)/norm/.*', "the alternative 'merging'"),
    (r'(stem/|embedding/)?norm/scale', "the alternative 'stem/'"),
    (r'(stage_\d/|block_\d/|mlp/|attention/)*fc1/kernel', "the alternative 'attention/'"),
  ],
)
def test_what_matches_nothing_is_named(pattern, message):
  with pytest.raises(ValueError, match=message):
    patterns.check('key', ['.*', pattern], PATHS)


def test_sharding_rules_of_a_config_are_for_parameters_by_their_own_paths(tiny_config):
  tiny_config.mesh.tensor = 2
  tiny_config.sharding.rules = (('head_0/kernel', (None, 'tensor')),)
  params = experiment_lib.setup(tiny_config).abstract_state.params
  assert params['head_0']['kernel'].sharding.spec == PartitionSpec(None, 'tensor')
  for rule in (('head_2/kernel', (None, 'tensor')), ('head_0/kernel', ('tensor',))):
    tiny_config.sharding.rules = (rule,)
    with pytest.raises(ValueError, match=r'sharding\.rules: the pattern .* matches none'):
      experiment_lib.setup(tiny_config)
