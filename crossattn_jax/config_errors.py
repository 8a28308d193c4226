"""Errors of a config that know what would solve them."""

from collections.abc import Iterable, Mapping
import difflib
from typing import Any


class ConfigError(ValueError):
  """A config that cannot be run; the message says which key and what to do.

  Attributes:
    changes: of keys, such as {'model.num_classes': 10}, that solve it; empty where only a person
      can say.
  """

  def __init__(self, message: str, changes: Mapping[str, Any] | None = None):
    super().__init__(message)
    self.changes = dict(changes or {})


class MissingFromData(ConfigError):
  """What only the data says is not known yet; where it cannot be read, that is the problem."""


class UnknownName(ValueError):
  """A name that is none of those there are.

  Attributes:
    name: as given.
    nearest: the one that was probably meant; None where none is similar.
  """

  def __init__(self, message: str, name: str = '', known: Iterable[str] = ()):
    super().__init__(message)
    self.name = name
    self.nearest = next(iter(difflib.get_close_matches(str(name), sorted(known), n=1)), None)


def near_names(name: str, known: Iterable[str], count: int = 1) -> str:
  """Asks whether a similar name was meant, for a message; empty where none is similar."""
  near = difflib.get_close_matches(str(name), sorted(known), n=count)
  return f'did you mean {" or ".join(map(repr, near))}? ' if near else ''
