"""Networks that start from weights of the classifier that their backbone was trained as."""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util
import numpy as np

from crossattn_jax.conversion import convert, correspondence
from crossattn_jax.conversion import mapping as mapping_lib
from crossattn_jax.models import registry


def start_from_classifier(
  name: str,
  state: Mapping[str, np.ndarray],
  num_classes: int,
  overrides: Mapping[str, Any] | None = None,
  seed: int = 0,
) -> convert.Conversion:
  """Initialises a network whose backbone was trained as a classifier.

  Args:
    name: of the network, such as 'ccnet_resnet101', 'biformer_small+upernet' or
      'icafusion_resnet50', both of whose streams start alike.
    state: of the classifier, as `reading.read_checkpoint` finds it.
    num_classes: of the network.
    overrides: of `create_model`.
    seed: of what the classifier does not have: the heads, and the norms of a backbone's results.

  Returns:
    The conversion; `config.weights` takes its file.

  Raises:
    mapping.MappingError: naming every missing, unexpected and misshapen key.
  """
  overrides = {**(overrides or {}), 'num_classes': num_classes}
  module = registry.create_model(name, **overrides)
  described = correspondence.describe_model(name, module)
  rules = described.classifier_rules
  if not rules:
    raise mapping_lib.MappingError(f'{name} is no network that starts from a classifier')
  template = correspondence.model_template(module, described.call, described.inputs)
  flat, lines, problems = {}, [], []
  used, fresh = set(), []
  for path, leaf in traverse_util.flatten_dict(template, sep='/').items():
    collection, top, inner = path.split('/', 2)
    own = [rule for rule in rules if rule.collection == collection]
    keys = [rule.key_of(inner) for rule in own]
    rule, key = next(((r, k) for r, k in zip(own, keys, strict=True) if k in state), (None, None))
    if top not in described.backbones or (rule is None and 'output_norm' in inner):
      fresh.append(path)
      lines.append(convert.Line('', (), path, leaf.shape, 'new: freshly initialised'))
    elif rule is None:
      problems.append(f'missing: {next(filter(None, keys), path)} for {path}')
    else:
      used.add(key)
      shape = tuple(rule.layout.torch_shape(leaf.shape))
      if state[key].shape != shape:
        problems.append(f'misshapen: {key} is {state[key].shape}, expected {shape}')
        continue
      flat[path] = rule.layout.to_flax(state[key], leaf.shape)
      lines.append(convert.Line(key, shape, path, leaf.shape, rule.layout.name))
  for key, value in state.items():
    if key in used:
      continue
    if any(rule.path_of(key) or rule.drops(key) for rule in rules):
      lines.append(convert.Line(key, value.shape, '', (), "dropped: the classifier's"))
    else:
      problems.append(f'unexpected: {key} {value.shape}')
  if problems:
    raise mapping_lib.MappingError(
      f'the state dict is not of the classifier that {name} starts from '
      f'({len(problems)} problems):\n  ' + '\n  '.join(problems)
    )

  flat |= correspondence.initialise(module, described.call, described.inputs, fresh, seed)
  variables = traverse_util.unflatten_dict(flat, sep='/')
  return convert.Conversion(name, overrides, variables, tuple(lines))
