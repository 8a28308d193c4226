"""Variables files: self-describing, exact, never half written."""

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from crossattn_jax.models import variables_io

VARIABLES = {
  'params': {
    'dense': {
      'kernel': np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
      'bias': jnp.ones(3, jnp.bfloat16),
    },
    'scale': np.float64(2.5).reshape(()),
  },
  'batch_stats': {'norm': {'mean': np.zeros(3, np.float32)}},
}


def test_everything_comes_back_to_the_bit(tmp_path):
  path = tmp_path / 'model.safetensors'
  overrides = {'num_classes': 10, 'widths': (8, 16), 'fusion': 'none'}
  variables_io.save_variables(path, VARIABLES, 'crossvit_tiny_240', overrides, ['cat', 'dog'])
  assert variables_io.is_variables_file(path)
  name, read, variables, class_names = variables_io.load_variables(path)
  assert class_names == ('cat', 'dog')
  assert name == 'crossvit_tiny_240'
  assert read == {'num_classes': 10, 'widths': [8, 16], 'fusion': 'none'}
  dense = variables['params']['dense']
  np.testing.assert_array_equal(dense['kernel'], VARIABLES['params']['dense']['kernel'])
  assert dense['bias'].dtype == jnp.bfloat16
  assert variables['params']['scale'].shape == ()
  assert variables['params']['scale'].dtype == np.float64
  assert set(variables) == {'params', 'batch_stats'}


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
  path = tmp_path / 'model.safetensors'
  variables_io.save_variables(path, VARIABLES, 'a')

  def full(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(safetensors.numpy, 'save_file', full)
  with pytest.raises(OSError, match='No space left'):
    variables_io.save_variables(path, VARIABLES, 'b')
  assert variables_io.load_variables(path).name == 'a'
  assert [file.name for file in tmp_path.iterdir()] == ['model.safetensors']


def test_overrides_that_json_cannot_hold_are_refused(tmp_path):
  with pytest.raises(ValueError, match='plain JSON values'):
    variables_io.save_variables(tmp_path / 'x', VARIABLES, 'a', {'dtype': jnp.bfloat16})


def test_other_files_are_refused_with_the_next_step(tmp_path):
  foreign = tmp_path / 'torch.safetensors'
  safetensors.numpy.save_file({'w': np.zeros(2)}, foreign)
  assert not variables_io.is_variables_file(foreign)
  with pytest.raises(ValueError, match=r'crossattn_jax\.parity convert'):
    variables_io.load_variables(foreign)
  with pytest.raises(FileNotFoundError, match='no such variables file'):
    variables_io.load_variables(tmp_path / 'missing.safetensors')


def test_a_truncated_file_is_refused(tmp_path):
  path = tmp_path / 'model.safetensors'
  variables_io.save_variables(path, VARIABLES, 'a')
  path.write_bytes(path.read_bytes()[:-4])
  assert not variables_io.is_variables_file(path)
  with pytest.raises(ValueError, match='copy it again'):
    variables_io.load_variables(path)
