"""Models with weights by name: published ones, from a server on loopback, and own files."""

import jax
import numpy as np
import pytest
import safetensors.numpy

import crossattn_jax
from crossattn_jax.conversion import convert, mapping, pretrained, published

NAME = 'crossvit_tiny_240'


def test_downloads_converts_once_and_loads(server, state, small_model, tmp_path):
  model, variables = crossattn_jax.load_pretrained(NAME, 'timm', cache_dir=tmp_path)
  assert model.widths == (8, 16)
  np.testing.assert_array_equal(variables['params']['head_0']['kernel'], state['head.0.weight'].T)
  logits, _ = jax.eval_shape(model.apply, variables, np.zeros((1, 48, 48, 3), np.float32))
  assert logits.shape == (1, 1000)
  assert server.requests == [None]
  server.status = 503
  _, again = crossattn_jax.load_pretrained(NAME, 'timm', cache_dir=tmp_path)
  np.testing.assert_array_equal(again['params']['head_0']['kernel'], state['head.0.weight'].T)
  assert server.requests == [None]


def test_fields_of_the_model_can_be_changed(server, small_model, tmp_path):
  model, variables = pretrained.load_pretrained(
    NAME, 'timm', cache_dir=tmp_path, num_classes=3, image_size=(60, 60), drop_path_rate=0.2
  )
  assert (model.num_classes, model.image_size, model.drop_path_rate) == (3, (60, 60), 0.2)
  assert variables['params']['head_0']['kernel'].shape == (8, 3)
  assert variables['params']['embedding_0']['position_embedding'].shape == (1, 26, 8)


def test_what_is_no_checkpoint_is_deleted_and_named(server, small_model, tmp_path):
  server.content = b'<html>please log in</html>' * 100
  with pytest.raises(published.DownloadError, match='is not the timm checkpoint') as error:
    pretrained.load_pretrained(NAME, 'timm', cache_dir=tmp_path)
  assert server.url in str(error.value)
  assert not list(tmp_path.rglob('*.safetensors'))


def test_a_checkpoint_of_another_model_is_refused(server, small_model, tmp_path):
  server.content = safetensors.numpy.save({'fc.weight': np.zeros((2, 2), np.float32)})
  with pytest.raises(published.DownloadError, match=r'unexpected: fc\.weight'):
    pretrained.load_pretrained(NAME, 'timm', cache_dir=tmp_path)


def test_offline_it_says_which_file_to_put_where(tmp_path, monkeypatch, small_model):
  monkeypatch.setenv('no_proxy', '*')
  monkeypatch.setattr(published, '_WAIT_SECONDS', 0.01)
  url = 'http://127.0.0.1:9/model.safetensors'  # nobody listens at the discard port
  monkeypatch.setitem(published.SOURCES['timm'], NAME, url)
  path = tmp_path / 'downloads' / 'model.safetensors'
  with pytest.raises(published.DownloadError) as error:
    pretrained.load_pretrained(NAME, 'timm', cache_dir=tmp_path)
  assert url in str(error.value)
  assert f'put it at {path}' in str(error.value)


def test_a_file_put_by_hand_is_used(tmp_path, state, monkeypatch, small_model):
  url = 'http://127.0.0.1:9/model.safetensors'
  monkeypatch.setitem(published.SOURCES['timm'], NAME, url)
  (tmp_path / 'downloads').mkdir()
  safetensors.numpy.save_file(state, tmp_path / 'downloads' / 'model.safetensors')
  _, variables = pretrained.load_pretrained(NAME, 'timm', cache_dir=tmp_path)
  np.testing.assert_array_equal(variables['params']['head_0']['kernel'], state['head.0.weight'].T)


def test_own_files_are_loaded(tmp_path, state, small_model):
  checkpoint = tmp_path / 'checkpoint.safetensors'
  safetensors.numpy.save_file(state, checkpoint)
  _, variables = pretrained.load_pretrained(NAME, checkpoint)
  converted = tmp_path / 'converted.safetensors'
  convert.to_flax(NAME, state).save(converted)
  _, again = pretrained.load_pretrained(NAME, converted)
  for tree in (variables, again):
    np.testing.assert_array_equal(tree['params']['head_0']['kernel'], state['head.0.weight'].T)
  with pytest.raises(ValueError, match=f"holds variables of '{NAME}', not of 'crossvit_9_240'"):
    pretrained.load_pretrained('crossvit_9_240', converted)


def test_files_of_variables_are_fitted_too(tmp_path, state, small_model):
  path = tmp_path / 'converted.safetensors'
  convert.to_flax(NAME, state).save(path)
  kernel = state['patch_embed.0.proj.weight'].sum(1)
  for _ in range(2):
    model, variables = pretrained.load_pretrained(
      NAME, path, image_size=(96, 96), num_channels=1, num_classes=1000
    )
    embedding = variables['params']['embedding_0']
    assert embedding['position_embedding'].shape == (1, 65, 8)
    np.testing.assert_allclose(
      embedding['patch_embedding']['conv']['kernel'][..., 0, :],
      kernel.transpose(1, 2, 0),
      rtol=1e-6,
    )
    # As many classes as there are: they are kept.
    np.testing.assert_array_equal(variables['params']['head_0']['kernel'], state['head.0.weight'].T)
    image = np.zeros((1, 96, 96, 1), np.float32)
    assert jax.eval_shape(model.apply, variables, image)[0].shape == (1, 1000)


def test_wrong_requests_are_refused_before_any_download(tmp_path):
  with pytest.raises(ValueError, match='did you mean'):
    pretrained.load_pretrained('crosvit_tiny_240', cache_dir=tmp_path)
  with pytest.raises(ValueError, match="source is 'oficial'"):
    pretrained.load_pretrained(NAME, 'oficial', cache_dir=tmp_path)
  with pytest.raises(ValueError, match='no official weights are published'):
    pretrained.load_pretrained('crossvit_18_t2t_240', cache_dir=tmp_path)


def test_mapping_errors_are_what_a_wrong_own_file_raises(tmp_path, small_model):
  path = tmp_path / 'other.safetensors'
  safetensors.numpy.save_file({'fc.weight': np.zeros((2, 2), np.float32)}, path)
  with pytest.raises(mapping.MappingError, match=r'unexpected: fc\.weight'):
    pretrained.load_pretrained(NAME, path)
