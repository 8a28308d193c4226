"""What replay says about a hand-written case, right and wrong."""

import json
import re

import numpy as np
import pytest

from crossattn_jax.parity import __main__, adapters, cases, replay

pytestmark = pytest.mark.usefixtures('stand_in')


def rows_of(path, precision='float64'):
  result = replay.replay_case(cases.read_case(path), precision)
  assert not result.error, result.error
  return {row.array: row for row in result.rows}


def test_a_faithful_module_passes_every_array(case_path, precision):
  rows = rows_of(case_path, precision)
  assert set(rows) == {
    'tap/fc',
    'out/y',
    'out/largest',
    'grad_input/x',
    'grad_param/fc.weight',
    'grad_param/fc.bias',
    'grad_param/scale',
    'parameter_count',
  }
  assert all(row.passed for row in rows.values())
  assert rows['out/y'].error < (1e-14 if precision == 'float64' else 1e-6)


@pytest.mark.parametrize('array', ['out/y', 'sub:3/tap/fc', 'grad_input/x'])
def test_a_wrong_value_fails_its_array_alone(edit_case, array):
  def change(manifest, arrays):
    arrays[array] = arrays[array] * (1 + 1e-7)

  rows = rows_of(edit_case(change))
  assert [name for name, row in rows.items() if not row.passed] == [array.removeprefix('sub:3/')]


@pytest.mark.parametrize('array', ['out/y', 'grad_input/x'])
def test_what_was_recorded_in_float32_is_held_to_its_precision(edit_case, array):
  def change(manifest, arrays):
    arrays[array] = arrays[array] * (1 + 1e-7)
    manifest['recorded_in_float32'] = [array]

  assert rows_of(edit_case(change))[array].passed


def test_float32_judges_by_pytorchs_own_error(edit_case):
  def change(manifest, arrays):
    arrays['out/y'] = arrays['out/y'] * (1 + 1e-5)
    arrays['grad_input/x'] = arrays['grad_input/x'] * (1 + 1e-5)

  rows = rows_of(edit_case(change), 'float32')
  assert not rows['out/y'].passed
  assert rows['grad_input/x'].passed

  edit_case(lambda manifest, arrays: manifest['float32_relative_error'].update({'out/y': 5e-6}))
  assert rows_of(edit_case(lambda manifest, arrays: None), 'float32')['out/y'].passed


def test_a_wrong_parameter_gradient_fails(edit_case):
  def change(manifest, arrays):
    manifest['grad_param']['fc.bias'][1] *= -1

  rows = rows_of(edit_case(change))
  assert [name for name, row in rows.items() if not row.passed] == ['grad_param/fc.bias']


def test_a_gradient_that_is_negligible_in_its_case_passes(edit_case):
  def change(manifest, arrays):
    largest = max(norm for norm, _ in manifest['grad_param'].values())
    manifest['grad_param']['fc.bias'][0] += 0.5e-7 * largest

  row = rows_of(edit_case(change))['grad_param/fc.bias']
  assert row.passed
  assert row.error > row.bound
  assert 'negligible' in row.note


def test_integer_results_must_be_equal(edit_case):
  def change(manifest, arrays):
    arrays['out/largest'][0] += 1

  row = rows_of(edit_case(change), 'float32')['out/largest']
  assert not row.passed
  assert row.note == '1 of 2 differ'


def test_the_parameter_count_is_checked(edit_case):
  rows = rows_of(edit_case(lambda manifest, arrays: manifest.update(parameter_count=17)))
  assert not rows['parameter_count'].passed
  assert rows['parameter_count'].note == '16 parameters, recorded 17'


def test_a_tolerance_from_the_notes_is_absolute(edit_case, monkeypatch):
  make_adapter = adapters._adapters['stand_in', 'scaled']

  def tolerant(manifest):
    adapter = make_adapter(manifest)
    return adapters.Adapter(**{**vars(adapter), 'tolerances': {'out/y': 0.01}})

  monkeypatch.setitem(adapters._adapters, ('stand_in', 'scaled'), tolerant)
  shift = [0.009]
  path = edit_case(lambda manifest, arrays: arrays.update({'out/y': arrays['out/y'] + shift[0]}))
  assert rows_of(path)['out/y'].passed
  assert not rows_of(edit_case(lambda m, a: a.update({'out/y': a['out/y'] + 0.002})))[
    'out/y'
  ].passed


def test_an_output_without_gradient_is_left_out_of_the_scalar(edit_case, monkeypatch):
  make_adapter = adapters._adapters['stand_in', 'scaled']

  def change(manifest, arrays):
    for name, shape in (('out/double', [2, 3]),):
      manifest['shapes'][name] = shape
      manifest['float32_relative_error'][name] = 1e-7
      arrays[name] = 2 * arrays['out/y']

  def with_another_output(without_gradient):
    def make(manifest):
      manifest = {**manifest, 'shapes': dict(manifest['shapes'])}
      adapter = make_adapter(manifest)

      def run(variables, inputs):
        outputs, taps = adapter.run(variables, inputs)
        return {**outputs, 'double': 2 * outputs['y']}, taps

      return adapters.Adapter(
        **{**vars(adapter), 'run': run, 'without_gradient': frozenset(without_gradient)}
      )

    return make

  path = edit_case(change)
  monkeypatch.setitem(adapters._adapters, ('stand_in', 'scaled'), with_another_output(['double']))
  assert all(row.passed for row in rows_of(path).values())
  monkeypatch.setitem(adapters._adapters, ('stand_in', 'scaled'), with_another_output([]))
  assert not rows_of(path)['grad_input/x'].passed


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda m: m.update(module='other'), "no adapter for module 'other' of system 'stand_in'"),
    (lambda m: m['state'][0].update(shape=[5, 4]), 'misshapen: fc.weight is (5, 4)'),
  ],
)
def test_a_case_that_cannot_run_says_why(edit_case, change, message):
  path = edit_case(lambda manifest, arrays: change(manifest))
  result = replay.replay_case(cases.read_case(path), 'float64')
  assert not result.passed
  assert message in result.error


def test_outputs_are_those_that_the_case_names(edit_case):
  def change(manifest, arrays):
    manifest['shapes'].pop('out/largest')

  assert 'out/largest' not in rows_of(edit_case(change))

  def ask_for_more(manifest, arrays):
    manifest['shapes']['out/other'] = manifest['shapes']['out/y']
    manifest['float32_relative_error']['out/other'] = 1e-7
    arrays['out/other'] = arrays['out/y']

  result = replay.replay_case(cases.read_case(edit_case(ask_for_more)), 'float64')
  assert 'the adapter has no output other; it has fc, y, largest' in result.error


def test_an_argument_that_the_adapter_does_not_know_is_refused(edit_case):
  path = edit_case(lambda manifest, arrays: manifest['constructor'].update(width=3))
  result = replay.replay_case(cases.read_case(path), 'float64')
  assert result.error.endswith(
    'stand_in, scaled: its adapter does not know width; it knows no argument'
  )


def test_a_wrong_tap_path_lists_the_submodules_that_ran(case_path, monkeypatch):
  module_adapter = adapters.module_adapter

  def misplaced(*args, **kwargs):
    return module_adapter(*args, **{**kwargs, 'taps': {'fc': 'linear'}})

  monkeypatch.setattr(adapters, 'module_adapter', misplaced)
  result = replay.replay_case(cases.read_case(case_path), 'float64')
  assert "tap 'fc': no submodule 'linear' ran __call__; these ran: " in result.error
  assert 'dense' in result.error


def test_the_command_counts_cases_and_exits_with_the_verdict(tmp_path, case_path, capsys):
  results = tmp_path / 'results.json'
  assert __main__.main(['replay', str(case_path), '--json', str(results)]) == 0
  output = capsys.readouterr().out
  assert output.splitlines()[-1] == '1 passed, 0 failed'
  assert 'out/y' in output
  written = json.loads(results.read_text())
  assert (written['passed'], written['failed']) == (1, 0)
  assert [result['precision'] for result in written['results']] == ['float64', 'float32']


def test_a_summary_is_a_line_per_case_and_precision(case_path, capsys):
  assert __main__.main(['replay', '--summary', str(case_path)]) == 0
  *lines, _ = capsys.readouterr().out.splitlines()
  assert [line.split()[1] for line in lines] == ['float64:', 'float32:']
  for line in lines:
    assert re.search(r': passed in .* s, (\d+) of \1 arrays pass, at most \d+% of the bound', line)


def test_one_broken_case_fails_and_the_others_go_on(tmp_path, case_path, capsys):
  manifest = json.loads(case_path.read_text())
  for name, change in (('no_adapter', {'module': 'other'}), ('a_truncated', {})):
    (tmp_path / f'{name}.json').write_text(json.dumps({**manifest, 'case': name, **change}))
    arrays = case_path.with_suffix('.npz').read_bytes()
    kept = 100 if name == 'a_truncated' else len(arrays)
    (tmp_path / f'{name}.npz').write_bytes(arrays[:kept])
  assert __main__.main(['replay', str(tmp_path), '--precision', 'float64']) == 1
  output = capsys.readouterr().out
  assert output.splitlines()[-1] == '1 passed, 2 failed'
  assert 'AdapterNotFound' in output
  assert 'copy it again' in output


def test_a_wrong_path_is_an_error_of_its_own(tmp_path, capsys):
  assert __main__.main(['replay', str(tmp_path / 'nothing')]) == 2
  assert 'no such file or folder' in capsys.readouterr().err


def test_figures_that_are_not_finite_are_written_as_json(tmp_path, edit_case):
  path = edit_case(lambda m, a: a['out/y'].__setitem__((0, 0), np.nan))
  results = tmp_path / 'results.json'
  assert __main__.main(['replay', str(path), '--json', str(results)]) == 1
  rows = json.loads(results.read_text())['results'][0]['rows']
  assert {row['array']: row['error'] for row in rows}['out/y'] == 'inf'
