"""What `parity/systems/<system>/` tells the parity tools about a system.

Two registrations:

`@register_adapter(system, module)` on `make_adapter(manifest) -> Adapter`, one per module kind of
the recorded cases: how to build the Flax module from the original's constructor arguments and how
to run it on the original's inputs, in the original's layouts.

`@register_models(system, pattern)` on `describe(module) -> ModelParity`, per system: the rules
and the taps of the registered models (`create_model`), which convert, compare and load_pretrained
use. An adapter of whole-model cases is usually built from the same description.

Modules are built with `dtype=None`: they then compute in the dtype of the weights they are handed,
float64 when exactness is proven.
"""

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as AnyMapping
import dataclasses
import fnmatch
import importlib
import math
import pkgutil
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.parity import arguments, systems
from crossattn_jax.parity import mapping as mapping_lib

Arrays = dict[str, jax.Array]


class AdapterNotFound(LookupError):
  """No adapter for a system or a module kind; the message says what exists."""


@dataclasses.dataclass(frozen=True)
class Adapter:
  """How to run one recorded case.

  Attributes:
    run: (variables, inputs) -> (outputs, taps), all by the manifest's names and in the ORIGINAL's
      layouts; transpositions are inside, in jax.numpy, so that gradients come back in the
      original's layout. Outputs and taps hold at least the recorded ones. Integer and boolean
      outputs must equal the record; they are not differentiated.
    template: the variables as `jax.eval_shape` of the module's init; {} for a pure function.
    mapping: state dict <-> variables; None for a pure function.
    without_gradient: outputs that the notes exclude from the scalar that is differentiated.
    tolerances: absolute tolerances that the case's notes state, by array name ('out/image').
    jit: whether to compile `run` as a whole, which is faster from the smallest module on. Functions
      that leave jax.numpy must not be compiled.
  """

  run: Callable[[Any, Arrays], tuple[Arrays, Arrays]]
  template: AnyMapping[str, Any] = dataclasses.field(default_factory=dict)
  mapping: mapping_lib.Mapping | None = None
  without_gradient: frozenset[str] = frozenset()
  tolerances: AnyMapping[str, float] = dataclasses.field(default_factory=dict)
  jit: bool = True


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
class ModelParity:
  """How a model corresponds to its PyTorch original.

  Attributes:
    rules: between the original's state-dict keys and the Flax paths; see `mapping.Rule`.
    call: (bound module, inputs by the original's names) -> outputs by the original's names. Runs
      inside `module.apply`, layouts are converted here.
    inputs: shape and dtype of the original's inputs, batch of one, such as
      {'image': jax.ShapeDtypeStruct((1, 3, 240, 240), jnp.float32)}.
    taps: by the name of the original's submodule. `compare` finds by itself the Flax counterpart of
      every submodule that owns exactly the same parameters; taps given here come first. None says
      that a submodule has no counterpart.
    heads: paths of the classifiers, such as ('head_0', 'head_1'): what replacing the head
      initialises anew.
    position_embeddings: path -> index into `module.grids()` of its patch grid, such as
      {'embedding_0/position_embedding': 0}: what resizing to another image size resizes.
    classifier_rules: between the classifier that the network may start from and the paths within
      its 'backbone'; those of the classifier's own head tell what is left out.
    fields: the shapes of a state dict by their keys -> the fields of the model that they tell, such
      as the number of classes.
  """

  rules: Sequence[mapping_lib.Rule]
  call: Callable[[nn.Module, Arrays], Arrays]
  inputs: AnyMapping[str, jax.ShapeDtypeStruct]
  taps: AnyMapping[str, TapLike | None] = dataclasses.field(default_factory=dict)
  heads: Sequence[str] = ()
  position_embeddings: AnyMapping[str, int] = dataclasses.field(default_factory=dict)
  classifier_rules: Sequence[mapping_lib.Rule] = ()
  fields: Callable[[AnyMapping[str, Sequence[int]]], AnyMapping[str, Any]] = lambda shapes: {}


_backbones: dict[type[nn.Module], Callable[[nn.Module], Sequence[mapping_lib.Rule]]] = {}
_adapters: dict[tuple[str, str], Callable[[AnyMapping[str, Any]], Adapter]] = {}
_models: dict[tuple[str, str], Callable[[nn.Module], ModelParity]] = {}
# Systems whose models `describe_model` looks through; mmsegmentation's modules belong to several.
SYSTEMS = tuple(module.name for module in pkgutil.iter_modules(systems.__path__))


def register_adapter(system: str, module: str):
  """Decorates `make_adapter(manifest) -> Adapter` for the cases of one module kind."""

  def decorate(make_adapter):
    if (system, module) in _adapters:
      raise ValueError(f'two adapters for module {module!r} of system {system!r}')
    _adapters[system, module] = make_adapter
    return make_adapter

  return decorate


def register_models(system: str, pattern: str):
  """Decorates `describe(module) -> ModelParity` for the registered models named like `pattern`.

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
    AdapterNotFound: no system has registered its class.
  """
  for system in SYSTEMS:
    _import_system(system)
  if type(backbone) not in _backbones:
    raise AdapterNotFound(
      f'{type(backbone).__name__} has no PyTorch correspondence as a backbone; '
      f'{", ".join(sorted(module.__name__ for module in _backbones))} have'
    )
  return _backbones[type(backbone)](backbone)


# Registers adapters of several systems.
_SHARED = 'mmsegmentation'


def _import_system(system: str) -> None:
  for name in {system, _SHARED} & set(SYSTEMS):
    package = importlib.import_module(f'{systems.__name__}.{name}')
    for module in pkgutil.iter_modules(package.__path__, f'{package.__name__}.'):
      importlib.import_module(module.name)


def find_adapter(manifest: AnyMapping[str, Any]) -> Adapter:
  """Builds the adapter of a case; its `constructor` notes what is read, see `Arguments`.

  Raises:
    AdapterNotFound: `parity/systems/<system>/` has none for the manifest's module kind.
    arguments.ArgumentError: the adapter does not know an argument or cannot honour its value.
  """
  adapter, constructor = _build(manifest)
  constructor.check()
  return adapter


def known_arguments(manifest: AnyMapping[str, Any]) -> dict[str, str]:
  """The arguments that the adapter of a case asks for, and how; see `Arguments.known`."""
  return _build(manifest)[1].known


def _build(manifest: AnyMapping[str, Any]) -> tuple[Adapter, arguments.Arguments]:
  system, module = manifest['system'], manifest['module']
  _import_system(system)
  if (system, module) not in _adapters:
    known = sorted(kind for name, kind in _adapters if name == system)
    raise AdapterNotFound(
      f'no adapter for module {module!r} of system {system!r}: add it with '
      f'@register_adapter({system!r}, {module!r}) in crossattn_jax/parity/systems/{system}/; '
      + (f'it has {", ".join(known)}' if known else 'it has none yet')
    )
  constructor = arguments.Arguments(
    manifest['constructor'], f'{system}, {module}', manifest['mode'] == 'train'
  )
  return _adapters[system, module]({**manifest, 'constructor': constructor}), constructor


def describe_model(name: str, module: nn.Module) -> ModelParity:
  """Says how the registered model `name`, built as `module`, corresponds to its original.

  Raises:
    AdapterNotFound: no system describes models of this name.
  """
  for system in SYSTEMS:
    _import_system(system)
  backbone, plus, head = name.partition('+')
  for (_, pattern), describe in _models.items():
    if fnmatch.fnmatch(plus + head or backbone, pattern):
      return describe(module)
  patterns = ', '.join(pattern for _, pattern in _models) or 'none'
  raise AdapterNotFound(
    f'model {name!r} has no PyTorch correspondence; those that have one are named like: {patterns}'
  )


def input_structs(manifest: AnyMapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of a case's inputs (generated ones are float32)."""
  return {
    name: jax.ShapeDtypeStruct(tuple(entry['shape']), jnp.dtype(entry.get('dtype', 'float32')))
    for name, entry in manifest['inputs'].items()
  }


def model_template(
  module: nn.Module,
  call: Callable[[nn.Module, Arrays], Any],
  inputs: AnyMapping[str, jax.ShapeDtypeStruct],
) -> dict[str, Any]:
  """The shapes of a module's variables, nothing computed; 'intermediates' left out."""
  variables = jax.eval_shape(
    lambda inputs: module.init(jax.random.key(0), inputs, method=call), dict(inputs)
  )
  return {name: tree for name, tree in variables.items() if name != 'intermediates'}


def run_with_taps(
  module: nn.Module,
  variables: Any,
  inputs: Arrays,
  *,
  call: Callable[[nn.Module, Arrays], Any],
  taps: AnyMapping[str, TapLike],
  mutable: Iterable[str] = (),
) -> tuple[Any, Arrays]:
  """Runs `call(bound module, inputs)` and picks what submodules returned on the way.

  Args:
    module: unbound.
    variables: of the module.
    inputs: by the original's names.
    call: see `ModelParity.call`.
    taps: by the original's names.
    mutable: further collections that the run may write, such as 'batch_stats'.

  Returns:
    What `call` returned, and the taps in the original's layout.

  Raises:
    KeyError: the module ran no submodule at a tap's path; the message lists the paths that ran.
  """
  taps = {name: as_tap(tap) for name, tap in taps.items()}
  wanted = {(tap.path, tap.method) for tap in taps.values()}
  result, state = module.apply(
    variables,
    inputs,
    method=call,
    # Without taps nothing is captured, and equal blocks may run as a loop.
    mutable=[*(['intermediates'] if taps else []), *mutable],
    capture_intermediates=bool(taps)
    and (lambda submodule, method: ('/'.join(submodule.path), method) in wanted),
  )
  intermediates = state.get('intermediates', {})
  found = {}
  for name, tap in taps.items():
    node = intermediates
    for part in (*filter(None, tap.path.split('/')), tap.method):
      node = node.get(part) if isinstance(node, AnyMapping) else None
    if node is None:
      ran = _submodules(module, variables, inputs, call, mutable)
      raise KeyError(
        f'tap {name!r}: no submodule {tap.path!r} ran {tap.method}; these ran: {", ".join(ran)}'
      )
    found[name] = tap.to_original(node[tap.call])
  return result, found


def _submodules(module, variables, inputs, call, mutable) -> list[str]:
  ran: dict[str, None] = {}

  def note(submodule, method):
    del method
    ran['/'.join(submodule.path)] = None
    return False

  jax.eval_shape(
    lambda variables, inputs: module.apply(
      variables,
      inputs,
      method=call,
      mutable=['intermediates', *mutable],
      capture_intermediates=note,
    )[0],
    variables,
    inputs,
  )
  return list(ran)


def module_adapter(
  manifest: AnyMapping[str, Any],
  module: nn.Module,
  *,
  rules: Sequence[mapping_lib.Rule],
  call: Callable[[nn.Module, Arrays], Arrays],
  parameters_of: nn.Module | None = None,
  taps: AnyMapping[str, TapLike | None] | None = None,
  statistic: Callable[[str], str] = 'after/{}'.format,
  without_gradient: Iterable[str] = (),
  tolerances: AnyMapping[str, float] | None = None,
  jit: bool = True,
) -> Adapter:
  """The adapter of a case whose module is one Flax module.

  In training mode the running statistics after the call are outputs too, without gradient.

  Example:
    @adapters.register_adapter('crossvit', 'cross_attention')
    def cross_attention_adapter(manifest):
      c = manifest['constructor']
      return adapters.module_adapter(
        manifest,
        CrossAttention(num_heads=c['num_heads'], qkv_bias=c['qkv_bias']),
        rules=CROSS_ATTENTION_RULES,
        call=lambda module, inputs: {'y': module(inputs['x'])},
        taps={'wq': ('query', merge_heads), 'wk': ('key', merge_heads)},
      )

  Args:
    manifest: of the case.
    module: built with `dtype=None`.
    rules: between its parameters and the original's; keys that the manifest calls 'buffer' are
      left out.
    call: (bound module, inputs by name) -> outputs by name, both in the original's layout: all that
      there are, of which a case recorded some.
    parameters_of: the module whose variables the case has, where `module` does not use all of them.
    taps: by the original's names; outputs may be taps. Those that this case did not record are
      skipped.
    statistic: the original's key of a running statistic -> the output's name.
    without_gradient: see `Adapter`.
    tolerances: see `Adapter`.
    jit: see `Adapter`.

  Raises:
    mapping.MappingError: the module's parameters are not the manifest's.
  """
  recorded = {name.split('/', 1)[1] for name in manifest['shapes']}
  taps = {name: tap for name, tap in (taps or {}).items() if name in recorded and tap is not None}
  template = model_template(parameters_of or module, call, input_structs(manifest))
  shapes = {
    entry['key']: tuple(entry['shape']) for entry in manifest['state'] if entry['kind'] != 'buffer'
  }

  mapping = mapping_lib.build_mapping(rules, template, shapes)
  train = manifest['mode'] == 'train' and 'batch_stats' in template
  statistics = {
    statistic(entry['key']) for entry in manifest['state'] if train and entry['kind'] == 'stat'
  }

  def call_and_statistics(module: nn.Module, inputs: Arrays) -> Arrays:
    outputs = call(module, inputs)
    if not train:
      return outputs
    after = mapping.only('batch_stats').to_torch({'batch_stats': module.variables['batch_stats']})
    return outputs | {statistic(key): value for key, value in after.items()}

  def run(variables, inputs):
    outputs, found = run_with_taps(
      module,
      variables,
      inputs,
      call=call_and_statistics,
      taps=taps,
      mutable=('batch_stats',) if train else (),
    )
    return found | outputs, found

  return Adapter(
    run=run,
    template=template,
    mapping=mapping,
    without_gradient=frozenset(without_gradient) | statistics,
    tolerances=dict(tolerances or {}),
    jit=jit,
  )


def function_adapter(
  function: Callable[..., Arrays],
  *,
  without_gradient: Iterable[str] = (),
  tolerances: AnyMapping[str, float] | None = None,
  jit: bool = False,
) -> Adapter:
  """The adapter of a pure function `f(**inputs) -> outputs by name`, without weights or taps.

  Args:
    function: on arrays in the original's layout; it may leave jax.numpy where nothing was
      differentiated and `jit` is off.
    without_gradient: see `Adapter`.
    tolerances: see `Adapter`.
    jit: see `Adapter`.
  """
  return Adapter(
    run=lambda variables, inputs: (function(**inputs), {}),
    without_gradient=frozenset(without_gradient),
    tolerances=dict(tolerances or {}),
    jit=jit,
  )


def parameter_count(adapter: Adapter, manifest: AnyMapping[str, Any]) -> int:
  """The number of parameters, those that the original froze and Flax has elsewhere included."""
  count = sum(leaf.size for leaf in jax.tree.leaves(adapter.template.get('params', {})))
  parameters = {entry['key'] for entry in manifest['state'] if entry['kind'] == 'param'}
  for entry in adapter.mapping.entries if adapter.mapping else ():
    if entry.collection != 'params' and entry.torch_key in parameters:
      count += math.prod(entry.flax_shape)
  return count
