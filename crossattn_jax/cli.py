r"""Trains, evaluates and uses the models of crossattn_jax.

  --mode=train    trains an experiment, or continues it from the last checkpoint in its workdir.
      python main.py --config=configs/crossvit_digits.py --workdir=/tmp/digits
    Any key of the config can be set: --config.batch_size=256 --config.schedule.learning_rate=2e-3.

  --mode=eval     prints the metrics of a run, or of converted weights, as a table and as JSON, and
                  draws what is taken for what and the worst errors into WORKDIR/evaluation.
      python main.py --mode=eval --workdir=/tmp/digits --use=best
      python main.py --mode=eval --config=configs/crossvit_imagenet.py:crossvit_small_240 \
        --config.weights=crossvit_small_240.safetensors

  --mode=predict  says what a file shows, or each one in a folder and below: a line of JSON each,
                  and in --output predictions.json and pictures. See docs/predicting.md.
      python main.py --mode=predict --workdir=/tmp/digits --input=crossattn_jax/samples/digits

  --mode=label    writes labels of training examples from which another model learns: where things
                  are in scenes of which no more was known than what they hold (docs/mit.md).
      python main.py --mode=label --workdir=/tmp/rooms --use=best --output=/tmp/labels

  --mode=demo     shows a page in the browser: drop an image, and see what predict says of it.
      python main.py --mode=demo --workdir=/tmp/digits

  --mode=export   writes a model as a folder that jax alone loads and runs, or with --format=onnx
                  onnxruntime alone (docs/export.md).
      python main.py --mode=export --workdir=/tmp/digits --output=/tmp/exported

  --mode=compile  compiles the training step for a TPU slice that is not here (docs/scaling.md).
      python main.py --mode=compile --topology=v5e:16x16 \
        --config=configs/crossvit_imagenet.py:crossvit_small_240 --config.mesh.fsdp=16

Without --config, a workdir's own config is used. docs/training.md says more.

Installed, `crossattn` does the same from any folder: `crossattn MODE` is `python main.py
--mode=MODE`, and --config=crossvit_digits one of the experiments that come with it. Further:

  crossattn models [PATTERN]         lists the models; PATTERN such as 'crossvit_*' or '*+upernet'
  crossattn examples KIND FOLDER     writes a small data set as your own might be, to begin with
  crossattn convert|compare|replay   as `python -m crossattn_jax.parity`; --help says how
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import difflib
import json
import multiprocessing
import os
import re
import shlex
import signal
import socket
import sys
import traceback
from typing import Any

from absl import app, flags, logging
from etils import epath
import jax
import ml_collections
import rich

import crossattn_jax
from crossattn_jax import parallel, tasks
from crossattn_jax.data import examples, sources
from crossattn_jax.training import (
  command_line,
  demo,
  errors,
  export,
  host_memory,
  labels,
  loop,
  messages,
  metric_writers,
  program_cache,
  stopping,
)
from crossattn_jax.training import config as config_lib
from crossattn_jax.training.compile import aot

_MODES = ('train', 'eval', 'predict', 'label', 'demo', 'export', 'compile')
_CONVERSION = ('convert', 'compare', 'replay')

_CONFIG = flags.DEFINE_string(
  'config', None, 'Experiment: FILE.py or FILE.py:ARGUMENT. Set its keys by --config.KEY=VALUE.'
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_MODE = flags.DEFINE_enum('mode', 'train', _MODES, 'What to do; see above.')
_INPUT = flags.DEFINE_string(
  'input', None, 'predict: a file, or a folder that is searched. demo: the examples on the page.'
)
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'eval: folder for pictures, WORKDIR/evaluation by default. '
  'predict: folder for results and pictures, WORKDIR/predictions by default, or ./predictions. '
  'label: WORKDIR/labels by default, or ./labels. '
  'demo: WORKDIR/demo by default, or ./demo. export: WORKDIR/export by default.',
)
_PICTURES = flags.DEFINE_enum(
  'pictures',
  None,
  tasks.PICTURES,
  "predict: a picture of 'each' input, a 'sheet' of some, or 'none'. By default each of up to 32.",
)
_USE = flags.DEFINE_string(
  'use', None, "eval, predict, label, demo, export: which checkpoint: 'latest', 'best' or a step."
)
_HOST = flags.DEFINE_string(
  'host', '127.0.0.1', 'demo: the address to listen at. 0.0.0.0 lets other machines see the page.'
)
_PORT = flags.DEFINE_integer('port', None, 'demo: by default the first free one from 7860 on.')
_PLATFORMS = flags.DEFINE_list('platforms', list(export.PLATFORMS), 'export: for which to lower.')
_FIXED_BATCH_SIZE = flags.DEFINE_integer(
  'fixed_batch_size', None, 'export: examples per call. Any number of them by default.'
)
_FORMAT = flags.DEFINE_list(
  'format',
  list(export.FORMATS[:1]),
  'export: of the programs, some of stablehlo (for jax) and onnx (for onnxruntime and others).',
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
_TOP = flags.DEFINE_integer(
  'top', 0, 'compile: how many of the costliest operations of the step to list.', lower_bound=0
)
_MULTIHOST = flags.DEFINE_bool('multihost', False, 'Whether this is one process of several.')
_COORDINATOR = flags.DEFINE_string('coordinator_address', None, 'host:port of process 0.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Processes in all.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Of this process, from 0.')

_STOPPED_STATUS = flags.DEFINE_integer(
  'stopped_status',
  0,
  'train: exit status of a run that a signal stopped, with its state saved. Schedulers that start '
  'again only what failed need another one than 0, such as 75.',
  lower_bound=0,
  upper_bound=125,
)

_START = """give --config=FILE.py, or --workdir=FOLDER of a run. A first one, of two minutes:
  {} --config=configs/crossvit_digits.py --workdir=/tmp/digits
--help shows what else there is"""

# Exit status after Ctrl-C, as shells count.
_STOPPED = 128 + signal.SIGINT

# The modes of the flags that are not for all.
_MODES_OF = {
  'input': ('predict', 'demo'),
  'output': ('eval', 'predict', 'label', 'demo', 'export'),
  'pictures': ('predict',),
  'host': ('demo',),
  'port': ('demo',),
  'use': ('eval', 'predict', 'label', 'demo', 'export'),
  'stopped_status': ('train',),
  'platforms': ('export',),
  'fixed_batch_size': ('export',),
  'format': ('export',),
  'topology': ('compile',),
  'compile_effort': ('compile',),
  'top': ('compile',),
}


def _read_config(arguments: Sequence[str]) -> ml_collections.ConfigDict:
  """Reads the config of --config or of the workdir, with the overrides among the arguments."""
  if _CONFIG.value is not None:
    config = command_line.read_file(_CONFIG.value)
  elif _WORKDIR.value is not None:
    config = config_lib.load(_path(_WORKDIR.value) / 'config.json')
  else:
    raise config_lib.ConfigError(_START.format(shlex.join(messages.program('train'))))
  if _MODE.value == 'eval':
    # There it is clear which split is meant.
    arguments = [re.sub(r'^(--?config\.dataset)\.split\b', r'\1.eval_split', x) for x in arguments]
  command_line.override(config, arguments)
  config_lib.expand_user(config)
  if _USE.value is not None:
    config.checkpoint.use = _USE.value
  return config


def _check_mode() -> None:
  for name, modes in _MODES_OF.items():
    if flags.FLAGS[name].present and _MODE.value not in modes:
      raise config_lib.ConfigError(
        f'--{name} is for --mode={" or ".join(modes)}, not for --mode={_MODE.value}'
      )


def _required(flag: flags.FlagHolder) -> str:
  if flag.value is None:
    raise config_lib.ConfigError(f'--mode={_MODE.value} needs --{flag.name}')
  return flag.value


def _path(text: str) -> epath.Path:
  return epath.Path(text).expanduser()


def _input() -> epath.Path:
  """What --input names, and says where samples of the library are."""
  if '://' in _INPUT.value:
    return epath.Path(_INPUT.value)
  path = epath.Path(sources.located(_INPUT.value))
  if path != _path(_INPUT.value):
    print(f'input: {path}', file=sys.stderr)
  return path


def main(argv: Sequence[str] | None = None) -> None:
  """Runs what a command line says, that of this process by default; ends it after an error.

  Args:
    argv: the program's name; a command or a mode, or nothing; flags.
  """
  argv = list(sys.argv if argv is None else argv)
  word = argv[1] if len(argv) > 1 and not argv[1].startswith('-') else ''
  if word in _CONVERSION:
    # It may import everything, so it is loaded only when asked for.
    from crossattn_jax.parity import __main__ as parity

    with _while_somebody_reads():
      sys.exit(parity.main(argv[1:], 'crossattn'))
  if word == 'models':
    with _while_somebody_reads():
      sys.exit(_show_models(argv[2:]))
  if word == 'examples':
    sys.exit(_write_examples(argv[2:]))
  if word in _MODES:
    argv[1] = f'--mode={word}'
  elif word:
    commands = (*_MODES, 'models', 'examples', *_CONVERSION)
    near = difflib.get_close_matches(word, commands, n=1)
    hint = f'did you mean {near[0]!r}?' if near else f'there are {", ".join(commands)}'
    sys.exit(f'error: unknown command {word!r}; {hint}')
  # Ctrl-C ends the program at once where nothing else takes the signal. As an exception it might
  # come out of a compilation, after which the process crashes.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  app.run(_run_mode, argv, flags_parser=_parse_flags)


@contextlib.contextmanager
def _while_somebody_reads() -> Iterator[None]:
  """Ends without a word once a pipe is closed, as by `head`, which has enough."""
  try:
    try:
      yield
    finally:
      sys.stdout.flush()
  except BrokenPipeError:
    _flush_nothing()
    sys.exit()


def _flush_nothing() -> None:
  """Leaves nothing to be flushed at the end into a pipe that nobody reads."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_models(arguments: Sequence[str]) -> int:
  parser = argparse.ArgumentParser('crossattn models', description='Lists the models.')
  parser.add_argument(
    'pattern',
    nargs='?',
    default='*',
    help="such as 'crossvit_*'; with a '+', as in '*+upernet', backbones with heads",
  )
  parser.add_argument(
    '--weights', action='store_true', help='only those whose weights load_pretrained downloads'
  )
  args = parser.parse_args(arguments)
  names = crossattn_jax.list_models(args.pattern, weights=args.weights)
  for name in names:
    print(name)
  if not names:
    print(f'no such model is called {args.pattern!r}; crossattn models lists all', file=sys.stderr)
  return 0 if names else 1


def _write_examples(arguments: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(
    'crossattn examples',
    description='Writes a small data set as your own might be; nothing is downloaded.',
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog='kinds:\n'
    + '\n'.join(f'  {name:<10} {kind.shows}' for name, kind in examples.KINDS.items()),
  )
  parser.add_argument('kind', help='what of; see below')
  parser.add_argument('folder', help='a new one')
  parser.add_argument('--size', type=int, help='how many images, or what is counted')
  parser.add_argument('--seed', type=int, default=0, help='another seed draws others')
  args = parser.parse_args(arguments)
  try:
    folder = examples.write(args.kind, args.folder, args.size, args.seed)
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  kind = examples.KINDS[args.kind]
  flags_ = [flag.format(folder=folder) for flag in kind.training]
  command = [*messages.program('train'), *flags_, f'--workdir={folder}_run']
  print(f'{folder} has {kind.shows}:', *examples.listing(folder), sep='\n  ')
  print('this trains on them:', shlex.join(command), sep='\n  ')
  return 0


def _run_mode(argv: Sequence[str]) -> None:
  try:
    run(argv[1:])
  except stopping.Interrupted:
    sys.exit(_STOPPED_STATUS.value)
  except errors.USER_ERRORS as error:
    # The message says what to do; a traceback would bury it.
    logging.debug('the error in full', exc_info=True)
    message = f'error: {errors.message(error)}'
    if jax.distributed.is_initialized():
      _end(message)
    sys.exit(message)
  except Exception:
    if jax.distributed.is_initialized():
      _end(traceback.format_exc())
    raise


def _end(message: str) -> None:
  """Ends one process of several at once, since an exit would wait for the others."""
  print(message, file=sys.stderr, flush=True)
  sys.stdout.flush()
  for worker in multiprocessing.active_children():
    worker.kill()
  os._exit(1)


def _end_with(other: str) -> None:
  _end(
    f'error: {other}; process {jax.process_index()} on {socket.gethostname()} ends with it. What '
    'was saved is kept: start all processes again, by the same commands, to continue'
  )


def _wait(message: str, final: bool) -> None:
  if final:
    _end(f'error: {message}')
  print(message, file=sys.stderr, flush=True)


def run(overrides: Sequence[str]) -> None:
  """Runs one mode with `--config.KEY=VALUE` arguments; errors are raised."""
  _check_mode()
  host_memory.keep_freed_memory()
  with contextlib.ExitStack() as stack:
    if _MULTIHOST.value or _COORDINATOR.value:
      parallel.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _wait)
      stack.enter_context(parallel.watch(_end_with))
    _run(_read_config(overrides))


def _run(config: ml_collections.ConfigDict) -> None:
  workdir = None if _WORKDIR.value is None else _path(_WORKDIR.value)
  if _MODE.value != 'compile':
    _keep_programs()
  if _MODE.value == 'train':
    loop.train(config, _path(_required(_WORKDIR)))
  elif _MODE.value == 'eval':
    output = None
    if config.logging.pictures and (workdir or _OUTPUT.value):
      output = _results('evaluation', workdir)
    metrics = loop.evaluate(config, workdir, output)
    if jax.process_index() == 0:
      explain = tasks.create_task(config).explain
      rich.print(metric_writers.summary_table(metrics, explain))
      print(f'split {config.dataset.eval_split!r} of {config.dataset.name!r}')
      print(json.dumps(metrics))
  elif _MODE.value == 'label':
    output = _results('labels', workdir)
    results = labels.write_labels(config, workdir, output)
    rich.print(metric_writers.summary_table(results, tasks.create_task(config).explain))
    print(f'labels of split {config.dataset.train_split!r} of {config.dataset.name!r} in {output}')
    print(json.dumps(results))
  elif _MODE.value == 'demo':
    examples = None if _INPUT.value is None else _input()
    demo.serve(
      config, workdir, _results('demo', workdir), examples, host=_HOST.value, port=_PORT.value
    )
  elif _MODE.value == 'export':
    in_workdir = _OUTPUT.value is None and workdir is not None
    output = workdir / 'export' if in_workdir else _path(_required(_OUTPUT))
    files = export.export_model(
      config,
      workdir,
      output,
      platforms=_PLATFORMS.value,
      batch_size=_FIXED_BATCH_SIZE.value,
      formats=_FORMAT.value,
    )
    for file in files:
      print(file)
  elif _MODE.value == 'compile':
    topology = _required(_TOPOLOGY)
    report = aot.compile_report(config, topology, _COMPILE_EFFORT.value, _TOP.value)
    rich.print(report.table())
    if report.costliest:
      rich.print(report.costliest_table())
    print(json.dumps(report.to_dict()))
  else:
    _predict(config, workdir)


def _keep_programs() -> None:
  folder = program_cache.enable()
  if folder is not None and _MODE.value == 'train':
    off = 'JAX_ENABLE_COMPILATION_CACHE=false'
    messages.say(f'compiled programs are kept in {folder} for the next start; {off} turns it off')


def _results(name: str, workdir: epath.Path | None) -> epath.Path:
  """The folder for results: --output, or one of that name in the workdir, or else here."""
  if _OUTPUT.value is not None:
    return _path(_OUTPUT.value)
  return epath.Path(name) if workdir is None else workdir / name


def _predict(config: ml_collections.ConfigDict, workdir: epath.Path | None) -> None:
  """Prints records as they come, and at last where they are."""
  if _INPUT.value is None:
    raise config_lib.ConfigError(
      '--mode=predict needs --input: a file or a folder, such as crossattn_jax/samples/digits'
    )
  inputs, output = _input(), _results('predictions', workdir)
  stream = _Stream()
  signal.signal(signal.SIGINT, stream.interrupt)
  try:
    loop.predict(config, workdir, inputs, output, pictures=_PICTURES.value, on_record=stream.show)
  except KeyboardInterrupt:
    print(f'stopped: {stream.count} predictions in {output / "predictions.json"}', file=sys.stderr)
    sys.exit(_STOPPED)
  print(f'{stream.count} predictions in {output / "predictions.json"}', file=sys.stderr)


class _Stream:
  """Prints records as they come. Ctrl-C stops after the next one, a second one quits at once."""

  def __init__(self):
    self.count, self._stopping = 0, False

  def show(self, record: dict[str, Any]) -> None:
    self.count += 1
    try:
      print(json.dumps(record), flush=True)
    except BrokenPipeError:
      _flush_nothing()  # Whoever reads has enough.
      self._stopping = True
    if self._stopping:
      raise KeyboardInterrupt

  def interrupt(self, *_: object) -> None:
    """Raises nothing: an error in a callback of the garbage collector would be ignored."""
    if self._stopping or not self.count:
      print('stopped', file=sys.stderr, flush=True)
      os._exit(_STOPPED)
    self._stopping = True


def _parse_flags(args: Sequence[str]) -> list[str]:
  """Parses all flags but the config's keys, which only the config knows and which are returned."""
  if {'--help', '-h'} & set(args):
    print(__doc__, flags.FLAGS.module_help(__name__), sep='\n')
    sys.exit()
  flags.FLAGS.set_gnu_getopt()
  try:
    remaining = flags.FLAGS(args, known_only=True)
  except (flags.Error, ValueError) as error:
    sys.exit(f'error: {error}')
  for argument in remaining[1:]:
    name = re.match(r'--?([a-zA-Z][^=]*)', argument)
    if name and not re.match(r'(no)?config\.', name[1]):
      sys.exit(f'error: {command_line.unknown_flag_message(name[1], list(flags.FLAGS))}')
  if flags.FLAGS['verbosity'].using_default_value:
    # Orbax and TFDS tell every detail at level 'info', which absl would choose.
    flags.FLAGS.verbosity = logging.WARNING
  return remaining
