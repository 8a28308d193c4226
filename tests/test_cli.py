"""The command line, as a person uses it: in processes of its own; refusals in this one."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

from absl import flags
from absl.testing import flagsaver
import pytest

from crossattn_jax import cli, tasks
from crossattn_jax.data import examples
from crossattn_jax.training import command_line

ROOT = pathlib.Path(__file__).parents[1]

EARLIER = ROOT / 'tests' / 'training' / 'earlier_runs' / 'crossvit_digits'

# A model that compiles in seconds.
TINY = (
  '--config.model.widths=(16,32)',
  '--config.model.depths=((1,1,0),)',
  '--config.schedule.warmup_epochs=0',
  '--config.evaluation.every_steps=1000000',
  '--config.logging.every_steps=1',
)


@pytest.fixture(scope='module')
def command(main_environment, datasets_dir):
  """Builds the command line of a run on digits."""

  def build(*arguments, config=True):
    experiment = (
      '--config=configs/crossvit_digits.py',
      f'--config.dataset.data_dir={datasets_dir}',
      *TINY,
    )
    return [sys.executable, 'main.py', *(experiment if config else ()), *map(str, arguments)]

  return build


@pytest.fixture(scope='module')
def run(main_environment, command):
  def call(*arguments, config=True):
    return subprocess.run(
      command(*arguments, config=config),
      cwd=ROOT,
      env=main_environment,
      capture_output=True,
      text=True,
      timeout=600,
      check=False,
    )

  return call


def history(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [{name: x for name, x in json.loads(line).items() if name != 'time'} for line in lines]


@pytest.fixture(scope='module')
def trained(run, tmp_path_factory):
  """The workdir of a finished run of 12 steps, and what it printed."""
  workdir = tmp_path_factory.mktemp('trained') / 'run'
  result = run(f'--workdir={workdir}', '--config.num_steps=12')
  assert result.returncode == 0, result.stderr
  return workdir, result


def test_train_shows_progress_and_a_summary(trained):
  workdir, result = trained
  assert 'step 12/12' in result.stderr
  assert 'images/s' in result.stderr
  assert 'finished 12 steps in' in result.stderr.splitlines()[-1]
  assert str(workdir) in result.stderr.splitlines()[-1]


def test_train_ends_with_the_best_checkpoint_and_commands_that_use_it(trained):
  workdir, result = trained
  accuracy = history(workdir)[-1]['eval/accuracy']
  assert f'best accuracy: {accuracy:.6g}, after step 12' in result.stderr
  for mode in ('eval', 'predict', 'export'):
    assert f'  python main.py --mode={mode} --workdir={workdir} --use=best' in result.stderr


def test_eval_prints_a_table_and_json_from_the_workdir_alone(run, trained):
  workdir, _ = trained
  result = run('--mode=eval', f'--workdir={workdir}', config=False)
  assert result.returncode == 0, result.stderr
  metrics = json.loads(result.stdout.splitlines()[-1])
  last = history(workdir)[-1]
  assert {f'eval/{name}': value for name, value in metrics.items()} == {
    name: value for name, value in last.items() if name != 'step'
  }
  assert 'accuracy' in result.stdout.splitlines()[3]


def test_predict_streams_what_it_can_read_and_counts_the_rest(run, trained, tmp_path):
  from PIL import Image

  workdir, _ = trained
  (tmp_path / 'sub').mkdir()
  Image.new('L', (8, 8), 200).save(tmp_path / 'sub' / 'grey.png')
  (tmp_path / 'broken.png').write_bytes(b'no image')
  (tmp_path / 'notes.txt').touch()
  result = run('--mode=predict', f'--workdir={workdir}', f'--input={tmp_path}', config=False)
  assert result.returncode == 0, result.stderr
  (record,) = map(json.loads, result.stdout.splitlines())
  assert len(record['classes']) == 5
  assert record['picture'] == str(workdir / 'predictions' / 'sub' / 'grey.png')
  assert pathlib.Path(record['picture']).stat().st_size > 1000
  assert f'cannot read image {str(tmp_path / "broken.png")!r}' in result.stderr
  *_, counted, last = result.stderr.splitlines()
  assert counted.endswith('left out: 1 .txt, 1 unreadable')
  assert last == f'1 predictions in {workdir}/predictions/predictions.json'


@pytest.mark.extended
def test_ctrl_c_leaves_the_predictions_that_there_are(command, main_environment, trained, tmp_path):
  from PIL import Image

  workdir, _ = trained
  for number in range(3000):
    Image.new('L', (8, 8), number % 256).save(tmp_path / f'{number:04}.png')
  process = subprocess.Popen(
    command(
      '--mode=predict',
      '--pictures=each',
      f'--workdir={workdir}',
      f'--input={tmp_path}',
      f'--output={tmp_path / "out"}',
      config=False,
    ),
    cwd=ROOT,
    env=main_environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  first = json.loads(process.stdout.readline())
  process.send_signal(signal.SIGINT)
  rest, errors = process.communicate(timeout=120)
  assert process.returncode == 130, errors
  assert 'Traceback' not in errors
  written = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
  assert written == [first, *map(json.loads, rest.splitlines())]
  assert 1 <= len(written) < 3000
  assert f'stopped: {len(written)} predictions in' in errors


def test_export_writes_a_model_that_its_script_runs(run, main_environment, trained):
  from PIL import Image

  workdir, _ = trained
  result = run('--mode=export', f'--workdir={workdir}', '--platforms=cpu', config=False)
  assert result.returncode == 0, result.stderr
  files = [pathlib.Path(line) for line in result.stdout.splitlines()]
  assert all(file.parent == workdir / 'export' for file in files)
  Image.new('L', (8, 8), 200).save(workdir / 'grey.png')
  script = [sys.executable, str(workdir / 'export' / 'load_and_run.py'), str(workdir / 'grey.png')]
  printed = subprocess.run(
    script, env=main_environment, capture_output=True, text=True, timeout=300, check=True
  )
  assert printed.stdout.count('%') == 5


@pytest.fixture
def run_here(monkeypatch):
  """Runs a command line in this process."""
  monkeypatch.setattr(cli.host_memory, 'keep_freed_memory', lambda: None)

  def call(*arguments):
    with flagsaver.flagsaver():
      for name in flags.FLAGS:
        flags.FLAGS[name].present = 0
      cli._run_mode(cli._parse_flags(['main.py', *map(str, arguments)]))

  return call


@pytest.fixture
def refusal(run_here):
  """What a command line that is refused says."""

  def call(*arguments):
    with pytest.raises(SystemExit) as stopped:
      run_here(*arguments)
    # Python prints a string to stderr and exits with status 1.
    assert isinstance(stopped.value.code, str)
    assert stopped.value.code.startswith('error: ')
    return stopped.value.code

  return call


@pytest.fixture
def experiment(datasets_dir):
  """The arguments of a run on digits."""
  file = f'--config={ROOT}/configs/crossvit_digits.py'
  return (file, f'--config.dataset.data_dir={datasets_dir}', *TINY)


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('--config.schedule.lerning_rate=1', 'config.schedule.learning_rate'),
    ('--config.optimiser.name=sgd', 'config.optimizer.name'),
    ('--config.model.num_head=(2,2)', 'config.model.num_heads'),
    ('--config.model.name=crosvit_tiny_240', "did you mean 'crossvit_tiny_240'"),
    ('--config.dataset.name=digit', "'digits'"),
    ('--config.mesh.data=3', 'mesh data=3'),
    ('--config.profile.steps=3', 'first and the last step'),
    ('--config.batch_size=abc', 'config.batch_size must be of type int'),
    ('--config.num_steps=None --config.num_epochs=None', 'set config.num_epochs or config.num_st'),
    ('--lr=3', 'unknown flag --lr; did you mean --config.schedule.learning_rate?'),
    ('--mode=evaluate', '--mode=evaluate: value should be one of <train|eval|'),
    ('--use=best', '--use is for --mode=eval or predict or label or demo or export, not for --mod'),
    ('--mode=label', "task 'classification', makes no labels from which another model could learn"),
    ('--input=photo.png', '--input is for --mode=predict or demo, not for --mode=train'),
    ('--mode=compile', '--mode=compile needs --topology'),
    ('--mode=predict', '--mode=predict needs --input'),
    ('--nomultihost=1', '--nomultihost=1 does not take an argument'),
    ('word', "unexpected argument 'word'"),
  ],
)
def test_a_wrong_value_is_refused_by_name(refusal, experiment, tmp_path, argument, message):
  workdir = f'--workdir={tmp_path}/run'
  assert message in refusal(*experiment, workdir, '--config.num_steps=2', *argument.split())
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_an_error_is_one_line_without_a_traceback(run, tmp_path):
  result = run(f'--workdir={tmp_path}/run', '--config.mesh.data=3')
  assert result.returncode == 1
  assert 'mesh data=3' in result.stderr
  assert 'Traceback' not in result.stderr


def test_an_unknown_key_in_a_config_file_is_refused_by_name(refusal, tmp_path):
  file = tmp_path / 'experiment.py'
  file.write_text(
    'from configs import crossvit_digits\n'
    'def get_config():\n'
    '  config = crossvit_digits.get_config().unlock()\n'
    '  config.optimizer.weight_decy = 0.1\n'
    '  return config\n'
  )
  message = refusal(f'--config={file}', f'--workdir={tmp_path}/run')
  assert 'config.optimizer.weight_decy; did you mean config.optimizer.weight_decay?' in message


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((), 'python main.py --config=configs/crossvit_digits.py --workdir=/tmp/digits\n'),
    (('--mode=train',), '--config'),
    *(
      ((f'--mode={mode}', '--workdir=/nonexistent'), '/nonexistent/config.json does not exist')
      for mode in ('train', 'eval', 'predict', 'export')
    ),
    (('--mode=eval', f'--workdir={EARLIER.parent}/crosvit_digits'), f'did you mean {EARLIER}?'),
    (('--config=configs/crosvit_digits.py',), 'did you mean --config=configs/crossvit_digits.py?'),
  ],
)
def test_what_is_missing_is_named(refusal, arguments, message):
  assert message in refusal(*arguments)


@pytest.mark.parametrize(
  ('split', 'count'), [('test', 355), pytest.param('train', 1442, marks=pytest.mark.extended)]
)
def test_another_split_of_a_run_is_evaluated_by_its_name(
  run_here, datasets_dir, capsys, split, count
):
  run_here(
    '--mode=eval',
    f'--workdir={EARLIER}',
    f'--config.dataset.data_dir={datasets_dir}',
    f'--config.dataset.split={split}',
  )
  *_, described, metrics = capsys.readouterr().out.splitlines()
  assert described == f"split '{split}' of 'digits'"
  assert json.loads(metrics)['examples'] == count


def test_a_home_folder_is_meant_in_every_path(run_here, monkeypatch, tmp_path):
  given = []
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setattr(cli.loop, 'train', lambda *arguments: given.extend(arguments))
  run_here(
    '--config=configs/crossvit_digits.py',
    '--workdir=~/run',
    '--config.dataset.data_dir=~/data',
    '--config.weights=~',
    '--config.task.distillation.teacher_weights=~/teacher',
  )
  config, workdir = given
  assert str(workdir) == f'{tmp_path}/run'
  assert config.dataset.data_dir == f'{tmp_path}/data'
  assert config.weights == str(tmp_path)
  assert config.task.distillation.teacher_weights == f'{tmp_path}/teacher'


def test_the_paths_of_other_modes_may_be_in_the_home_folder(run_here, monkeypatch, tmp_path):
  given = []
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setattr(cli.export, 'export_model', lambda _, *paths, **__: given.extend(paths) or [])
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'config.json').write_text((EARLIER / 'config.json').read_text())
  run_here('--mode=export', '--workdir=~/run', '--output=~/out')
  assert list(map(str, given)) == [f'{tmp_path}/run', f'{tmp_path}/out']


def test_help_explains_each_mode_with_an_example(run):
  result = run('--help', config=False)
  for mode in ('train', 'eval', 'predict', 'export', 'compile'):
    assert f'--mode={mode}' in result.stdout
  assert result.stdout.count('python main.py') >= 4


def test_a_command_stands_for_its_mode(run, trained):
  workdir, _ = trained
  result = run('evl', f'--workdir={workdir}', config=False)
  assert result.stderr == "error: unknown command 'evl'; did you mean 'eval'?\n"
  assert result.returncode == 1


def test_models_are_listed_by_a_pattern(capsys):
  for pattern, names in (
    ('crossvit_9_*240', ['crossvit_9_240', 'crossvit_9_dagger_240']),
    ('swiftformer_s+*fpn', ['swiftformer_s+semantic_fpn']),
    ('zzz*', []),
  ):
    with pytest.raises(SystemExit) as stopped:
      cli.main(['crossattn', 'models', pattern])
    assert bool(stopped.value.code) == (not names)
    assert capsys.readouterr().out.splitlines() == names


def test_a_list_that_is_not_read_to_its_end_is_no_error(monkeypatch):
  reading, writing = os.pipe()
  os.close(reading)
  with os.fdopen(writing, 'w') as pipe:
    monkeypatch.setattr('sys.stdout', pipe)
    with pytest.raises(SystemExit) as stopped:
      cli.main(['crossattn', 'models'])
  assert not stopped.value.code


def test_the_installed_command_speaks_of_itself(refusal, monkeypatch):
  monkeypatch.setattr('sys.argv', ['/venv/bin/crossattn'])
  assert 'crossattn train --config=configs/crossvit_digits.py --workdir=' in refusal()


def test_cases_replay_by_the_installed_command(capsys):
  case = ROOT / 'tests' / 'reference' / 'crossvit' / 'nothing.json'
  with pytest.raises(SystemExit) as stopped:
    cli.main(['crossattn', 'replay', str(case)])
  assert stopped.value.code == 2
  assert f'{case}' in capsys.readouterr().err


def test_samples_are_found_from_any_folder(run_here, monkeypatch, tmp_path):
  given = []
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(cli.loop, 'predict', lambda *arguments, **_: given.extend(arguments))
  run_here('--mode=predict', f'--workdir={EARLIER}', '--input=crossattn_jax/samples/digits')
  assert given[2] == ROOT / 'crossattn_jax' / 'samples' / 'digits'


@pytest.mark.extended
def test_the_last_line_of_several_problems_is_flags_with_which_it_trains(run, tmp_path):
  mistakes = (
    f'--workdir={tmp_path}/run',
    '--config.num_steps=2',
    '--config.model.num_classes=7',
    '--config.checkpoint.best_metric=acuracy',
    '--config.dataset.eval_split=tset',
    '--config.schedule.warmup_steps=20',
  )
  result = run(*mistakes)
  assert result.returncode == 1
  assert 'error: 4 problems before step 1:' in result.stderr
  assert 'Traceback' not in result.stderr
  result = run(*mistakes, *shlex.split(result.stderr.splitlines()[-1]))
  assert result.returncode == 0, result.stderr
  assert 'finished 2 steps' in result.stderr


def wait_for_step(process, workdir, step):
  deadline = time.monotonic() + 300
  while time.monotonic() < deadline and process.poll() is None:
    if (workdir / 'metrics.jsonl').exists() and len(history(workdir)) >= step:
      return
    time.sleep(0.01)  # Polls another process.
  raise AssertionError(f'no step {step}: {process.communicate()}')


def start(command, environment, *arguments):
  return subprocess.Popen(
    command(*arguments), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
  )


@pytest.mark.extended
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_with_status_0(command, main_environment, tmp_path, number):
  workdir = tmp_path / 'run'
  arguments = (f'--workdir={workdir}', '--config.num_steps=100000')
  process = start(command, main_environment, *arguments)
  wait_for_step(process, workdir, 3)
  process.send_signal(number)
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  assert 'stopping: this step is finished and saved' in errors
  assert 'the same command continues' in errors
  assert errors.splitlines()[-1].strip() == shlex.join(command(*arguments))
  stopped = max(int(path.name) for path in (workdir / 'checkpoints').iterdir())
  assert stopped == history(workdir)[-1]['step']


@pytest.mark.extended
def test_an_interrupt_while_the_first_step_compiles_ends_cleanly(
  command, main_environment, tmp_path
):
  environment = dict(main_environment)
  environment.pop('JAX_COMPILATION_CACHE_DIR')
  process = start(command, environment, f'--workdir={tmp_path}/run', '--config.num_steps=3')
  while process.poll() is None and not (tmp_path / 'run' / 'config.json').exists():
    time.sleep(0.01)  # Polls another process.
  time.sleep(1)  # The step is traced and compiled in several.
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=20)
  assert process.returncode == 130, errors
  assert 'quit; what was saved is kept, and this continues:' in errors
  assert 'Traceback' not in errors


def kill_and_resume(command, run, environment, workdir, reference, steps, kill_at):
  """Kills a run once per entry of `kill_at`, then lets it finish and compares it."""
  arguments = (
    f'--workdir={workdir}',
    f'--config.num_steps={steps}',
    '--config.checkpoint.every_steps=7',
  )
  for step in kill_at:
    process = start(command, environment, *arguments)
    wait_for_step(process, workdir, step)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
  result = run(*arguments)
  assert result.returncode == 0, result.stderr
  assert history(workdir) == reference


@pytest.fixture(scope='module')
def uninterrupted(run, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('uninterrupted') / 'run'
  result = run(
    f'--workdir={workdir}', '--config.num_steps=200', '--config.checkpoint.every_steps=7'
  )
  assert result.returncode == 0, result.stderr
  return history(workdir)


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit(
  command, run, main_environment, uninterrupted, tmp_path
):
  kill_and_resume(
    command, run, main_environment, tmp_path / 'run', uninterrupted, 200, (3, 60, 131)
  )


@pytest.mark.slow
def test_twenty_kills_continue_bit_for_bit(command, run, main_environment, uninterrupted, tmp_path):
  kills = range(5, 195, 9)[:20]
  assert len(kills) == 20
  kill_and_resume(command, run, main_environment, tmp_path / 'run', uninterrupted, 200, kills)


@pytest.mark.extended
def test_two_processes_train_to_the_metrics_of_one(
  command, run, main_environment, trained, tmp_path
):
  import socket

  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  workdir = tmp_path / 'run'
  processes = [
    start(
      command,
      main_environment,
      f'--workdir={workdir}',
      '--config.num_steps=12',
      f'--coordinator_address=localhost:{port}',
      '--num_processes=2',
      f'--process_id={process_id}',
    )
    for process_id in range(2)
  ]
  errors = [process.communicate(timeout=600)[1] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], errors
  expected = history(trained[0])
  actual = history(workdir)
  assert [line.keys() for line in actual] == [line.keys() for line in expected]
  for line, other in zip(actual, expected, strict=True):
    for name, value in other.items():
      assert line[name] == pytest.approx(value, rel=2e-4, abs=1e-9), (line['step'], name)
  assert (workdir / 'predictions.png').exists()


@pytest.mark.extended
def test_profile_writes_a_trace(run, tmp_path):
  result = run(f'--workdir={tmp_path}/run', '--config.num_steps=6', '--config.profile.steps=3,5')
  assert result.returncode == 0, result.stderr
  assert list((tmp_path / 'run' / 'profile').rglob('*.xplane.pb'))


def test_examples_say_what_they_are_and_what_trains_on_them(tmp_path, monkeypatch, capsys):
  folder = tmp_path / 'digits'
  for command, program in (('crossattn', 'crossattn train'), ('main.py', 'python main.py')):
    monkeypatch.setattr(sys, 'argv', [command])
    with pytest.raises(SystemExit, match='0'):
      cli.main([command, 'examples', 'images', str(folder), '--size=10'])
    printed = capsys.readouterr().out
    assert f'{folder} has handwritten digits' in printed
    assert f'  {program} --config=crossvit_digits' in printed
    assert f'--config.dataset.data_dir={folder} ' in printed
    shutil.rmtree(folder)
  with pytest.raises(SystemExit, match='1'):
    cli.main(['crossattn', 'examples', 'imges', str(folder)])
  assert "did you mean 'images'?" in capsys.readouterr().err


@pytest.mark.extended
@pytest.mark.parametrize('kind', list(examples.KINDS))
def test_what_trains_on_examples_takes_them_as_they_are(kind, tmp_path):
  folder = examples.write(kind, tmp_path / kind, 60 if kind == 'images' else 10)
  first, *overrides = (flag.format(folder=folder) for flag in examples.KINDS[kind].training)
  config = command_line.read_file(first.removeprefix('--config='))
  command_line.override(config, overrides)
  tasks.complete_config(config)
  task = tasks.create_task(config)
  task.check_data()
  batch = next(iter(task.train_data(2, 0, 1)))
  for name, spec in task.batch_spec(2).items():
    assert len(batch[name]) == 2
    # Rooms of one batch have one of several sizes.
    assert batch[name].ndim == spec.ndim if kind == 'points' else batch[name].shape == spec.shape
  next(iter(task.eval_data(2, 0, 1)))
