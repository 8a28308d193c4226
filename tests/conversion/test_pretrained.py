"""Published weights: downloads against a server on loopback that misbehaves on demand."""

import errno
import hashlib
import http.server
import pathlib
import re
import threading

import jax
import numpy as np
import pytest
import safetensors.numpy

import crossattn_jax
from crossattn_jax.conversion import convert, correspondence, mapping, pretrained, published
from crossattn_jax.models import registry

NAME = 'crossvit_tiny_240'
SMALL = {'widths': (8, 16), 'num_heads': (2, 2), 'depths': ((1, 1, 0),), 'image_size': (48, 48)}


class Server:
  """Serves `content` at every path.

  Attributes:
    content: the file.
    cut_after: bytes after which the connection is dropped; None never.
    status: answered in place of the file, unless None.
    ranges: whether byte ranges are honoured.
    tag: the file's ETag.
    requests: the Range header of each request.
  """

  def __init__(self, content):
    self.content, self.cut_after, self.status = content, None, None
    self.ranges, self.tag, self.requests = True, '"one"', []
    server = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        wanted = self.headers.get('Range')
        server.requests.append(wanted)
        if server.status is not None:
          self.send_error(server.status)
          return
        start = 0
        same = self.headers.get('If-Range', server.tag) == server.tag
        if wanted and server.ranges and same:
          start = int(re.fullmatch(r'bytes=(\d+)-', wanted)[1])
          if start >= len(server.content):
            self.send_error(416)
            return
          self.send_response(206)
        else:
          self.send_response(200)
        body = server.content[start:]
        self.send_header('Content-Length', str(len(body)))
        self.send_header('ETag', server.tag)
        self.end_headers()
        self.wfile.write(body if server.cut_after is None else body[: server.cut_after])

      def log_message(self, *args):
        pass

    self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self.url = f'http://127.0.0.1:{self.http.server_port}/model.safetensors'
    threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture(scope='module')
def state():
  converter, _ = correspondence.model_mapping(NAME, registry.create_model(NAME, **SMALL))
  random = np.random.default_rng(0)
  return {
    entry.torch_key: random.normal(size=entry.torch_shape).astype(np.float32)
    for entry in converter.entries
  }


@pytest.fixture
def server(state, monkeypatch):
  # Proxies of the environment must not see these requests.
  monkeypatch.setenv('no_proxy', '*')
  monkeypatch.setattr(published, '_WAIT_SECONDS', 0.01)
  server = Server(safetensors.numpy.save(state))
  monkeypatch.setitem(published.SOURCES['timm'], NAME, published.Weights(server.url))
  yield server
  server.http.shutdown()
  server.http.server_close()


@pytest.fixture
def small_model(monkeypatch):
  """Makes the registered model small, so that its checkpoint is."""
  create = registry.create_model
  monkeypatch.setattr(registry, 'create_model', lambda name, **kw: create(name, **{**SMALL, **kw}))


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


def test_a_cut_connection_is_resumed_where_it_broke(server, tmp_path):
  server.cut_after = 10_000
  path = tmp_path / 'model.safetensors'
  published.download(published.Weights(server.url), path)
  assert path.read_bytes() == server.content
  assert len(server.content) > 30_000
  assert server.requests == [
    None,
    *(f'bytes={n}-' for n in range(10_000, len(server.content), 10_000)),
  ]
  assert {file.suffix for file in tmp_path.iterdir()} == {'.safetensors', '.lock'}


def test_a_later_run_continues_what_an_earlier_one_left(server, tmp_path):
  (tmp_path / 'model.safetensors.part').write_bytes(server.content[:5000])
  published.download(published.Weights(server.url), tmp_path / 'model.safetensors')
  assert server.requests == ['bytes=5000-']
  assert (tmp_path / 'model.safetensors').read_bytes() == server.content


def test_a_server_without_ranges_starts_over(server, tmp_path):
  server.ranges = False
  (tmp_path / 'model.safetensors.part').write_bytes(b'x' * 5000)
  published.download(published.Weights(server.url), tmp_path / 'model.safetensors')
  assert (tmp_path / 'model.safetensors').read_bytes() == server.content


def test_a_file_that_changed_meanwhile_starts_over(server, tmp_path):
  (tmp_path / 'model.safetensors.part').write_bytes(b'x' * 5000)
  (tmp_path / 'model.safetensors.part.etag').write_text('"older"')
  published.download(published.Weights(server.url), tmp_path / 'model.safetensors')
  assert (tmp_path / 'model.safetensors').read_bytes() == server.content


def test_a_rest_that_is_too_long_starts_over(server, tmp_path):
  (tmp_path / 'model.safetensors.part').write_bytes(b'x' * (len(server.content) + 1))
  published.download(published.Weights(server.url), tmp_path / 'model.safetensors')
  assert (tmp_path / 'model.safetensors').read_bytes() == server.content


def test_a_connection_that_brings_nothing_is_given_up(server, tmp_path):
  server.cut_after = 0
  with pytest.raises(published.DownloadError, match='the connection was cut'):
    published.download(published.Weights(server.url), tmp_path / 'model.safetensors')
  assert len(server.requests) == 4


@pytest.mark.parametrize('known', ['size', 'sha256'])
def test_wrong_content_is_deleted_and_named(server, tmp_path, known):
  right = {'size': len(server.content), 'sha256': hashlib.sha256(server.content).hexdigest()}
  weights = published.Weights(server.url, **right)
  published.download(weights, tmp_path / 'right')
  server.content = server.content + b'!' if known == 'size' else server.content[:-1] + b'!'
  with pytest.raises(published.DownloadError, match=rf'served has .*expected {right[known]}'):
    published.download(weights, tmp_path / 'wrong')
  assert not [file for file in tmp_path.iterdir() if file.name.startswith('wrong.part')]
  assert not (tmp_path / 'wrong').exists()


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


def test_a_missing_file_is_not_asked_for_again(server, tmp_path):
  server.status = 404
  path = tmp_path / 'model.safetensors'
  with pytest.raises(published.DownloadError, match=rf'404 .*put it at {path}'):
    published.download(published.Weights(server.url), path)
  assert len(server.requests) == 1


def test_offline_it_says_which_file_to_put_where(tmp_path, monkeypatch, small_model):
  monkeypatch.setenv('no_proxy', '*')
  monkeypatch.setattr(published, '_WAIT_SECONDS', 0.01)
  url = 'http://127.0.0.1:9/model.safetensors'  # nobody listens at the discard port
  monkeypatch.setitem(published.SOURCES['timm'], NAME, published.Weights(url))
  path = tmp_path / 'downloads' / 'model.safetensors'
  with pytest.raises(published.DownloadError) as error:
    pretrained.load_pretrained(NAME, 'timm', cache_dir=tmp_path)
  assert url in str(error.value)
  assert f'put it at {path}' in str(error.value)


def test_a_file_put_by_hand_is_used(tmp_path, state, monkeypatch, small_model):
  weights = published.Weights('http://127.0.0.1:9/model.safetensors')
  monkeypatch.setitem(published.SOURCES['timm'], NAME, weights)
  (tmp_path / 'downloads').mkdir()
  safetensors.numpy.save_file(state, tmp_path / 'downloads' / weights.file_name)
  _, variables = pretrained.load_pretrained(NAME, 'timm', cache_dir=tmp_path)
  np.testing.assert_array_equal(variables['params']['head_0']['kernel'], state['head.0.weight'].T)


def test_a_full_disk_is_named_and_what_arrived_is_kept(server, tmp_path, monkeypatch):
  class FullDisk:
    """A file that takes 5000 bytes."""

    def __init__(self, file):
      self.file = file

    def __enter__(self):
      return self

    def __exit__(self, *exception):
      self.file.close()

    def write(self, data):
      self.file.write(data[:5000])
      raise OSError(errno.ENOSPC, 'No space left on device')

  def full_open(path, mode='r'):
    file = open(path, mode)  # noqa: SIM115
    return FullDisk(file) if str(path).endswith('.part') else file

  path = tmp_path / 'model.safetensors'
  with monkeypatch.context() as patch:
    patch.setattr(published, 'open', full_open, raising=False)
    with pytest.raises(published.DownloadError, match='no space left') as error:
      published.download(published.Weights(server.url), path)
  assert error.value.errno == errno.ENOSPC
  assert str(path) in str(error.value)
  assert not path.exists()
  published.download(published.Weights(server.url), path)
  assert server.requests == [None, 'bytes=5000-']
  assert path.read_bytes() == server.content


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


def test_the_files_are_those_of_the_release():
  official = published.SOURCES['official']
  release = 'https://github.com/IBM/CrossViT/releases/download/weights-0.1'
  assert official['crossvit_15_dagger_408'].url == f'{release}/crossvit_15_dagger_384.pth'
  assert official['crossvit_15_dagger_384'] == official['crossvit_15_dagger_408']
  timm = published.SOURCES['timm']['crossvit_9_dagger_224']
  hub = 'https://huggingface.co/timm/crossvit_9_dagger_240.in1k'
  assert timm.url == f'{hub}/resolve/main/model.safetensors'
  crossvit = {name for name in official if name.startswith('crossvit')}
  assert crossvit == {name for name in published.SOURCES['timm'] if name.startswith('crossvit')}
  assert len(crossvit) == 22


def test_the_cache_is_where_the_environment_says(monkeypatch):
  monkeypatch.setenv('CROSSATTN_JAX_CACHE', '/somewhere')
  assert published.default_cache_dir() == pathlib.Path('/somewhere')
  monkeypatch.delenv('CROSSATTN_JAX_CACHE')
  monkeypatch.setenv('XDG_CACHE_HOME', '/cache')
  assert published.default_cache_dir() == pathlib.Path('/cache/crossattn_jax')


def test_mapping_errors_are_what_a_wrong_own_file_raises(tmp_path, small_model):
  path = tmp_path / 'other.safetensors'
  safetensors.numpy.save_file({'fc.weight': np.zeros((2, 2), np.float32)}, path)
  with pytest.raises(mapping.MappingError, match=r'unexpected: fc\.weight'):
    pretrained.load_pretrained(NAME, path)
