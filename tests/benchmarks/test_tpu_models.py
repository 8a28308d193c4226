"""The search for the settings that a TPU slice runs fastest: what it asks for, what it keeps."""

import json
import sys

import pytest

from benchmarks import tpu_models
from benchmarks.tpu_models import Setting

GIB = 2**30
CHOICES = ('remat', 'scan_blocks')


def report_of(setting, seconds, total=8 * GIB):
  """A report of 16 chips of 16 GiB with 1 GiB of state."""
  return {
    'devices': 16,
    'images_per_second': 16 * setting.images / seconds,
    'chip': {'name': 'v5e', 'hbm_bytes': 16 * GIB},
    'effort': 0.0,
    'memory': {'arguments': GIB, 'total': total},
  }


def asked(answer, choices=CHOICES, images=64, **limits):
  """The settings that a search asks for, in its order, and their records."""
  records = {}

  def report(setting):
    records.setdefault(setting, answer(setting))
    return records[setting]

  tpu_models.search(report, images, 16, choices, **limits)
  return list(records), records


TOO_LARGE = {'error': 'does not fit'}


def test_a_step_that_fits_is_asked_for_once_plain_where_twice_the_images_would_not_fit():
  order, records = asked(lambda setting: report_of(setting, 0.1, 10 * GIB))
  assert order == [Setting(64)]
  assert tpu_models.winner(records) == Setting(64)


def test_images_per_chip_double_while_that_is_faster_and_memory_allows():
  seconds = {64: 0.10, 128: 0.15, 256: 0.31}
  order, records = asked(lambda setting: report_of(setting, seconds[setting.images], 4 * GIB))
  assert order == [Setting(64), Setting(128), Setting(256)]
  assert tpu_models.winner(records) == Setting(128)


def test_no_more_images_are_tried_than_asked_for():
  order, _ = asked(lambda setting: report_of(setting, 0.1, 2 * GIB), most=128)
  assert order == [Setting(64), Setting(128)]


def test_twice_the_images_are_tried_where_twice_the_temporaries_are_a_little_too_much():
  def answer(setting):
    return report_of(setting, 0.1, 8.8 * GIB) if setting.images == 64 else TOO_LARGE

  order, records = asked(answer)
  assert order == [Setting(64), Setting(128)]
  assert tpu_models.winner(records) == Setting(64)


def test_what_does_not_fit_is_rematerialised_and_tried_with_fewer_images():
  def answer(setting):
    if setting.remat:
      return report_of(setting, 0.15)
    return report_of(setting, 0.05) if setting.images <= 16 else TOO_LARGE

  order, records = asked(answer)
  assert order == [Setting(64), Setting(64, remat=True), Setting(32), Setting(16)]
  assert tpu_models.winner(records) == Setting(64, remat=True)


def test_a_step_that_the_compiler_does_not_finish_becomes_loops():
  def answer(setting):
    return report_of(setting, 0.2) if setting.loops else {'error': 'late', 'unfinished': True}

  order, records = asked(answer)
  assert order == [Setting(64), Setting(64, remat=True, loops=True)]
  assert tpu_models.winner(records) == order[-1]


def test_the_state_is_split_where_one_image_is_too_much():
  order, records = asked(
    lambda setting: report_of(setting, 1.0) if setting.fsdp > 1 else TOO_LARGE, images=2
  )
  assert order == [
    Setting(2),
    Setting(2, remat=True),
    Setting(1),
    Setting(1, remat=True),
    Setting(1, remat=True, fsdp=16),
  ]
  assert tpu_models.winner(records) == order[-1]


def test_a_model_without_choices_is_given_fewer_images_only():
  order, _ = asked(
    lambda setting: report_of(setting, 1.0) if setting.images < 64 else TOO_LARGE, choices=()
  )
  assert order == [Setting(64), Setting(32)]


def test_nothing_wins_where_nothing_fits():
  assert tpu_models.winner({Setting(64): TOO_LARGE}) is None


def a_file_of_reports(monkeypatch, tmp_path, *flags):
  """Sets the command line of a search; returns the file and a list of the commands to come."""
  made = []

  def make(command, limit):
    made.append(command)
    setting = Setting(64 if '--config.batch_size=1024' in command else 128)
    return report_of(setting, setting.images / 640, 4 * GIB) | {
      'model': 'crossvit_small_240',
      'costliest': [
        {'name': 'fusion.1', 'source': 'backward: CrossViT/x', 'share': 0.125, 'count': 3}
      ],
      'topology': 'v5e:4x4',
      'parameters': 10**6,
      'model_flops': 1e9 * 16 * setting.images,
      'batch_size': 16 * setting.images,
      'step_seconds': 0.1,
      'kernels': 0,
      'mfu': 0.25,
      'memory': {'arguments': GIB, 'total': 4 * GIB, 'temporaries': 3 * GIB},
    }

  monkeypatch.setattr(tpu_models, 'make', make)
  monkeypatch.setattr(tpu_models.os, 'nice', lambda increment: None)
  file = tmp_path / 'records.json'
  monkeypatch.setattr(sys, 'argv', ['tpu_models', 'crossvit_small_240', f'--json={file}', *flags])
  return file, made


def test_a_search_keeps_its_reports_and_makes_none_twice(monkeypatch, tmp_path, capsys):
  file, made = a_file_of_reports(monkeypatch, tmp_path)
  tpu_models.main()
  tpu_models.main()
  assert len(made) == 2
  assert len(json.loads(file.read_text())['crossvit_small_240']) == 2
  *_, verdict, costliest, _, _, row = capsys.readouterr().out.splitlines()
  assert '640 images/s a chip, 64 images on each of 16: --config.batch_size=1024' in verdict
  assert '--config.model.remat=False --config.model.scan_blocks=False' in verdict
  assert row.startswith(
    '| crossvit_small_240 | v5e:4x4 | 64 | plain | 1.0 | 4.0 (3.0) | 100 | 640 | 25.0 % |'
  )
  assert costliest == ' 12.5% 3 x fusion.1 backward: CrossViT/x'
  assert '*' not in row


def test_reports_of_older_code_are_named_and_made_again_when_asked_to(
  monkeypatch, tmp_path, capsys
):
  file, made = a_file_of_reports(monkeypatch, tmp_path)
  tpu_models.main()
  capsys.readouterr()
  monkeypatch.setattr(tpu_models, 'code_of', lambda model: 'another')
  tpu_models.main()
  said = capsys.readouterr().out
  assert 'crossvit_small_240, 128 images a chip, plain: kept, of older code' in said
  assert said.endswith(' * |\n')
  assert len(made) == 2
  a_file_of_reports(monkeypatch, tmp_path, '--anew')
  tpu_models.main()
  assert 'older code' not in capsys.readouterr().out
  kept = json.loads(file.read_text())['crossvit_small_240']
  assert [each['code'] for each in kept] == ['another', 'another']


def test_a_report_of_another_compiler_says_of_which():
  record = {'code': 'now', 'libtpu': '0.0.1'}
  assert tpu_models.older(record, 'now') == 'libtpu 0.0.1'
  assert tpu_models.older({}, 'now') == 'older code, libtpu unknown'


def test_the_version_of_the_code_is_of_what_a_model_is_made_of(monkeypatch):
  code = tpu_models.code_of('crossvit_tiny_240')
  assert code == tpu_models.code_of.__wrapped__('crossvit_small_240')
  assert code != tpu_models.code_of('biformer_tiny')
  read = tpu_models.pathlib.Path.read_text

  def with_a_change(to):
    def read_text(path):
      return read(path) + (to if path.parts[-2:] == ('layers', 'mlp.py') else '')

    monkeypatch.setattr(tpu_models.pathlib.Path, 'read_text', read_text)
    return tpu_models.code_of.__wrapped__('crossvit_tiny_240')

  assert with_a_change('\n# A comment.\n') == code
  assert with_a_change('\nWIDTH = 3\n') != code


@pytest.mark.parametrize('name', ['crossvit_base_240', 'biformer_small', 'mmvit_base_audio'])
def test_the_reports_in_the_repository_are_of_the_commands_that_it_would_give(name):
  kept = json.loads(tpu_models.RECORDS.read_text())
  arguments = tpu_models.argparse.Namespace(topology='v5e:4x4', effort=0.0, anew=False)
  assert tpu_models.Recipe(name, kept, arguments).records
