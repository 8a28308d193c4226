"""The commands in README, documents, notebooks and docstrings name what exists, and run."""

import json
import pathlib
import re
import shlex
import subprocess
import sys
import wave

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.parity import __main__ as parity
from crossattn_jax.training import config as config_lib
from tests.docs.shrunk import MODES, experiment, flag, in_a_clone, mode_of, small

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = [
  ROOT / 'README.md',
  ROOT / 'crossattn_jax' / 'cli.py',
  # tests/docs/test_guides.py runs the guides.
  *sorted({*(ROOT / 'docs').rglob('*.md')} - {*(ROOT / 'docs' / 'guides').glob('*.md')}),
  *sorted((ROOT / 'configs').glob('*.py')),
  *sorted((ROOT / 'colabs').glob('*.ipynb')),
]
COMMAND = re.compile(
  r'(?<![\w.-])(?:python3? (?=-m \w|\S+\.py)|pip install|tfds build|mkdocs build'
  rf'|crossattn (?=(?:{MODES}|convert|compare|replay) ))[^\n`"]*'
)
# What no tier runs, and why: the first that is found in the command.
NOT_RUN = {
  r'pip install|-m venv|-m pytest': '.ci/run makes an environment and runs the tests in it',
  r'test_arguments\.py': 'writes what that file tests',
  r'docs/(?:zoo|\w+_reference)\.py': 'writes what tests in tests/docs test',
  r'mkdocs build': 'tests/docs/test_site.py builds the site',
  r'tfds build|weights=(?:timm|official)': 'needs the network',
  r'-m benchmarks\.': 'measures, for minutes to hours',
  r'scene_points\.buckets': 'needs a dataset',
  r'gs://|--multihost|--num_processes': 'needs a cluster',
  r'parity convert|parity compare .*--weights|retrieval\.words': "needs somebody's checkpoint",
  r'\.\.\.|<\w+>|\b[A-Z][A-Z_]{2,}\b|(?:main\.py|--mode=\w+)$': 'is a form to be filled in',
  r'format=onnx': 'needs extra onnx; tests/training/test_onnx_program.py writes such programs',
  r'mode=demo': 'serves until it is stopped; tests/training/test_demo.py opens such pages',
  r'mode=compile': 'is compiled by the commands that name a topology',
  r'configs/\w+_(?:imagenet|audioset|ade20k|cityscapes|coco|flickr30k|msrs)': 'needs a dataset',
}
# Runs that compile for minutes, and a slice for which tests/training/test_compile.py compiles too.
LONG = {
  'icafusion_flir',
  'icafusion_shapes',
  'mask_rcnn_coco',
  'mask_rcnn_shapes',
  'minkunet_rooms_true',
  'mit_rooms',
  'mit_scannet',
  'mmvit_tones',
  'sketch_localizer_quickdraw',
  'swiftformer_taught',
  'v5e:16x16',
}
# A run's other run, to start from or to learn from.
STARTS = (
  'config.weights',
  'config.task.distillation.teacher_weights',
  'config.dataset.labels_dir',
)


def text_of(path):
  """A document; of a notebook the sources of its cells."""
  if path.suffix != '.ipynb':
    return path.read_text()
  return '\n'.join(''.join(cell['source']) for cell in json.loads(path.read_text())['cells'])


def all_commands():
  """Every command once: where it stands first, and its words."""
  found = {}
  for path in SOURCES:
    for line in COMMAND.findall(text_of(path).replace('\\\n', ' ')):
      for command in line.split('&&'):
        words = shlex.split(command.rstrip('. '), comments=True)
        if words:
          words[0] = pathlib.Path(words[0]).name
          words = in_a_clone(words)
          found.setdefault(' '.join(words), (path.name, words))
  return list(found.values())


COMMANDS = all_commands()


def commands(*program):
  """The arguments of all commands of a program."""
  return [
    pytest.param(words[1 + len(program) :], id=f'{name}: {" ".join(words)[:80]}')
    for name, words in COMMANDS
    if words[1 : 1 + len(program)] == list(program)
  ]


def reason_not_to_run(words):
  """Why no tier runs a command; None for one that some tier runs."""
  if flag(words, 'topology'):
    return None
  command = ' '.join(words)
  return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, command)), None)


@pytest.mark.parametrize('arguments', commands('main.py'))
def test_flags_and_config_keys_exist(arguments):
  source = (ROOT / 'crossattn_jax' / 'cli.py').read_text()
  flags = {'config', *re.findall(r"DEFINE_\w+\(\s*'(\w+)'", source)}
  given = [argument[2:].partition('=')[0] for argument in arguments if argument.startswith('--')]
  keys = {name.removeprefix('config.') for name in given if name.startswith('config.')}
  assert {name for name in given if not name.startswith('config.')} <= flags
  file = flag(arguments, 'config') or '...'
  if not re.search(r'\.\.\.|CONFIG', file):
    assert keys <= set(config_lib.flat(experiment(file)))


@pytest.mark.parametrize('arguments', commands('-m', 'crossattn_jax.parity'))
def test_parity_commands_parse(arguments):
  if arguments[1:] and arguments != ['COMMAND', '--help']:
    parity._parser('parity').parse_args(arguments)


def test_modules_that_are_run_exist():
  modules = {words[2] for _, words in COMMANDS if words[1:2] == ['-m']}
  ours = {name for name in modules if name.startswith(('benchmarks', 'crossattn_jax'))}
  assert ours
  missing = {name for name in ours if not (ROOT / name.replace('.', '/')).exists()}
  assert all((ROOT / name.replace('.', '/')).with_suffix('.py').exists() for name in missing)


def run_of(words):
  """The workdir of a command, and that of the run which its training starts from, or None."""
  exported = re.match(r'(/tmp/\w+)/export/', words[1])
  run = flag(words, 'workdir') or (exported and exported[1])
  starts = (flag(words, key) or '' for key in STARTS)
  return run, next((start for start in starts if start.startswith('/tmp/')), None)


def stories():
  """Commands that run, by the folder under /tmp that they make or use, or by themselves.

  A run that starts from another is in that one's story; a long one trains the other by itself.
  """
  found, starts = {}, {}
  for _, words in COMMANDS:
    if words[1] == '-m' or reason_not_to_run(words):
      continue
    run, start = run_of(words)
    config = pathlib.Path((flag(words, 'config') or '').partition(':')[0]).stem
    long = config if flag(words, 'topology') and config in LONG else None
    name = (run or long or flag(words, 'topology') or '/tmp/digits').removeprefix('/tmp/')
    found.setdefault(name, []).append(words)
    if start:
      starts[name] = start.removeprefix('/tmp/').partition('/')[0]
  for group in found.values():
    # Training comes first.
    group.sort(key=lambda words: mode_of(words) != 'train')
  for name, start in starts.items():
    if name in LONG:
      found[name].insert(0, found[start][0])
    else:
      found[start] += found.pop(name)
  for name, group in found.items():
    if flag(group[0], 'workdir') and mode_of(group[0]) != 'train':
      continue  # Of a run that no tier trains.
    marks = [pytest.mark.slow if name in LONG else pytest.mark.extended]
    marks += [pytest.mark.tpu_aot] if flag(group[0], 'topology') else []
    yield pytest.param(group, id=name, marks=marks)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Stands for /tmp and for where a person is; what commands are given is there."""
  folder = tmp_path_factory.mktemp('commands')
  for name in ('photo.png', 'another.png'):
    Image.new('RGB', (64, 64), (200, 100, 50)).save(folder / name)
  for name in ('low/zero', 'low/one', 'high/five', 'high/six'):
    (folder / 'pngs' / name).mkdir(parents=True)
    for i in range(50):
      Image.new('L', (8, 8), 5 * i).save(folder / 'pngs' / name / f'{i}.png')
  page = (ROOT / 'docs' / 'detection.md').read_text()
  (fruit,) = re.findall(r'```python\n(import json.*?)```', page, re.DOTALL)
  subprocess.run([sys.executable, '-c', fruit], cwd=folder, check=True)
  (folder / 'queries.txt').write_text('a red circle\n')
  with wave.open(str(folder / 'clip.wav'), 'wb') as clip:
    clip.setparams((1, 2, 16000, 0, 'NONE', ''))
    clip.writeframes(np.zeros(16000, np.int16).tobytes())
  return folder


@pytest.fixture
def call(folder, datasets_dir, main_environment):
  """Runs a command in the folder; training and compiling little."""

  # What keeps libtpu from looking for a TPU here would tell it where it compiles for.
  environment = {k: x for k, x in main_environment.items() if not k.startswith('TPU_')}

  def call(words):
    mode, words = mode_of(words), small(words)
    if mode == 'train':
      # What the config takes from another run, as if it were said.
      own = config_lib.flat(experiment(flag(words, 'config')))
      values = {key: str(own.get(key.removeprefix('config.'))) for key in STARTS}
      paths = {key: x for key, x in values.items() if x.startswith('/tmp/')}
      words += [f'--{key}={x}' for key, x in paths.items() if not flag(words, key)]
    words = [sys.executable, *(word.replace('/tmp/', f'{folder}/') for word in words[1:])]
    if mode:
      words[1] = str(ROOT / 'main.py')
      words = [re.sub('=(configs|crossattn_jax)/', rf'={ROOT}/\1/', word) for word in words]
    if mode == 'train' and not flag(words, 'config.dataset.data_dir'):
      words.append(f'--config.dataset.data_dir={datasets_dir}')
    result = subprocess.run(
      words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, f'{shlex.join(words)}\n{result.stderr}'

  return call


@pytest.mark.parametrize('story', list(stories()))
def test_what_needs_nothing_from_elsewhere_runs(story, call):
  for words in story:
    call(words)


@pytest.mark.extended
def test_the_recorded_cases_replay_by_the_command(capsys):
  for arguments in (param.values[0] for param in commands('-m', 'crossattn_jax.parity')):
    if arguments[:1] == ['replay'] and not reason_not_to_run(arguments):
      # All of them take minutes; tests/parity/test_replay.py replays them one by one.
      smallest = min((ROOT / arguments[1]).glob('*.npz'), key=lambda path: path.stat().st_size)
      assert parity.main(['replay', str(smallest.with_suffix('.json')), *arguments[2:]]) == 0
      assert 'passed' in capsys.readouterr().out


@pytest.mark.torch
@pytest.mark.parametrize(
  'arguments',
  [
    param
    for param in commands('-m', 'crossattn_jax.parity')
    if param.values[0][:1] == ['compare'] and not reason_not_to_run(['parity', *param.values[0]])
  ],
)
def test_models_compare_by_the_command(arguments, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert parity.main(arguments) == 0
  assert capsys.readouterr().out.splitlines()[-1] == 'every layer is within the bound'


def test_every_command_runs_in_some_tier_or_has_a_reason_not_to():
  run = ('main.py', 'load_and_run.py', '-m crossattn_jax.parity')
  for _, words in COMMANDS:
    command = ' '.join(words)
    assert reason_not_to_run(words) or any(name in command for name in run), command
