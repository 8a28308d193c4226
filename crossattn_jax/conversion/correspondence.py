"""What `conversion/systems/<system>.py` says of a system's models and their PyTorch originals.

`@register_models(system, pattern)` on `describe(module) -> Correspondence`, per system: the rules
between the names of the parameters, the originals' inputs, the taps. Converting, loading and
comparing use it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import fnmatch
import importlib
import pkgutil
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.conversion import mapping as mapping_lib
from crossattn_jax.conversion import systems
from crossattn_jax.conversion.layouts import channels_first, channels_last

Arrays = dict[str, jax.Array]
Shapes = Mapping[str, Sequence[int]]
State = Mapping[str, np.ndarray]
Inputs = Mapping[str, jax.ShapeDtypeStruct | np.ndarray]


class NoCorrespondence(LookupError, ValueError):
  """A model or backbone without a PyTorch original; the message says which have one."""


@dataclasses.dataclass(frozen=True)
class Tap:
  """Where the Flax module computes what a submodule of the original returns.

  Attributes:
    path: of the Flax submodule, joined by '/'; '' is the module itself.
    to_original: to the original's layout; identity by default. A tuple result is passed whole.
    method: of the submodule.
    call: which of its calls, 0 the first.
  """

  path: str
  to_original: Callable[[Any], jax.Array] = lambda x: x
  method: str = '__call__'
  call: int = 0


# A Tap, or just its path, or (path, to_original).
TapLike = Tap | str | tuple[str, Callable[[Any], jax.Array]]


def as_tap(tap: TapLike) -> Tap:
  """Spells a tap out."""
  if isinstance(tap, Tap):
    return tap
  return Tap(tap) if isinstance(tap, str) else Tap(*tap)


@dataclasses.dataclass(frozen=True)
class Correspondence:
  """How a model corresponds to its PyTorch original.

  Attributes:
    rules: between the original's state-dict keys and the Flax paths; see `mapping.Rule`.
    call: (bound module, inputs by the original's names) -> outputs by the original's names. Runs
      inside `module.apply`, layouts are converted here.
    inputs: shape and dtype of the original's inputs, batch of one, such as
      {'image': jax.ShapeDtypeStruct((1, 3, 240, 240), jnp.float32)}. An array in their place is an
      example that `call` gets as it is, never traced: other shapes depend on its numbers.
    taps: by the name of the original's submodule. `compare` finds by itself the Flax counterpart of
      every submodule that owns exactly the same parameters; taps given here come first. None says
      that a submodule has no counterpart.
    heads: paths of the classifiers, such as ('head_0', 'head_1'), whose shapes in a state dict tell
      the number of classes.
    classifier_rules: between the classifier that the network may start from and the paths within
      its backbones; those of the classifier's own head tell what is left out.
    backbones: the modules that are such a classifier but for its head.
    starts: by the names of networks that parts of the model may start from, the rules between their
      state dicts and the model; rules tell what is left out.
    fields: the shapes of a state dict by their keys -> the fields of the model that they tell,
      besides the numbers of classes and channels, which are found for every model.
    settings: the shapes of a state dict by their keys -> fields that no array shows, but that these
      weights mean something else without, as the spelling of the keys tells.
    buffers: the arrays of a state dict by their keys -> the fields of the model that they hold.
    besides: a state dict of the model -> what the original's has besides: buffers that are fields
      here, parameters that it never uses.
    config: what Hugging Face's config.json may say for the model to be the same, as
      {entry: {value: the fields that it stands for}}.
  """

  rules: Sequence[mapping_lib.Rule]
  call: Callable[[nn.Module, Arrays], Arrays]
  inputs: Inputs
  taps: Mapping[str, TapLike | None] = dataclasses.field(default_factory=dict)
  heads: Sequence[str] = ()
  classifier_rules: Sequence[mapping_lib.Rule] = ()
  backbones: Sequence[str] = ('backbone',)
  starts: Mapping[str, Sequence[mapping_lib.Rule]] = dataclasses.field(default_factory=dict)
  fields: Callable[[Shapes], Mapping[str, Any]] = lambda shapes: {}
  settings: Callable[[Shapes], Mapping[str, Any]] = lambda shapes: {}
  buffers: Callable[[State], Mapping[str, Any]] = lambda state: {}
  besides: Callable[[State], State] = lambda state: {}
  config: Mapping[str, Mapping[Any, Mapping[str, Any]]] = dataclasses.field(default_factory=dict)


def image_input(module: nn.Module) -> jax.ShapeDtypeStruct:
  """One picture of a module's channels and size, in the originals' layout."""
  return jax.ShapeDtypeStruct((1, module.num_channels, *module.image_size), jnp.float32)


def logits_or_maps(model: nn.Module, inputs: Arrays) -> Arrays:
  """What a classifier returns of the original's `image`, or its backbone alone: c2, c3, ...."""
  result, _ = model(channels_last(inputs['image']))
  if isinstance(result, tuple):
    return {f'c{s + 2}': channels_first(x) for s, x in enumerate(result)}
  return {'logits': result}


_backbones: dict[type[nn.Module], Callable[[nn.Module], Sequence[mapping_lib.Rule]]] = {}
_models: dict[tuple[str, str], Callable[[nn.Module], Correspondence]] = {}


def register_models(system: str, pattern: str):
  """Decorates `describe(module) -> Correspondence` for the registered models named like `pattern`.

  A pattern that begins with '+' is for the names of heads: '+upernet' for all 'BACKBONE+upernet'.
  """

  def decorate(describe):
    _models[system, pattern] = describe
    return describe

  return decorate


def register_backbone(module: type[nn.Module]):
  """Decorates `rules(backbone)` for modules of a class that composites have as a backbone."""

  def decorate(rules):
    _backbones[module] = rules
    return rules

  return decorate


def backbone_rules(backbone: nn.Module) -> Sequence[mapping_lib.Rule]:
  """The rules of a composite's backbone.

  Raises:
    NoCorrespondence: no system has registered its class.
  """
  _import_systems()
  if type(backbone) not in _backbones:
    raise NoCorrespondence(
      f'{type(backbone).__name__} has no PyTorch correspondence as a backbone; '
      f'{", ".join(sorted(module.__name__ for module in _backbones))} have'
    )
  return _backbones[type(backbone)](backbone)


def classifier_rules(backbone: nn.Module) -> Sequence[mapping_lib.Rule]:
  """The rules of a composite's backbone, and of the classifier that it may have been trained as.

  Raises:
    NoCorrespondence: as in `backbone_rules`.
  """
  if hasattr(backbone, 'options'):
    options = dataclasses.replace(backbone.options, backbone=False)
    classifier = backbone.clone(options=options)
  elif hasattr(backbone, 'backbone'):
    classifier = backbone.clone(backbone=False)
  else:
    classifier = backbone.clone(num_classes=1)
  return [*backbone_rules(backbone), *backbone_rules(classifier)]


def _import_systems() -> None:
  for module in pkgutil.iter_modules(systems.__path__, f'{systems.__name__}.'):
    importlib.import_module(module.name)


def describe_model(name: str, module: nn.Module) -> Correspondence:
  """Says how the registered model `name`, built as `module`, corresponds to its original.

  Raises:
    NoCorrespondence: no system describes models of this name.
  """
  _import_systems()
  backbone, plus, head = name.partition('+')
  for (_, pattern), describe in _models.items():
    if fnmatch.fnmatch(plus + head or backbone, pattern):
      return describe(module)
  patterns = ', '.join(pattern for _, pattern in _models) or 'none'
  raise NoCorrespondence(
    f'model {name!r} has no PyTorch correspondence; those that have one are named like: {patterns}'
  )


def bind_examples(
  call: Callable[[nn.Module, Arrays], Any], inputs: Inputs
) -> tuple[Callable[[nn.Module, Arrays], Any], dict[str, jax.ShapeDtypeStruct]]:
  """Gives a call those of its inputs that are arrays; returns it, and what it still takes."""
  examples = {name: x for name, x in inputs.items() if isinstance(x, np.ndarray)}
  structs = {name: x for name, x in inputs.items() if name not in examples}
  return lambda module, inputs: call(module, {**examples, **inputs}), structs


def model_template(
  module: nn.Module,
  call: Callable[[nn.Module, Arrays], Any],
  inputs: Inputs,
) -> dict[str, Any]:
  """The shapes of a module's variables, nothing computed; 'intermediates' left out."""
  call, structs = bind_examples(call, inputs)
  variables = jax.eval_shape(
    lambda inputs: module.init(jax.random.key(0), inputs, method=call), structs
  )
  return {name: tree for name, tree in variables.items() if name != 'intermediates'}


def initialise(
  module: nn.Module,
  call: Callable[[nn.Module, Arrays], Any],
  inputs: Inputs,
  paths: Collection[str],
  seed: int = 0,
) -> dict[str, np.ndarray]:
  """Initial values of a module's variables at the paths, collection first."""
  call, structs = bind_examples(call, inputs)

  # Compiled, the initialisation of everything else is never computed.
  @jax.jit
  def initial(inputs):
    variables = module.init(jax.random.key(seed), inputs, method=call)
    flat = traverse_util.flatten_dict(dict(variables), sep='/')
    return {path: flat[path] for path in paths}

  zeros = {name: np.zeros(x.shape, x.dtype) for name, x in structs.items()}
  return jax.tree.map(np.asarray, initial(zeros))


def model_mapping(
  name: str, module: nn.Module, spelling: str = ''
) -> tuple[mapping_lib.Mapping, Mapping[str, Any]]:
  """The mapping of a registered model built as `module`, and the template of its variables."""
  described = describe_model(name, module)
  template = model_template(module, described.call, described.inputs)
  return mapping_lib.build_mapping(described.rules, template, spelling=spelling), template
