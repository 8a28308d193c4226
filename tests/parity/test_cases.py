"""Reading recorded cases."""

import zlib

import numpy as np
import pytest

from crossattn_jax.parity import cases


def test_generated_tensors_are_the_documented_ones():
  random = np.random.RandomState(zlib.crc32(b'3/input/x'))
  expected = np.abs(0.5 + 2 * random.standard_normal((2, 5))).astype(np.float32)
  actual = cases.generate(3, 'input/x', (2, 5), mean=0.5, std=2.0, abs=True)
  assert actual.dtype == np.float32
  np.testing.assert_array_equal(actual, expected)


def test_a_case_reads_back_with_its_weights_and_without_buffers(case_path):
  case = cases.read_case(case_path)
  assert list(case.weights) == ['fc.weight', 'fc.bias', 'scale']
  assert case.weights['scale'].item() > 0
  assert case.inputs['x'].shape == (2, 4)
  assert set(case.names('out')) == {'y', 'largest'}


def test_sub_sampled_arrays_compare_every_kth_element(case_path):
  recorded = cases.read_case(case_path).recorded['tap/fc']
  assert (recorded.stride, recorded.shape, recorded.values.shape) == (3, (2, 3), (2,))
  whole = np.arange(6.0).reshape(2, 3)
  np.testing.assert_array_equal(recorded.sample(whole), [0, 3])


def test_a_stored_input_keeps_its_dtype(edit_case):
  def change(manifest, arrays):
    manifest['inputs']['labels'] = {'kind': 'stored', 'shape': [2], 'dtype': 'int64'}
    arrays['input/labels'] = np.array([4, 2])

  inputs = cases.read_case(edit_case(change)).inputs
  assert inputs['labels'].dtype == np.int64
  np.testing.assert_array_equal(inputs['labels'], [4, 2])


def test_missing_arrays_are_named(case_path):
  case_path.with_suffix('.npz').unlink()
  with pytest.raises(cases.CaseError, match=r'scaled\.npz beside it'):
    cases.read_case(case_path)


def test_truncated_arrays_are_refused(case_path):
  arrays = case_path.with_suffix('.npz')
  arrays.write_bytes(arrays.read_bytes()[:200])
  with pytest.raises(cases.CaseError, match=r'scaled\.npz: cannot be read.*copy it again'):
    cases.read_case(case_path)


def test_truncated_manifest_is_refused(case_path):
  case_path.write_text(case_path.read_text()[:100])
  with pytest.raises(cases.CaseError, match=r'scaled\.json: cannot be read as a JSON manifest'):
    cases.read_case(case_path)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda m, a: m.pop('seed'), 'lacks seed'),
    (lambda m, a: m['state'][0].update(kind='weight'), "'fc.weight' has kind 'weight'"),
    (lambda m, a: m['inputs']['x'].update(kind='random'), "'x' has kind 'random'"),
    (lambda m, a: m.update(mode='test'), "mode is 'test'"),
    (lambda m, a: m['inputs']['x'].update(kind='stored'), 'lacks input/x'),
    (lambda m, a: a.pop('out/y'), 'lacks out/y'),
    (lambda m, a: a.update({'out/y': np.zeros(3)}), r'out/y holds \(3,\)'),
    (lambda m, a: m['float32_relative_error'].pop('out/y'), 'no float32_relative_error for out/y'),
  ],
  ids=lambda value: value if isinstance(value, str) else '',
)
def test_what_is_wrong_with_a_case_is_named(edit_case, change, message):
  with pytest.raises(cases.CaseError, match=message):
    cases.read_case(edit_case(change))


def test_folders_are_searched_recursively_and_every_case_is_found_once(tmp_path, case_path):
  (tmp_path / 'results.json').write_text('{"passed": 1}')
  paths = [tmp_path, case_path, case_path.with_suffix('.npz')]
  assert cases.find_manifests(paths) == [case_path]


def test_a_path_without_cases_is_an_error(tmp_path):
  with pytest.raises(cases.CaseError, match='no recorded case'):
    cases.find_manifests([tmp_path])
  with pytest.raises(cases.CaseError, match='no such file or folder'):
    cases.find_manifests([tmp_path / 'missing.json'])
