"""The arguments of the originals: what is asked for, ignored and refused; their table in docs."""

import json
import pathlib
import textwrap

import pytest

from crossattn_jax.parity import adapters
from crossattn_jax.parity.arguments import ArgumentError, Arguments

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / 'docs' / 'parity.md'
HEADING = '## Arguments of the recorded kinds\n'


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


def test_training_mode_drops_nothing():
  arguments = Arguments({'drop_path': [0.0, 0.1]}, 'ours, block', train=True)
  with pytest.raises(ArgumentError, match=r'drop_path is \[0.0, 0.1\]; in training mode only 0'):
    arguments.ignore_rates('drop_path')
  Arguments({'drop_path': 0.1}, 'ours, block').ignore_rates('drop_path')


def arguments_of_kinds():
  """The list in the docs, from what the adapters ask for in the smallest case of each kind."""
  kinds = {}
  for path in sorted((ROOT / 'tests' / 'reference').glob('*/*.json')):
    manifest = json.loads(path.read_text())
    smallest = kinds.setdefault(manifest['system'], {}).setdefault(manifest['module'], manifest)
    if manifest['parameter_count'] < smallest['parameter_count']:
      kinds[manifest['system']][manifest['module']] = manifest
  sections = []
  for system, manifests in kinds.items():
    lines = []
    for module, manifest in sorted(manifests.items(), key=lambda item: item[0].lower()):
      groups = {'': [], 'only ': [], 'no effect: ': [], 'rates: ': []}
      for name, how in adapters.known_arguments(manifest).items():
        kind, _, value = how.partition(' ')
        group = {'only': 'only ', 'no': 'no effect: ', 'a': 'rates: '}.get(kind, '')
        groups[group].append(f'`{name}={value}`' if kind == 'only' else f'`{name}`')
      parts = [group + ', '.join(names) for group, names in groups.items() if names]
      text = f'- **{module}**: ' + ('; '.join(parts) or 'none')
      lines += textwrap.wrap(
        text, 120, subsequent_indent='  ', break_long_words=False, break_on_hyphens=False
      )
    sections.append(f'### {system}\n' + '\n'.join(lines) + '\n')
  return '\n'.join(sections)


@pytest.mark.extended
def test_docs_say_which_arguments_each_kind_takes():
  """Run this file to write them."""
  assert arguments_of_kinds() in DOCS.read_text()


if __name__ == '__main__':
  text = DOCS.read_text()
  before, _, after = text.partition(HEADING)
  introduction, _, rest = after.partition('\n### ')
  end = rest.find('\n## ')
  following = rest[end:] if end >= 0 else ''
  DOCS.write_text(f'{before}{HEADING}{introduction}\n{arguments_of_kinds()}{following}')
