"""The flat registry of named model variants."""

from collections.abc import Mapping, Sequence
import dataclasses
import difflib
import fnmatch
import types
import typing
from typing import Any

from flax import linen as nn
import jax.numpy as jnp
from ml_collections import config_dict

_DTYPES = ('dtype', 'param_dtype')
_LINEN_FIELDS = ('parent', 'name')


@dataclasses.dataclass(frozen=True)
class _Variant:
  module: type[nn.Module]
  fields: Mapping[str, Any]


_variants: dict[str, _Variant] = {}


def register(name: str, module: type[nn.Module], **fields: Any) -> None:
  """Makes `module(**fields)` known as `name`.

  Raises:
    ValueError: if the name is taken or a field is not one of the module's.
  """
  if name in _variants:
    raise ValueError(f'model {name!r} is already registered')
  _check_fields(name, module, fields)
  _variants[name] = _Variant(module, types.MappingProxyType(fields))


def list_models(pattern: str = '*') -> list[str]:
  """Returns the registered names that match a shell-style pattern, sorted."""
  return sorted(fnmatch.filter(_variants, pattern))


def create_model(name: str, **overrides: Any) -> nn.Module:
  """Builds a variant.

  Args:
    name: a name that `list_models` shows.
    **overrides: fields of the variant's module to change. None keeps the variant's own value, so
      that a `model_config` can be passed as it is. Sequences may be lists, dtypes may be strings.

  Returns:
    The unbound Linen module.

  Raises:
    ValueError: if the name or a field is unknown, or if the module refuses the combination.
  """
  variant = _find(name)
  chosen = {field: _plain(field, value) for field, value in overrides.items() if value is not None}
  _check_fields(name, variant.module, chosen)
  return variant.module(**{**variant.fields, **chosen})


def model_config(name: str, **overrides: Any) -> config_dict.ConfigDict:
  """Returns the configuration of a variant: its name and every field that a user may set.

  Fields are placeholders, None, which stands for the variant's own value, but for the overrides.

  Raises:
    ValueError: if the name or a field is unknown.
  """
  module = _find(name).module
  _check_fields(name, module, overrides)
  config = config_dict.ConfigDict({'name': name})
  for field, field_type in _public_fields(module).items():
    config[field] = config_dict.placeholder(field_type)
  for field, value in overrides.items():
    config[field] = tuple(value) if isinstance(value, list) else value
  return config


def _find(name: str) -> _Variant:
  if name in _variants:
    return _variants[name]
  nearest = difflib.get_close_matches(name, _variants, n=1, cutoff=0)
  family = nearest[0].split('_')[0]
  raise ValueError(
    f"unknown model {name!r}; did you mean {nearest[0]!r}? list_models('{family}*') shows all"
  )


def _public_fields(module: type[nn.Module]) -> dict[str, type]:
  """Returns the module's fields with the plain type that a config holds for each."""
  hints = typing.get_type_hints(module)
  result = {}
  for field in dataclasses.fields(module):
    if field.name in _LINEN_FIELDS or not field.init:
      continue
    hint = hints[field.name]
    options = [hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
      options = [option for option in typing.get_args(hint) if option is not type(None)]
    plain = typing.get_origin(options[0]) or options[0]
    if field.name in _DTYPES or plain is typing.Literal:
      plain = str
    result[field.name] = plain
  return result


def _check_fields(name: str, module: type[nn.Module], fields: Mapping[str, Any]) -> None:
  known = _public_fields(module)
  for field in fields:
    if field not in known:
      nearest = difflib.get_close_matches(field, known, n=1, cutoff=0)[0]
      raise ValueError(
        f'model {name!r} has no field {field!r}; did you mean {nearest!r}? '
        f'it has {", ".join(known)}'
      )


def _plain(field: str, value: Any) -> Any:
  """Returns a hashable value of the type that modules expect."""
  if field in _DTYPES:
    try:
      return jnp.dtype(value)
    except TypeError as error:
      raise ValueError(f"{field}={value!r} is not a dtype; 'float32' and 'bfloat16' are") from error
  if isinstance(value, Sequence) and not isinstance(value, str):
    return tuple(_plain('', item) for item in value)
  return value
