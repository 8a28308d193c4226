"""Which registered model a state dict is of, by the names and shapes in it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flax import linen as nn

from crossattn_jax.conversion import correspondence
from crossattn_jax.conversion import mapping as mapping_lib
from crossattn_jax.models import registry

# Of dense predictors, as mmsegmentation and mmdetection call them.
_HEADS = ('decode_head.', 'bbox_head.', 'rpn_head.', 'roi_head.')


def told_fields(
  name: str, shapes: correspondence.Shapes, overrides: Mapping[str, Any]
) -> dict[str, Any]:
  """The fields of the model `name` that a state dict tells by its names and shapes.

  Args:
    name: of the model.
    shapes: of the state dict, by its keys.
    overrides: of `create_model`, for what the state dict does not tell.

  Raises:
    correspondence.NoCorrespondence: the model has no PyTorch original.
    mapping.MappingError: the state dict is of something else.
  """
  overrides = {field: x for field, x in overrides.items() if field != 'num_classes'}
  described = correspondence.describe_model(name, registry.create_model(name, **overrides))
  told = {**described.fields(shapes), **described.settings(shapes)}
  described = correspondence.describe_model(
    name, registry.create_model(name, **{**overrides, **told})
  )
  keys = {rule.key_of(f'{head}/kernel') for head in described.heads for rule in described.rules}
  classes = {shapes[key][0] for key in keys if key in shapes}
  if classes:
    return told | {'num_classes': min(classes)}
  if described.heads:
    headless = registry.create_model(name, **{**overrides, **told, 'num_classes': 0})
    if not correspondence.describe_model(name, headless).heads:
      told['num_classes'] = 0
  return told


def match(
  name: str, shapes: correspondence.Shapes, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], mapping_lib.Mapping]:
  """Builds the model `name` as a state dict tells it.

  Args:
    name: of the model.
    shapes: of the state dict, by its keys.
    overrides: of `create_model`; they win over what the state dict tells.

  Returns:
    The overrides of the model as built, and its mapping, which need not fit.

  Raises:
    correspondence.NoCorrespondence: the model has no PyTorch original.
    mapping.MappingError: the state dict is of something else.
  """
  overrides = {**told_fields(name, shapes, overrides), **overrides}
  module = registry.create_model(name, **overrides)
  mapping, _ = correspondence.model_mapping(name, module)
  if 'num_channels' not in overrides:
    channels = field_of(module, 'num_channels')
    told = _told_channels(mapping, shapes, channels)
    if told != channels:
      overrides['num_channels'] = told
      mapping, _ = correspondence.model_mapping(name, registry.create_model(name, **overrides))
  return overrides, mapping


def _told_channels(
  mapping: mapping_lib.Mapping, shapes: correspondence.Shapes, channels: int | None
) -> int | None:
  """The channels of the images, from a convolution that differs in its input only."""
  for key, shape in shapes.items():
    if len(shape) == 4 and shape[1] != channels:
      entry = mapping.find(key)
      if entry is not None and entry.torch_shape == (shape[0], channels, *shape[2:]):
        return shape[1]
  return channels


def knows(rules: Sequence[mapping_lib.Rule], key: str) -> bool:
  """Whether a rule is for a key of a state dict."""
  return any(rule.path_of(key) or rule.drops(key) for rule in rules)


def owner(rules: Sequence[mapping_lib.Rule], keys: Iterable[str]) -> str:
  """Whose spelling of the keys it is, as in "timm's "; '' for the original's."""
  for key in keys:
    rule = next((rule for rule in rules if rule.path_of(key)), None)
    if rule is not None and rule.spelling:
      return f"{rule.spelling}' " if rule.spelling.endswith('s') else f"{rule.spelling}'s "
  return ''


def recognise(shapes: correspondence.Shapes, near: str) -> str:
  """The registered model that a state dict is of; '' if it is of none.

  Args:
    shapes: of the state dict, by its keys.
    near: the model that is looked at first.
  """
  heads = any(key.startswith(_HEADS) for key in shapes)
  names = [*reversed(registry.list_models('*+*' if heads else '*'))]
  names.sort(key=lambda name: name.partition('+')[0] != near.partition('+')[0])
  lengths = {length for shape in shapes.values() for length in shape}
  seen: set[str] = set()
  knowing: dict[tuple[mapping_lib.Rule, ...], bool] = {}
  for name in names:
    try:
      module = registry.create_model(name)
      if repr(module) in seen or not lengths.issuperset(_widths(module)):
        continue  # another name of the same, or cheaply excluded
      seen.add(repr(module))
      module = registry.create_model(name, **told_fields(name, shapes, {}))
      rules = tuple(correspondence.describe_model(name, module).rules)
      if rules not in knowing:
        knowing[rules] = all(knows(rules, key) for key in shapes)
      if knowing[rules]:
        match(name, shapes, {})[1].check(shapes)
        return name
    except ValueError:
      continue  # It does not fit, or has no original.
  return ''


def _widths(module: nn.Module) -> Sequence[int]:
  return field_of(module, 'widths') or ()


def field_of(module: nn.Module, field: str) -> Any:
  """The value of a field that `create_model` takes, whether the model or its backbone has it."""
  for network in (module, getattr(module, 'backbone', None)):
    for owner in (network, getattr(network, 'options', None)):
      if hasattr(owner, field):
        return getattr(owner, field)
  return None
