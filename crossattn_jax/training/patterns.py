"""Patterns of a config: regular expressions that match whole paths of parameters."""

import collections
from collections.abc import Iterable
import difflib
import re

# An escape, a set of characters, the beginning of a group, or any other character.
_TOKEN = re.compile(r'\\.|\[\^?\]?(?:\\.|[^\\\]])*\]|\((?:\?:|\?P<\w+>)?|.', re.DOTALL)
# Lookaround, flags and references, in and with which alternatives are not told apart.
_BEYOND = re.compile(r'\(\?(?!:|P<)|\\[1-9]')


def matches(patterns: Iterable[str], path: str) -> bool:
  """Whether one of the patterns matches the path."""
  return any(re.fullmatch(pattern, path) for pattern in patterns)


def check(key: str, patterns: Iterable[str], paths: Iterable[str]) -> None:
  """Refuses patterns that say what is not there, in whole or in one of their alternatives.

  Args:
    key: of the config, for messages.
    patterns: of this key.
    paths: of all parameters.

  Raises:
    ValueError: a pattern matches nothing, or an alternative does, `a` or `b` of `(a|b)/scale`.
  """
  paths = list(paths)
  for pattern in patterns:
    marked, alternatives = _mark_alternatives(pattern)
    found = [match for match in (re.fullmatch(marked, path) for path in paths) if match]
    if not found:
      nearest = difflib.get_close_matches(pattern, paths, n=1, cutoff=0.0)
      hint = f'; the nearest is {nearest[0]!r}' if nearest else ''
      raise ValueError(
        f'{key}: the pattern {pattern!r} matches none of the {len(paths)} parameters (it must '
        f'match a whole path){hint}'
      )
    for group, alternative in alternatives.items():
      if all(match[group] is None for match in found):
        raise ValueError(
          f'{key}: the alternative {alternative!r} of the pattern {pattern!r} matches none of the '
          f'{len(paths)} parameters, the others do: mend it, or leave it out'
        )


def _mark_alternatives(pattern: str) -> tuple[str, dict[str, str]]:
  """Makes every alternative a named group: the pattern so marked, and alternatives by group."""
  if _BEYOND.search(pattern):
    return pattern, {}
  whole = f'({pattern})'
  marks, alternatives, open_groups = collections.defaultdict(str), {}, []
  for token in _TOKEN.finditer(whole):
    if token[0].startswith('('):
      open_groups.append([token.end()])
    elif token[0] == '|':
      open_groups[-1] += [token.start(), token.end()]
    elif token[0] == ')':
      bounds = [*open_groups.pop(), token.start()]
      if len(bounds) == 2:
        continue
      for start, end in zip(bounds[::2], bounds[1::2], strict=True):
        name = f'alternative_{len(alternatives)}'
        alternatives[name] = whole[start:end]
        marks[start] += f'(?P<{name}>'
        marks[end] += ')'
  return ''.join(marks[i] + character for i, character in enumerate(whole)), alternatives
