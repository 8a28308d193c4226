"""The constructor arguments of a recorded case: every one is honoured, or refused by name."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


class ArgumentError(ValueError):
  """An argument that an adapter does not know, or a value of it that it cannot honour."""


class Arguments(Mapping[str, Any]):
  """The original's arguments, which notes what an adapter asks for: all of it while it is built.

  Mappings inside are `Arguments` too; their names are joined by '.'.

  Attributes:
    known: what was asked for, by name, and how: 'required', 'default 0.1', 'no effect', 'only 0'.
  """

  def __init__(self, values: Mapping[str, Any], kind: str = '', train: bool = False):
    """Wraps the `constructor` of a manifest of `kind`, system and module, run in a mode."""
    self._values, self._kind, self._train = dict(values), kind, train
    self._inner: dict[str, Arguments] = {}
    self.known: dict[str, str] = {}

  def __getitem__(self, name: str) -> Any:
    self.known.setdefault(name, 'required')
    if name not in self._values:
      raise ArgumentError(f'{self._kind}: its adapter needs {name}, which the case does not give')
    value = self._values[name]
    if isinstance(value, Mapping):
      return self._inner.setdefault(name, Arguments(value, self._kind, self._train))
    return value

  def __contains__(self, name: object) -> bool:
    return name in self._values

  def __iter__(self) -> Iterator[str]:
    return iter(self._values)

  def __len__(self) -> int:
    return len(self._values)

  def get(self, name: str, default: Any = None) -> Any:
    """The argument, or what the public cases have where the manifest is silent."""
    self.known[name] = f'default {default!r}'
    return self[name] if name in self._values else default

  def ignore(self, *names: str, only: tuple[Any, ...] | None = None) -> None:
    """Reads arguments that change nothing here.

    Args:
      *names: of them; a case may be silent.
      only: the values that change nothing, where others would.

    Raises:
      ArgumentError: the case has another value.
    """
    for name in names:
      self.known[name] = 'no effect' if only is None else f'only {" or ".join(map(repr, only))}'
      if only is not None and name in self._values and self._values[name] not in only:
        raise ArgumentError(
          f'{self._kind}: {name} is {self._values[name]!r}; its adapter replays {self.known[name]}'
        )

  def ignore_rates(self, *names: str) -> None:
    """Reads rates of dropout and stochastic depth, 0 in a case of training mode.

    Raises:
      ArgumentError: a case of training mode drops something.
    """
    for name in names:
      self.known[name] = 'a rate'
      if self._train and np.any(self._values.get(name, 0)):
        raise ArgumentError(
          f'{self._kind}: {name} is {self._values[name]}; in training mode only 0 can be replayed'
        )

  def unknown(self) -> list[str]:
    """The arguments that the adapter did not ask for."""
    inner = [f'{name}.{x}' for name, part in self._inner.items() for x in part.unknown()]
    return [name for name in self._values if name not in self.known] + inner

  def check(self) -> None:
    """Checks that the adapter asked for every argument.

    Raises:
      ArgumentError: naming those that it does not know, and those that it does.
    """
    if unknown := self.unknown():
      raise ArgumentError(
        f'{self._kind}: its adapter does not know {", ".join(unknown)}; '
        f'it knows {", ".join(self.known) or "no argument"}'
      )
