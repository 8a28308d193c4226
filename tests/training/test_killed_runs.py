"""Runs of several tasks that are killed at random, over and over, end as if nobody had."""

import functools
import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Each of the four parts trains anew, so that none takes longer than some minutes.
PARTS = 4
KILLS = 5
STEPS = 60
# Small enough to train, and to start twenty times.
CONFIGS = {
  'semantic_fpn_shapes': (
    '--config.dataset.name=shape_scenes/tiny',
    '--config.model.widths=(8,8,8,8)',
    '--config.model.stem_widths=(8,8,8)',
    '--config.model.head_channels=8',
    '--config.model.pyramid_channels=8',
  ),
  'retinanet_shapes': ('--config.dataset.name=shape_scenes/tiny',),
  'mmca_shapes': ('--config.dataset.name=shape_scenes/tiny',),
}


def history(workdir):
  """What the metrics file says, without the time; a line that is being written is not there."""
  found = []
  for line in (workdir / 'metrics.jsonl').read_text().splitlines():
    try:
      found.append({name: x for name, x in json.loads(line).items() if name != 'time'})
    except ValueError:
      break
  return found


def start(config, environment, datasets_dir, workdir):
  flags = (
    f'--config=configs/{config}.py',
    f'--workdir={workdir}',
    f'--config.dataset.data_dir={datasets_dir}',
    f'--config.num_steps={STEPS}',
    '--config.batch_size=4',
    '--config.schedule.warmup_epochs=0',
    '--config.schedule.warmup_steps=0',
    '--config.logging.every_steps=1',
    '--config.checkpoint.every_steps=5',
    '--config.evaluation.every_steps=1000000',
    *CONFIGS[config],
  )
  return subprocess.Popen(
    [sys.executable, 'main.py', *flags],
    cwd=ROOT,
    env=environment,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(*arguments):
  process = start(*arguments)
  _, errors = process.communicate(timeout=600)
  assert process.returncode == 0, errors
  return history(arguments[-1])


@pytest.fixture(scope='module')
def undisturbed(main_environment, datasets_dir, tmp_path_factory):
  """What a run of a config reports when nobody kills it."""

  @functools.cache
  def run(config):
    workdir = tmp_path_factory.mktemp(config) / 'run'
    return finish(config, main_environment, datasets_dir, workdir)

  return run


@pytest.mark.slow
@pytest.mark.parametrize('part', range(PARTS))
@pytest.mark.parametrize('config', CONFIGS)
def test_twenty_random_kills_continue_bit_for_bit(
  config, part, undisturbed, main_environment, datasets_dir, tmp_path
):
  expected = undisturbed(config)
  rng, workdir = random.Random(part), tmp_path / 'killed'
  arguments = (config, main_environment, datasets_dir, workdir)
  for step in sorted(rng.choices(range(1, STEPS - 2), k=KILLS)):
    process = start(*arguments)
    while process.poll() is None and not (
      (workdir / 'metrics.jsonl').exists() and len(history(workdir)) >= step
    ):
      time.sleep(0.01)  # Polls another process.
    time.sleep(rng.random() / 10)  # In the middle of a step, or of a checkpoint.
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
  assert finish(*arguments) == expected
