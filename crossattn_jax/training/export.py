"""A trained or converted model as programs that run without this library."""

from collections.abc import Mapping, Sequence
import contextlib
import functools
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
from crossattn_jax.tasks import loading
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import experiment as experiment_lib
from crossattn_jax.training import loop, messages, onnx_program
from crossattn_jax.training import weights as weights_lib

PLATFORMS = ('cpu', 'tpu', 'cuda')
FORMATS = ('stablehlo', 'onnx')

_DESCRIPTION = 'preprocessing.json'
_SCRIPT = 'load_and_run.py'
_WEIGHTS = 'weights.safetensors'
_PROGRAM = 'model.{}.jax_export'
_ONNX = 'model.onnx'

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
  formats: Sequence[str] = FORMATS[:1],
) -> list[epath.Path]:
  """Writes a model as a folder that jax or onnxruntime alone can run; see docs/export.md.

  The folder holds a serialised `jax.export` program (StableHLO) per platform, the weights that all
  of them take, a description of inputs and outputs, and a script that uses them. There is a
  program per platform because kernels for one have no lowering for another; weights are beside
  the programs so that these stay small and compile fast. An ONNX program, in float32, has its
  weights inside.

  Args:
    config: of the experiment. The weights are those of `config.weights`, or else of the checkpoint
      that `config.checkpoint.use` names.
    workdir: of the run; None with `config.weights`.
    output: the folder; made if it does not exist.
    platforms: of the programs: any of `PLATFORMS`, whatever this machine has.
    batch_size: fixes the number of examples per call, so that Pallas kernels can be used; None
      leaves it open.
    formats: of the programs: any of `FORMATS`.

  Returns:
    The files.

  Raises:
    ExportError: a platform or a format is unknown, the model cannot be lowered with an open batch
      size, or it cannot be written as ONNX.
    ConfigError: the config cannot be run, or neither weights nor workdir are given.
    FileNotFoundError: there is no such checkpoint.
  """
  _check(platforms, batch_size, formats)
  messages.say(*weights_lib.complete_config(config, workdir, classes=True, with_data=False))
  # One device holds the model, whatever mesh trained it; no data set is needed to count steps.
  mesh = parallel.create_mesh(devices=jax.local_devices()[:1])
  experiment = experiment_lib.setup(
    config, mesh, steps_per_epoch=experiment_lib.any_steps_per_epoch(config)
  )
  serving = experiment.task.Serving(experiment.task)
  if 'onnx' in formats and not serving.onnx:
    raise ExportError(
      f'{config.model.name} cannot be exported as ONNX: that is for classifiers and segmentation, '
      f'not for task {config.task.name!r}; leave onnx out of --format'
    )
  with jax.set_mesh(mesh):
    variables = jax.device_get(loop.load_variables(experiment, workdir))
  name, overrides = config_lib.model_fields(config)
  inputs = _inputs(serving, batch_size)
  with tempfile.TemporaryDirectory() as folder:
    local = pathlib.Path(folder)
    programs, files = {}, []
    if 'stablehlo' in formats:
      for platform in platforms:
        program = _lower(serving, variables, platform, inputs, config.model.name)
        programs[platform] = _PROGRAM.format(platform)
        (local / programs[platform]).write_bytes(program.serialize())
      variables_io.save_variables(
        local / _WEIGHTS, variables, name, overrides, experiment.task.class_names
      )
      files.append(_WEIGHTS)
    if 'onnx' in formats:
      programs['onnx'] = _ONNX
      (local / _ONNX).write_bytes(_to_onnx(config, variables, inputs))
    shutil.copyfile(serving.script, local / _SCRIPT)
    for file in (pathlib.Path(module.__file__) for module in (loading, *serving.modules)):
      shutil.copyfile(file, local / file.name)
      files.append(file.name)
    outputs = jax.eval_shape(serving.run, variables, inputs)
    description = {
      'model': name,
      'overrides': overrides,
      'jax': jax.__version__,
      'programs': programs,
      **({'weights': _WEIGHTS} if 'stablehlo' in formats else {}),
      'batch_size': batch_size,
      'inputs': _describe(inputs),
      'outputs': _describe(outputs),
      **serving.description,
    }
    (local / _DESCRIPTION).write_text(json.dumps(description, indent=2) + '\n')
    files = [*programs.values(), _SCRIPT, *files, _DESCRIPTION]
    output.mkdir(parents=True, exist_ok=True)
    for file in files:
      epath.Path(local / file).copy(output / file, overwrite=True)
  return [output / file for file in files]


def _check(platforms: Sequence[str], batch_size: int | None, formats: Sequence[str]) -> None:
  for format_ in formats:
    if format_ not in FORMATS:
      hint = config_errors.near_names(format_, FORMATS)
      raise ExportError(f'unknown format {format_!r}; {hint}known formats: {", ".join(FORMATS)}')
  if not formats:
    raise ExportError(f'no format to export to; there are {", ".join(FORMATS)}')
  if 'onnx' in formats:
    try:
      onnx_program.check_installed()
    except onnx_program.OnnxError as error:
      raise ExportError(str(error)) from error
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


def _inputs(serving: tasks.Serving, batch_size: int | None) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of a call's inputs; open batch sizes are called as the task says."""
  batches = {name: serving.batches.get(name, 'batch') for name in serving.inputs}
  names = list(dict.fromkeys(batches.values()))
  sizes = [batch_size] * len(names)
  if batch_size is None:
    sizes = jax_export.symbolic_shape(', '.join(names))
  size_of = dict(zip(names, sizes, strict=True))
  return {
    name: jax.ShapeDtypeStruct((size_of[batches[name]], *spec.shape), spec.dtype)
    for name, spec in serving.inputs.items()
  }


def _to_onnx(
  config: ml_collections.ConfigDict, variables: Any, inputs: dict[str, jax.ShapeDtypeStruct]
) -> bytes:
  """The forward pass as an ONNX program that computes in float32."""
  config = config.copy_and_resolve_references()
  config.model.dtype = 'float32'
  if 'implementation' in config.model:  # Of a kernel: its definition has no loops.
    config.model.implementation = 'reference'
  task = tasks.create_task(config)
  run = functools.partial(task.Serving(task).run, variables)
  try:
    return onnx_program.convert(run, inputs)
  except onnx_program.OnnxError as error:
    is_open = _is_open(inputs)
    hint = 'Fix the batch size with --fixed_batch_size=N, or leave' if is_open else 'Leave'
    raise ExportError(
      f'{config.model.name} cannot be exported as ONNX: {error}. {hint} onnx out of --format'
    ) from error


def _lower(
  serving: tasks.Serving,
  variables: Any,
  platform: str,
  inputs: dict[str, jax.ShapeDtypeStruct],
  model_name: str,
) -> jax_export.Exported:
  """Lowers `(weights by path, inputs by name) -> outputs by name` for one platform."""

  def run(weights, inputs):
    return serving.run(traverse_util.unflatten_dict(weights, sep='/'), inputs)

  weights = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype),
    traverse_util.flatten_dict(dict(variables), sep='/'),
  )
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
    if not _is_open(inputs):
      raise
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise ExportError(
      f'{model_name} cannot be exported for {platform} with an open batch size: {reason}. Fix it '
      f'with --fixed_batch_size=N, or leave {platform} out of --platforms'
    ) from error


def _is_open(inputs: dict[str, jax.ShapeDtypeStruct]) -> bool:
  return any(jax_export.is_symbolic_dim(spec.shape[0]) for spec in inputs.values())


def _describe(specs: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
  """Shapes and dtypes by name; an open batch size is called as the task says, mostly 'batch'."""
  return {
    name: {
      'shape': [side if isinstance(side, int) else str(side) for side in spec.shape],
      'dtype': spec.dtype.name,
    }
    for name, spec in specs.items()
  }
