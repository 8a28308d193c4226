"""The files of docs/launching: shells read them, and their commands name what exists."""

import os
import pathlib
import re
import shlex
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / 'docs' / 'launching'
SCRIPTS = sorted(FOLDER.glob('*.sh'))


def stubs(folder, names):
  """Programs that write their arguments into the file `calls`, a line per call."""
  for name in names:
    path = folder / name
    path.write_text(f'#!/bin/sh\necho {name} "$@" >> {folder}/calls\necho ACTIVE\n')
    path.chmod(0o755)
  return {'PATH': f'{folder}:{os.environ["PATH"]}', 'HOME': str(folder)}


def check_training(words):
  """A command `crossattn train`: its experiment is there, and it says where the run is."""
  words = words[words.index('train') :]
  flags = dict(word.removeprefix('--').split('=', 1) for word in words if '=' in word)
  name = flags['config'].partition(':')[0]
  assert (ROOT / 'configs' / f'{name}.py').exists()
  assert flags['workdir']
  return flags


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_a_shell_can_read_it(path):
  subprocess.run(['bash', '-n', path], check=True)


def test_cloud_tpu_asks_installs_and_starts_on_all_hosts(tmp_path):
  given = {'PROJECT': 'p', 'ZONE': 'z', 'BUCKET': 'gs://b', 'SOURCE': 'git+https://example.org/x'}
  environment = stubs(tmp_path, ['gcloud', 'sleep'])
  script = FOLDER / 'cloud_tpu.sh'
  subprocess.run(['bash', script], env=environment | given, check=True, timeout=60)
  calls = (tmp_path / 'calls').read_text().splitlines()
  assert 'queued-resources create crossattn' in calls[0]
  assert [bool(re.search('--worker=all .*pip install', call)) for call in calls].count(True) == 1
  (started,) = [call for call in calls if 'crossattn train' in call]
  assert '--worker=all' in started
  assert '--multihost' in started
  assert check_training(shlex.split(started.split('nohup ')[1]))['workdir'] == 'gs://b/crossattn'
  missing = subprocess.run(['bash', script], env=environment, capture_output=True, text=True)
  assert missing.returncode != 0
  assert 'PROJECT: the Google Cloud project' in missing.stderr


def test_slurm_starts_one_process_per_node(tmp_path):
  (tmp_path / 'venv' / 'bin').mkdir(parents=True)
  (tmp_path / 'venv' / 'bin' / 'activate').touch()
  environment = stubs(tmp_path, ['srun', 'scancel', 'scontrol'])
  script = FOLDER / 'slurm.sh'
  subprocess.run(['bash', script], env=environment | {'SCRATCH': '/s'}, check=True, timeout=60)
  (call,) = (tmp_path / 'calls').read_text().splitlines()
  assert '--multihost' in call
  assert check_training(call.split())['workdir'] == '/s/runs/crossvit'
  options = re.findall(r'#SBATCH --([\w-]+)', script.read_text())
  assert {'nodes', 'ntasks-per-node', 'gpus-per-node', 'requeue', 'signal'} <= set(options)


def test_kubernetes_starts_as_many_processes_as_it_says():
  service, job = yaml.safe_load_all((FOLDER / 'kubernetes.yaml').read_text())
  spec = job['spec']
  (container,) = spec['template']['spec']['containers']
  (command,) = container['args']
  flags = check_training(command.split())
  assert spec['completionMode'] == 'Indexed'
  assert spec['completions'] == spec['parallelism'] == int(flags['num_processes'])
  assert flags['process_id'] == '$JOB_COMPLETION_INDEX'
  # The first pod's name is the Job's with its index; the service gives it a domain.
  name, subdomain = job['metadata']['name'], spec['template']['spec']['subdomain']
  assert subdomain == service['metadata']['name']
  host, port = flags['coordinator_address'].split(':')
  assert host == f'{name}-0.{subdomain}'
  assert int(port) in [entry['containerPort'] for entry in container['ports']]
  volumes = {volume['name'] for volume in spec['template']['spec']['volumes']}
  assert {mount['name'] for mount in container['volumeMounts']} == volumes
