"""State dicts and Flax variables: the same numbers under two sets of names and two layouts.

A system writes its correspondence once, as ordered rules:

    Rule('blocks.{k}.blocks.{d}.{i}.attn.qkv.weight',
         'encoder_{k}/branch_{d}/block_{i}/attention/qkv/kernel', 'qkv')

`{k}` stands for a whole number and `{which:norm1|norm2}` for what its regular expression matches;
both sides must use the same placeholders, so that a rule reads in both directions. The first rule
that matches wins. Where several rules lead to one Flax array, the first one gives the key that is
written and the others are spellings that are also read:

    Rule('pos_embed.{d}', 'embedding_{d}/position_embedding'),
    Rule('pos_embed_{d}', 'embedding_{d}/position_embedding', spelling='timm'),

`build_mapping(rules, template)` applies the rules to the variables of one model and gives a
`Mapping` that converts either way without losing a bit: layouts only permute and reshape.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as AnyMapping
import dataclasses
import functools
import re
from typing import Any

from flax import traverse_util

from crossattn_jax.conversion.layouts import LAYOUTS, Array, Layout, Shape


class MappingError(ValueError):
  """Rules, state dict and model do not fit together; the message names the keys."""


_PLACEHOLDER = re.compile(r'\{(\w+)(?::([^{}]+))?\}')


@functools.cache
def _parser(template: str, patterns: tuple[tuple[str, str], ...]) -> re.Pattern:
  """Compiles a template to a regular expression with a named group per placeholder."""
  patterns = dict(patterns)
  parts, end, seen = [], 0, set()
  for match in _PLACEHOLDER.finditer(template):
    parts.append(re.escape(template[end : match.start()]))
    name = match[1]
    parts.append(f'(?P={name})' if name in seen else f'(?P<{name}>{patterns[name]})')
    seen.add(name)
    end = match.end()
  parts.append(re.escape(template[end:]))
  return re.compile(''.join(parts))


def _fill(template: str, values: AnyMapping[str, str]) -> str:
  return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


@dataclasses.dataclass(frozen=True)
class Rule:
  """One line of a system's correspondence between torch keys and Flax paths.

  Attributes:
    torch: template of the state-dict key, such as 'norm.{d}.weight'.
    flax: template of the path in the collection, joined by '/', such as 'norm_{d}/scale'. None
      drops the key: a buffer that the Flax model computes itself.
    layout: a name in `LAYOUTS`, or a `Layout` of the system's own.
    collection: 'params', or 'batch_stats' for running statistics.
    spelling: of whom the key is, such as 'timm', where others write it differently; '' is the
      original's.
  """

  torch: str
  flax: str | None
  layout: str | Layout = 'identity'
  collection: str = 'params'
  spelling: str = ''

  def __post_init__(self):
    if isinstance(self.layout, str):
      if self.layout not in LAYOUTS:
        raise MappingError(
          f'rule {self.torch!r}: unknown layout {self.layout!r}; known: {", ".join(LAYOUTS)}'
        )
      object.__setattr__(self, 'layout', LAYOUTS[self.layout])
    names = {match[1] for match in _PLACEHOLDER.finditer(self.torch)}
    if self.flax is not None and names != {m[1] for m in _PLACEHOLDER.finditer(self.flax)}:
      raise MappingError(
        f'rule {self.torch!r} -> {self.flax!r}: both sides must have the same placeholders'
      )

  @functools.cached_property
  def _patterns(self) -> tuple[tuple[str, str], ...]:
    patterns: dict[str, str] = {}
    for template in (self.torch, self.flax or ''):
      for match in _PLACEHOLDER.finditer(template):
        patterns[match[1]] = match[2] or patterns.get(match[1], r'\d+')
    return tuple(patterns.items())

  def path_of(self, torch_key: str) -> str | None:
    """The Flax path of a torch key, or None where the rule does not match (or drops it)."""
    match = _parser(self.torch, self._patterns).fullmatch(torch_key)
    return None if match is None or self.flax is None else _fill(self.flax, match.groupdict())

  def key_of(self, flax_path: str) -> str | None:
    """The torch key of a Flax path, or None where the rule does not match."""
    if self.flax is None:
      return None
    match = _parser(self.flax, self._patterns).fullmatch(flax_path)
    return None if match is None else _fill(self.torch, match.groupdict())

  def drops(self, torch_key: str) -> bool:
    """Whether the rule says that the Flax model computes this buffer itself."""
    return self.flax is None and bool(_parser(self.torch, self._patterns).fullmatch(torch_key))


def prefixed(rules: Iterable[Rule], torch: str = '', flax: str = '') -> list[Rule]:
  """The rules of a submodule that sits at key prefix `torch` ('model.') and path `flax` ('a/')."""
  return [
    dataclasses.replace(
      rule, torch=torch + rule.torch, flax=None if rule.flax is None else flax + rule.flax
    )
    for rule in rules
  ]


@dataclasses.dataclass(frozen=True)
class Entry:
  """One tensor: where it is in the state dict, where in the variables, and how it is laid out."""

  torch_key: str
  torch_shape: Shape
  collection: str
  path: tuple[str, ...]
  flax_shape: Shape
  layout: Layout

  def __str__(self) -> str:
    return (
      f'{self.torch_key} {self.torch_shape} <-> '
      f'{self.collection}/{"/".join(self.path)} {list(self.flax_shape)} ({self.layout.name})'
    )


def _entry(rule: Rule, torch_key: str, path: tuple[str, ...], shape: Shape) -> Entry:
  torch_shape = tuple(rule.layout.torch_shape(shape))
  return Entry(torch_key, torch_shape, rule.collection, path, shape, rule.layout)


@dataclasses.dataclass(frozen=True)
class Mapping:
  """The correspondence for one model; see `build_mapping`.

  Attributes:
    entries: one per tensor, in the original's order where that is known.
    rules: what it was built from; they also know other spellings of the keys.
  """

  entries: tuple[Entry, ...]
  rules: tuple[Rule, ...]

  @functools.cached_property
  def _by_key(self) -> dict[str, Entry]:
    return {entry.torch_key: entry for entry in self.entries}

  @functools.cached_property
  def _by_path(self) -> dict[tuple[str, str], Entry]:
    return {(entry.collection, '/'.join(entry.path)): entry for entry in self.entries}

  def find(self, torch_key: str) -> Entry | None:
    """The entry of a torch key, laid out as its spelling has it; None where no rule knows it."""
    if torch_key in self._by_key:
      return self._by_key[torch_key]
    for rule in self.rules:
      path = rule.path_of(torch_key)
      if path is not None:
        entry = self._by_path.get((rule.collection, path))
        return None if entry is None else _entry(rule, torch_key, entry.path, entry.flax_shape)
    return None

  def drops(self, torch_key: str) -> bool:
    """Whether the rules say that the Flax model computes this buffer itself."""
    return any(rule.drops(torch_key) for rule in self.rules)

  def only(self, collection: str) -> Mapping:
    """The part of the mapping that concerns one collection."""
    entries = tuple(entry for entry in self.entries if entry.collection == collection)
    return dataclasses.replace(self, entries=entries)

  def check(self, shapes: AnyMapping[str, Shape]) -> None:
    """Checks the shapes of a state dict.

    Raises:
      MappingError: naming every missing, unexpected, misshapen and repeated key.
    """
    found = collections.defaultdict(list)
    problems = []
    for key, shape in shapes.items():
      entry = self.find(key)
      if entry is None:
        if not self.drops(key):
          problems.append(f'unexpected: {key} {tuple(shape)}')
        continue
      found[entry.collection, entry.path].append(key)
      if tuple(shape) != entry.torch_shape:
        problems.append(f'misshapen: {key} is {tuple(shape)}, expected {entry}')
    for entry in self.entries:
      keys = found[entry.collection, entry.path]
      if not keys:
        problems.append(f'missing: {entry}')
      elif len(keys) > 1:
        problems.append(f'repeated: {" and ".join(keys)} are both {entry}')
    if problems:
      raise MappingError(
        f'the state dict does not fit this model ({len(problems)} problems of '
        f'{len(self.entries)} tensors):\n  ' + '\n  '.join(problems)
      )

  def to_flax(self, state: AnyMapping[str, Array]) -> dict[str, Any]:
    """Converts a torch state dict (of numpy or jax arrays) to Flax variables, dtypes kept.

    Raises:
      MappingError: naming every missing, unexpected, misshapen and repeated key.
    """
    self.check({key: tuple(value.shape) for key, value in state.items()})
    flat = {}
    for key, value in state.items():
      entry = self.find(key)
      if entry is not None:
        path = (entry.collection, *entry.path)
        flat[path] = entry.layout.to_flax(value, entry.flax_shape)
    return traverse_util.unflatten_dict(flat)

  def to_torch(self, variables: AnyMapping[str, Any]) -> dict[str, Array]:
    """Converts Flax variables, or gradients in their shape, to a torch state dict, dtypes kept.

    Raises:
      MappingError: naming every missing, unexpected and misshapen array.
    """
    flat = {
      (path[0], '/'.join(path[1:])): value
      for path, value in traverse_util.flatten_dict(dict(variables)).items()
    }
    problems = [f'unexpected: {"/".join(path)}' for path in flat if path not in self._by_path]
    for path, entry in self._by_path.items():
      if path not in flat:
        problems.append(f'missing: {entry}')
      elif tuple(flat[path].shape) != entry.flax_shape:
        problems.append(f'misshapen: {"/".join(path)} is {flat[path].shape}, expected {entry}')
    if problems:
      raise MappingError('the variables do not fit this model:\n  ' + '\n  '.join(problems))
    return {
      entry.torch_key: entry.layout.to_torch(
        flat[entry.collection, '/'.join(entry.path)], entry.torch_shape
      )
      for entry in self.entries
    }


def build_mapping(
  rules: Sequence[Rule],
  template: AnyMapping[str, Any],
  torch_shapes: AnyMapping[str, Shape] | None = None,
  spelling: str = '',
) -> Mapping:
  """Applies a system's rules to one model.

  Args:
    rules: ordered, the first that matches wins.
    template: the model's variables as anything with shapes, such as `jax.eval_shape` of its init.
    torch_shapes: the original's state dict as key -> shape, without the buffers that it makes
      itself. Gives the order and the spelling of the keys, and is checked. None: the first rule's
      spelling, in the order of the template.
    spelling: whose keys are written where rules of several spellings lead to one array.

  Returns:
    The mapping, covering every array of the template.

  Raises:
    MappingError: an array of the template has no rule, or `torch_shapes` does not fit.
  """
  rules = sorted(rules, key=lambda rule: rule.spelling != spelling)
  entries, without_rule = [], []
  for path, leaf in traverse_util.flatten_dict(dict(template)).items():
    collection, name = path[0], '/'.join(path[1:])
    shape = tuple(leaf.shape)
    for rule in rules:
      key = rule.key_of(name) if rule.collection == collection else None
      if key is not None:
        entries.append(_entry(rule, key, path[1:], shape))
        break
    else:
      without_rule.append(f'{"/".join(path)} {list(shape)}')
  if without_rule:
    raise MappingError('no rule gives the torch key of:\n  ' + '\n  '.join(without_rule))
  mapping = Mapping(tuple(entries), tuple(rules))
  if torch_shapes is not None:
    mapping.check(torch_shapes)
    in_order = [mapping.find(key) for key in torch_shapes if not mapping.drops(key)]
    mapping = dataclasses.replace(mapping, entries=tuple(in_order))
  return mapping
