"""What `parity/systems/<system>/` tells the parity tools about a system.

`@register_adapter(system, module)` on `make_adapter(manifest) -> Adapter`, one per module kind of
the recorded cases: how to build the Flax module from the original's constructor arguments and how
to run it on the original's inputs, in the original's layouts. An adapter of whole-model cases is
usually built from what `conversion/systems/<system>.py` says of the registered models.

Modules are built with `dtype=None`: they then compute in the dtype of the weights they are handed,
float64 when exactness is proven.
"""

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as AnyMapping
import dataclasses
import importlib
import math
import pkgutil
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.conversion import correspondence
from crossattn_jax.conversion import mapping as mapping_lib
from crossattn_jax.parity import arguments, systems

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
    static: inputs that decide shapes inside: `run` gets them as NumPy arrays, compiled or not.
  """

  run: Callable[[Any, Arrays], tuple[Arrays, Arrays]]
  template: AnyMapping[str, Any] = dataclasses.field(default_factory=dict)
  mapping: mapping_lib.Mapping | None = None
  without_gradient: frozenset[str] = frozenset()
  tolerances: AnyMapping[str, float] = dataclasses.field(default_factory=dict)
  jit: bool = True
  static: frozenset[str] = frozenset()


_adapters: dict[tuple[str, str], Callable[[AnyMapping[str, Any]], Adapter]] = {}


def register_adapter(system: str, module: str):
  """Decorates `make_adapter(manifest) -> Adapter` for the cases of one module kind."""

  def decorate(make_adapter):
    if (system, module) in _adapters:
      raise ValueError(f'two adapters for module {module!r} of system {system!r}')
    _adapters[system, module] = make_adapter
    return make_adapter

  return decorate


# They register adapters of several systems.
_SHARED = {'mmdetection', 'mmsegmentation'}
_SYSTEMS = {module.name for module in pkgutil.iter_modules(systems.__path__)}


def _import_system(system: str) -> None:
  for name in sorted({system, *_SHARED} & _SYSTEMS):
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


def input_structs(manifest: AnyMapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of a case's inputs (generated ones are float32)."""
  return {
    name: jax.ShapeDtypeStruct(tuple(entry['shape']), jnp.dtype(entry.get('dtype', 'float32')))
    for name, entry in manifest['inputs'].items()
  }


def run_with_taps(
  module: nn.Module,
  variables: Any,
  inputs: Arrays,
  *,
  call: Callable[[nn.Module, Arrays], Any],
  taps: AnyMapping[str, correspondence.TapLike],
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
  taps = {name: correspondence.as_tap(tap) for name, tap in taps.items()}
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
  unused: str | None = None,
  taps: AnyMapping[str, correspondence.TapLike | None] | None = None,
  statistic: Callable[[str], str] = 'after/{}'.format,
  without_gradient: Iterable[str] = (),
  tolerances: AnyMapping[str, float] | None = None,
  jit: bool = True,
  static: AnyMapping[str, np.ndarray] | None = None,
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
    unused: a regular expression of the keys of parameters that the original has and never uses,
      where `module` has none of them. Their gradient is 0.
    taps: by the original's names; outputs may be taps. Those that this case did not record are
      skipped.
    statistic: the original's key of a running statistic -> the output's name.
    without_gradient: see `Adapter`.
    tolerances: see `Adapter`.
    jit: see `Adapter`.
    static: see `Adapter`; an example of each, whatever its size.

  Raises:
    mapping.MappingError: the module's parameters are not the manifest's.
  """
  recorded = {name.split('/', 1)[1] for name in manifest['shapes']}
  taps = {name: tap for name, tap in (taps or {}).items() if name in recorded and tap is not None}
  static = dict(static or {})
  structs = {name: x for name, x in input_structs(manifest).items() if name not in static}
  template = correspondence.model_template(
    parameters_of or module, lambda module, inputs: call(module, {**static, **inputs}), structs
  )
  shapes = {
    entry['key']: tuple(entry['shape']) for entry in manifest['state'] if entry['kind'] != 'buffer'
  }

  if kept := {key: shape for key, shape in shapes.items() if re.fullmatch(unused or '', key)}:
    arrays = {key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in kept.items()}
    template = {**template, 'unused': arrays}
    rules = [*(mapping_lib.Rule(key, key, collection='unused') for key in kept), *rules]
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
    static=frozenset(static),
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
