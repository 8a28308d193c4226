"""The flat registry of named model variants, and of heads: 'biformer_small+upernet'."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import difflib
import fnmatch
import functools
import types
import typing
from typing import Any

from flax import linen as nn
import jax.numpy as jnp
from ml_collections import config_dict

from crossattn_jax import config_errors

_DTYPES = ('dtype', 'param_dtype')
_LINEN_FIELDS = ('parent', 'name')

_WITH_WEIGHTS = 'crossattn_jax.load_pretrained(NAME, FILE_OR_SOURCE) gives a model with its weights'
_WITH_FEATURES = "every model returns (result, features), maps of a pyramid as 'stage_0', ..."
# Words of timm and of others -> the field that is meant, or what does it where no field does.
_SYNONYMS = {
  'attn_drop_rate': 'attention_drop_rate',
  'channels': 'num_channels',
  'checkpoint_path': _WITH_WEIGHTS,
  'drop': 'drop_rate',
  'drop_path': 'drop_path_rate',
  'drop_rate': 'dropout_rate',
  'features_only': _WITH_FEATURES,
  'img_size': 'image_size',
  'in_channels': 'num_channels',
  'in_chans': 'num_channels',
  'input_size': 'image_size',
  'num_labels': 'num_classes',
  'out_indices': _WITH_FEATURES,
  'patch_size': 'patch_sizes',
  'pretrained': _WITH_WEIGHTS,
  'window_size': 'window',
}


@dataclasses.dataclass(frozen=True)
class _Entry:
  """A variant, or a head.

  Attributes:
    build: makes it of its fields.
    types: of the fields that a user may set, as a config holds them.
    strides: of the maps that a backbone gives, or that a head needs.
  """

  build: Callable[..., nn.Module]
  types: Mapping[str, type]
  strides: tuple[int, ...]


_variants: dict[str, _Entry] = {}
_heads: dict[str, _Entry] = {}


def register(name: str, module: type[nn.Module], **fields: Any) -> None:
  """Makes `module(**fields)` known as `name`.

  A class with an attribute `strides` is a backbone: its features hold a map 'stage_0', 'stage_1',
  ... of each stride. It leaves its classifier out with `backbone=True`, or `num_classes=0` where it
  has no such field.

  Raises:
    ValueError: if the name is taken or a field is not one of the module's.
  """
  if name in _variants:
    raise ValueError(f'model {name!r} is already registered')
  _variants[name] = _entry(name, module, getattr(module, 'strides', ()), fields)


def register_head(
  name: str, module: type[nn.Module], strides: Sequence[int], **fields: Any
) -> None:
  """Makes `module(backbone=..., **fields)` known as 'BACKBONE+name', for every fitting backbone.

  Args:
    name: of the head.
    module: of the whole, which has the backbone's module as its field `backbone`.
    strides: of the maps that the backbone must have.
    **fields: of the module.

  Raises:
    ValueError: if the name is taken or a field is not one of the module's.
  """
  if name in _heads:
    raise ValueError(f'head {name!r} is already registered')
  _heads[name] = _entry(name, module, strides, fields)


def list_models(pattern: str = '*') -> list[str]:
  """Returns the registered names that match a shell-style pattern, sorted.

  Backbones with heads are listed where the pattern has a '+', as in 'biformer_small+*'.
  """
  names = _variants
  if '+' in pattern:
    names = [f'{model}+{head}' for model in _variants for head in _heads if _fits(model, head)]
  return sorted(fnmatch.filter(names, pattern))


def create_model(name: str, **overrides: Any) -> nn.Module:
  """Builds a variant, or a backbone with a head.

  Args:
    name: a name that `list_models` shows, such as 'biformer_small' or 'biformer_small+upernet'.
    **overrides: fields of the variant's module to change; see `model_config`. None keeps the
      variant's own value, so that a `model_config` can be passed as it is. Sequences may be lists,
      dtypes may be strings.

  Returns:
    The unbound Linen module.

  Raises:
    ValueError: if the name or a field is unknown, or if the module refuses the combination.

  Examples:
    >>> create_model('crossvit_tiny_240', num_classes=5).num_classes
    5
    >>> type(create_model('biformer_small+upernet')).__name__
    'UPerNet'
  """
  entry = _find(name)
  chosen = {field: _plain(field, value) for field, value in overrides.items() if value is not None}
  _check_fields(name, entry.types, chosen)
  return entry.build(**chosen)


def model_config(name: str, **overrides: Any) -> config_dict.ConfigDict:
  """Returns the configuration of a variant: its name and every field that a user may set.

  Fields are placeholders, None, which stands for the variant's own value, but for the overrides. A
  backbone with a head has the fields of both. Those that both have are the head's, as `num_classes`
  is, but the dtypes, which are for both.

  Raises:
    ValueError: if the name or a field is unknown.

  Examples:
    >>> config = model_config('swiftformer_xs', num_classes=5)
    >>> config.name, config.num_classes, config.drop_path_rate
    ('swiftformer_xs', 5, None)
  """
  types = _find(name).types
  _check_fields(name, types, overrides)
  config = config_dict.ConfigDict({'name': name})
  for field, field_type in types.items():
    config[field] = config_dict.placeholder(field_type)
  for field, value in overrides.items():
    config[field] = tuple(value) if isinstance(value, list) else value
  return config


def _entry(
  name: str, module: type[nn.Module], strides: Sequence[int], fields: Mapping[str, Any]
) -> _Entry:
  types = _public_fields(module)
  _check_fields(name, types, fields)
  return _Entry(functools.partial(_build, module, **fields), types, tuple(strides))


def _build(module: type[nn.Module], **fields: Any) -> nn.Module:
  options = _options_class(module)
  return module(**fields) if options is None else module(options(**fields))


def _options_class(module: type[nn.Module]) -> type | None:
  """The class of a module's field `options`, whose fields then stand for the module's own."""
  return typing.get_type_hints(module).get('options')


def _find(name: str) -> _Entry:
  if name in _variants:
    return _variants[name]
  model, plus, head = name.partition('+')
  if model in _variants and head in _heads:
    if not _fits(model, head):
      raise ValueError(
        f'{model!r} is no backbone for {head!r}: it does not give maps of strides '
        f"{', '.join(map(str, _heads[head].strides))}; list_models('*+{head}') shows those that do"
      )
    return _composite(_variants[model], _heads[head])
  known = list_models('*+*' if plus else '*')
  near = difflib.get_close_matches(name, known, n=1, cutoff=0.65)
  hint = f'did you mean {near[0]!r}? ' if near else ''
  family = near[0].split('_')[0] if near else ''
  pattern = f'{family}*+*' if plus else f'{family}*'
  message = f'unknown model {name!r}; {hint}list_models({pattern!r}) shows all'
  raise config_errors.UnknownName(message, name, near)


def _fits(model: str, head: str) -> bool:
  return set(_heads[head].strides) <= set(_variants[model].strides)


def _composite(backbone: _Entry, head: _Entry) -> _Entry:
  types = {**backbone.types, **head.types}
  del types['backbone']
  without_classifier = {'backbone': True} if 'backbone' in backbone.types else {'num_classes': 0}

  def build(**fields: Any) -> nn.Module:
    own = {field: value for field, value in fields.items() if field in head.types}
    rest = {f: value for f, value in fields.items() if f in _DTYPES or f not in head.types}
    return head.build(backbone=backbone.build(**without_classifier, **rest), **own)

  return _Entry(build, types, ())


def _public_fields(module: type[nn.Module]) -> dict[str, type]:
  """Returns the module's fields with the plain type that a config holds for each."""
  owner = _options_class(module) or module
  hints = typing.get_type_hints(owner)
  result = {}
  for field in dataclasses.fields(owner):
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


def _check_fields(name: str, known: Mapping[str, type], fields: Mapping[str, Any]) -> None:
  for field in fields:
    if field not in known:
      near = difflib.get_close_matches(field, known, n=1)
      meant = _SYNONYMS.get(field) or (near[0] if near else None)
      hint = f'did you mean {meant!r}? ' if meant in known else ''
      if meant in (_WITH_WEIGHTS, _WITH_FEATURES):
        hint = f'{meant}; '
      raise ValueError(f'model {name!r} has no field {field!r}; {hint}it has {", ".join(known)}')


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
