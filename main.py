r"""Trains, evaluates and uses the models of crossattn_jax.

  --mode=train    trains the experiment of --config in --workdir, from its last checkpoint if there
                  is one. Any key of the config can be set on the command line:
      python main.py --config=configs/crossvit_digits.py --workdir=/tmp/digits \
        --config.batch_size=256 --config.schedule.learning_rate=2e-3

  --mode=eval     evaluates a workdir's checkpoint and prints the task's metrics as a table and as
                  one line of JSON. Without --config the workdir's own config is used.
      python main.py --mode=eval --workdir=/tmp/digits --use=best
    A converted PyTorch checkpoint (see docs/parity.md) is evaluated with its experiment's config:
      python main.py --mode=eval --config=configs/crossvit_imagenet.py:crossvit_small_240 \
        --config.weights=crossvit_small_240.safetensors

  --mode=predict  writes predictions.json and a picture for an image, or for each one in a folder.
      python main.py --mode=predict --workdir=/tmp/digits --input=photo.png --output=/tmp/pictures

  --mode=export   writes the model of a workdir or of --config.weights as a folder that jax alone
                  loads and runs: programs for cpu, tpu and cuda, weights, a description of the
                  preprocessing, a script. See docs/export.md.
      python main.py --mode=export --workdir=/tmp/digits --output=/tmp/exported

  --mode=compile  compiles the training step of --config for a TPU slice that is not here (needs
                  libtpu, extra `tpu`) and prints memory, FLOPs, collectives and estimated speed as
                  a table and as one line of JSON. See docs/scaling.md.
      python main.py --mode=compile --topology=v5e:16x16 \
        --config=configs/crossvit_imagenet.py:crossvit_small_240 --config.mesh.fsdp=16

Several processes (TPU pods, GPU nodes): give each --multihost, and where jax does not detect the
cluster also --coordinator_address, --num_processes and --process_id.
"""

from collections.abc import Sequence
import json
import sys

from absl import app, flags, logging
from etils import epath
import jax
import ml_collections
from ml_collections import config_flags
import rich

from crossattn_jax import parallel
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import errors, export, host_memory, loop, metric_writers
from crossattn_jax.training.compile import aot

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Experiment: FILE.py or FILE.py:ARGUMENT. Set its keys by --config.KEY=VALUE.'
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_MODE = flags.DEFINE_enum(
  'mode', 'train', ['train', 'eval', 'predict', 'export', 'compile'], 'What to do; see above.'
)
_INPUT = flags.DEFINE_string('input', None, 'predict: an image or a folder of images.')
_OUTPUT = flags.DEFINE_string(
  'output', None, 'predict: folder for results and pictures. export: WORKDIR/export by default.'
)
_USE = flags.DEFINE_string(
  'use', None, "eval, predict, export: which checkpoint: 'latest', 'best' or a step."
)
_PLATFORMS = flags.DEFINE_list('platforms', list(export.PLATFORMS), 'export: for which to lower.')
_FIXED_BATCH_SIZE = flags.DEFINE_integer(
  'fixed_batch_size', None, 'export: examples per call. Any number of them by default.'
)
_TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'compile: kind of chip and shape of the slice, such as v5e:16x16.'
)
_COMPILE_EFFORT = flags.DEFINE_float(
  'compile_effort',
  0.0,
  'compile: effort for a fast program, as XLA counts it. -1 compiles in half the time; memory is '
  'nearly that of a run, the estimated step takes longer.',
  lower_bound=-1.0,
  upper_bound=1.0,
)
_MULTIHOST = flags.DEFINE_bool('multihost', False, 'Whether this is one process of several.')
_COORDINATOR = flags.DEFINE_string('coordinator_address', None, 'host:port of process 0.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Processes in all.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Of this process, from 0.')


def _read_config(workdir: epath.Path | None) -> ml_collections.ConfigDict:
  if _CONFIG.value is not None:
    config = _CONFIG.value
  elif workdir is not None and _MODE.value != 'train':
    config = config_lib.load(workdir / 'config.json')
  else:
    raise config_lib.ConfigError('give --config=FILE.py, such as configs/crossvit_digits.py')
  if _USE.value is not None:
    config.checkpoint.use = _USE.value
  return config


def _require(flag: flags.FlagHolder) -> str:
  if flag.value is None:
    raise config_lib.ConfigError(f'--mode={_MODE.value} needs --{flag.name}')
  return flag.value


def main(argv: Sequence[str]) -> None:
  """Runs one mode."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected argument {argv[1]!r}; see --help')
  try:
    run()
  except errors.USER_ERRORS as error:
    # The message says what to do; a traceback would bury it.
    logging.debug('the error in full', exc_info=True)
    sys.exit(f'error: {error}')


def run() -> None:
  """Runs one mode; errors are raised."""
  host_memory.keep_freed_memory()
  if _MULTIHOST.value or _COORDINATOR.value:
    parallel.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  workdir = None if _WORKDIR.value is None else epath.Path(_WORKDIR.value)
  config = _read_config(workdir)
  if _MODE.value == 'train':
    loop.train(config, epath.Path(_require(_WORKDIR)))
  elif _MODE.value == 'eval':
    metrics = loop.evaluate(config, workdir)
    if jax.process_index() == 0:
      rich.print(metric_writers.summary_table(metrics))
      print(json.dumps(metrics))
  elif _MODE.value == 'export':
    in_workdir = _OUTPUT.value is None and workdir is not None
    files = export.export_model(
      config,
      workdir,
      workdir / 'export' if in_workdir else epath.Path(_require(_OUTPUT)),
      platforms=_PLATFORMS.value,
      batch_size=_FIXED_BATCH_SIZE.value,
    )
    for file in files:
      print(file)
  elif _MODE.value == 'compile':
    report = aot.compile_report(config, _require(_TOPOLOGY), _COMPILE_EFFORT.value)
    rich.print(report.table())
    print(json.dumps(report.to_dict()))
  else:
    paths = epath.Path(_require(_INPUT)), epath.Path(_require(_OUTPUT))
    for record in loop.predict(config, workdir, *paths):
      print(json.dumps(record))


def _parse_flags(args: Sequence[str]) -> list[str]:
  try:
    remaining = app.parse_flags_with_usage(args)
  except (AttributeError, KeyError):
    # The file alone says which keys there are; config_flags takes overrides from sys.argv.
    sys.argv = [args[0], *(arg for arg in args if arg.lstrip('-').startswith('config='))]
    flags.FLAGS(sys.argv)
    known = config_lib.flat_keys(_CONFIG.value)
    for argument in args:
      key, _, _ = argument.lstrip('-').partition('=')
      if key.startswith('config.') and key.removeprefix('config.') not in known:
        message = config_lib.unknown_key_message(key.removeprefix('config.'), known)
        sys.exit(f'error: {message}')
    raise
  if flags.FLAGS['verbosity'].using_default_value:
    # Orbax and TFDS tell every detail at level 'info', which absl would choose.
    flags.FLAGS.verbosity = logging.WARNING
  return remaining


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
