import pytest

from crossattn_jax.parity.arguments import ArgumentError, Arguments


def test_what_is_not_asked_for_is_unknown_by_its_whole_name():
  arguments = Arguments({'dim': 8, 'heads': 2, 'neck': {'width': 3, 'kind': 'FPN'}}, 'ours, block')
  assert arguments['dim'] == 8
  assert arguments.get('ratio', 4) == 4
  assert arguments['neck']['width'] == 3
  message = 'ours, block: its adapter does not know heads, neck.kind; it knows dim, ratio, neck'
  with pytest.raises(ArgumentError, match=message):
    arguments.check()
  assert arguments.known == {'dim': 'required', 'ratio': 'default 4', 'neck': 'required'}


def test_iterating_over_the_items_asks_for_all_and_over_the_names_for_none():
  arguments = Arguments({'dim': 8, 'weights': {'a': 1, 'b': 2}})
  assert list(arguments) == ['dim', 'weights']
  assert 'dim' in arguments
  assert arguments.unknown() == ['dim', 'weights']
  assert dict(arguments['weights']) == {'a': 1, 'b': 2}
  assert arguments.unknown() == ['dim']


def test_ignored_arguments_may_be_held_to_the_values_that_change_nothing():
  arguments = Arguments({'verbose': True, 'drop_rate': 0, 'drop_path': 0.1}, 'ours, block')
  arguments.ignore('verbose', 'not_there')
  arguments.ignore('drop_rate', only=(0,))
  message = 'ours, block: drop_path is 0.1; its adapter replays only 0'
  with pytest.raises(ArgumentError, match=message):
    arguments.ignore('drop_path', only=(0,))
  arguments.check()
