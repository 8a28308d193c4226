"""A trained or converted model as programs that run without this library."""

from collections.abc import Sequence
import contextlib
import json
import pathlib
import shutil
import tempfile
from typing import Any

from etils import epath
from flax import traverse_util
import jax
from jax import export as jax_export
import ml_collections
import numpy as np

from crossattn_jax import config_errors, parallel, tasks
from crossattn_jax.models import variables_io
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import experiment as experiment_lib
from crossattn_jax.training import loop, messages
from crossattn_jax.training import weights as weights_lib

PLATFORMS = ('cpu', 'tpu', 'cuda')

_DESCRIPTION = 'preprocessing.json'
_SCRIPT = 'load_and_run.py'
_WEIGHTS = 'weights.safetensors'
_PROGRAM = 'model.{}.jax_export'

# Where jax does not promise that a later version still knows the call: Pallas kernels on GPUs.
_TRITON = jax_export.DisabledSafetyCheck.custom_call('__gpu$xla.gpu.triton')

# What kernels are lowered for where no GPU is; they are compiled where they run.
_GPU = jax.sharding.AbstractDevice('NVIDIA A100-SXM4-80GB', None, 'gpu')


class ExportError(ValueError):
  """A model that cannot be exported as asked; the message says what can be."""


def export_model(
  config: ml_collections.ConfigDict,
  workdir: epath.Path | None,
  output: epath.Path,
  *,
  platforms: Sequence[str] = PLATFORMS,
  batch_size: int | None = None,
) -> list[epath.Path]:
  """Writes a model as a folder that jax alone can load and run; see docs/export.md.

  The folder holds a serialised `jax.export` program (StableHLO) per platform, the weights that all
  of them take, a description of inputs and outputs, and a script that uses them. There is a
  program per platform because kernels for one have no lowering for another; weights are beside
  the programs so that these stay small and compile fast.

  Args:
    config: of the experiment. The weights are those of `config.weights`, or else of the checkpoint
      that `config.checkpoint.use` names.
    workdir: of the run; None with `config.weights`.
    output: the folder; made if it does not exist.
    platforms: of the programs: any of `PLATFORMS`, whatever this machine has.
    batch_size: fixes the number of examples per call, so that Pallas kernels can be used; None
      leaves it open.

  Returns:
    The files.

  Raises:
    ExportError: a platform is unknown, or the model cannot be lowered with an open batch size.
    ConfigError: the config cannot be run, or neither weights nor workdir are given.
    FileNotFoundError: there is no such checkpoint.
  """
  _check(platforms, batch_size)
  messages.say(*weights_lib.complete_config(config, workdir, classes=True, with_data=False))
  # One device holds the model, whatever mesh trained it; no data set is needed to count steps.
  mesh = parallel.create_mesh(devices=jax.local_devices()[:1])
  experiment = experiment_lib.setup(
    config, mesh, steps_per_epoch=experiment_lib.any_steps_per_epoch(config)
  )
  with jax.set_mesh(mesh):
    variables = jax.device_get(loop.load_variables(experiment, workdir))
  serving = experiment.task.Serving(experiment.task)
  with tempfile.TemporaryDirectory() as folder:
    local = pathlib.Path(folder)
    programs = {}
    for platform in platforms:
      program = _lower(serving, variables, platform, batch_size, config.model.name)
      programs[platform] = _PROGRAM.format(platform)
      (local / programs[platform]).write_bytes(program.serialize())
    name, overrides = config_lib.model_fields(config)
    variables_io.save_variables(
      local / _WEIGHTS, variables, name, overrides, experiment.task.class_names
    )
    shutil.copyfile(serving.script, local / _SCRIPT)
    modules = [pathlib.Path(module.__file__) for module in serving.modules]
    for module in modules:
      shutil.copyfile(module, local / module.name)
    description = {
      'model': name,
      'overrides': overrides,
      'jax': jax.__version__,
      'programs': programs,
      'weights': _WEIGHTS,
      'batch_size': batch_size,
      'inputs': _describe(program.in_tree, program.in_avals, 1),
      'outputs': _describe(program.out_tree, program.out_avals),
      **serving.description,
    }
    (local / _DESCRIPTION).write_text(json.dumps(description, indent=2) + '\n')
    output.mkdir(parents=True, exist_ok=True)
    files = [*programs.values(), _WEIGHTS, _SCRIPT, *(m.name for m in modules), _DESCRIPTION]
    for file in files:
      epath.Path(local / file).copy(output / file, overwrite=True)
  return [output / file for file in files]


def _check(platforms: Sequence[str], batch_size: int | None) -> None:
  for platform in platforms:
    if platform not in PLATFORMS:
      hint = config_errors.near_names({'gpu': 'cuda'}.get(platform, platform), PLATFORMS)
      raise ExportError(
        f'unknown platform {platform!r}; {hint}known platforms: {", ".join(PLATFORMS)}'
      )
  if not platforms:
    raise ExportError(f'no platform to export for; there are {", ".join(PLATFORMS)}')
  if jax.process_count() > 1:
    raise ExportError('export runs in one process: leave out --multihost and its like')
  if batch_size is not None and batch_size < 1:
    raise ExportError(f'a fixed batch size must be positive, not {batch_size}')


def lowering_for(platform: str) -> contextlib.AbstractContextManager:
  """Lets Pallas kernels be lowered for a platform that is not here."""
  if platform != 'cuda' or jax.default_backend() == 'gpu':
    return contextlib.nullcontext()
  return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=_GPU))


def _lower(
  serving: tasks.Serving, variables: Any, platform: str, batch_size: int | None, model_name: str
) -> jax_export.Exported:
  """Lowers `(weights by path, inputs by name) -> outputs by name` for one platform."""

  def run(weights, inputs):
    return serving.run(traverse_util.unflatten_dict(weights, sep='/'), inputs)

  weights = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype),
    traverse_util.flatten_dict(dict(variables), sep='/'),
  )
  batches = {name: serving.batches.get(name, 'batch') for name in serving.inputs}
  names = list(dict.fromkeys(batches.values()))
  sizes = [batch_size] * len(names)
  if batch_size is None:
    sizes = jax_export.symbolic_shape(', '.join(names))
  size_of = dict(zip(names, sizes, strict=True))
  inputs = {
    name: jax.ShapeDtypeStruct((size_of[batches[name]], *spec.shape), spec.dtype)
    for name, spec in serving.inputs.items()
  }
  # Unused weights are kept, so that the arguments of the StableHLO program are those of the call.
  lower = jax_export.export(
    jax.jit(run, keep_unused=True), platforms=[platform], disabled_checks=[_TRITON]
  )
  try:
    with lowering_for(platform):
      return lower(weights, inputs)
  except (
    jax.errors.InconclusiveDimensionOperation,
    NotImplementedError,
    TypeError,
    ValueError,
  ) as error:
    if batch_size is not None:
      raise
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise ExportError(
      f'{model_name} cannot be exported for {platform} with an open batch size: {reason}. Fix it '
      f'with --fixed_batch_size=N, or leave {platform} out of --platforms'
    ) from error


def _describe(tree: Any, avals: Sequence[Any], argument: int | None = None) -> dict[str, Any]:
  """Shapes and dtypes by name; an open batch size is called as the task says, mostly 'batch'."""
  described = jax.tree.unflatten(
    tree,
    [
      {
        'shape': [side if isinstance(side, int) else str(side) for side in aval.shape],
        'dtype': aval.dtype.name,
      }
      for aval in avals
    ],
  )
  if argument is None:
    return described
  positional, _ = described
  return positional[argument]
