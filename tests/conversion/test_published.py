"""Downloads of published weights, against a server on loopback that misbehaves on demand."""

import errno
import pathlib

import pytest

from crossattn_jax.conversion import published


def test_a_cut_connection_is_resumed_where_it_broke(server, tmp_path):
  server.cut_after = 10_000
  path = tmp_path / 'model.safetensors'
  published.download(server.url, path)
  assert path.read_bytes() == server.content
  assert len(server.content) > 30_000
  assert server.requests == [
    None,
    *(f'bytes={n}-' for n in range(10_000, len(server.content), 10_000)),
  ]
  assert {file.suffix for file in tmp_path.iterdir()} == {'.safetensors', '.lock'}


def test_a_later_run_continues_what_an_earlier_one_left(server, tmp_path):
  (tmp_path / 'model.safetensors.part').write_bytes(server.content[:5000])
  published.download(server.url, tmp_path / 'model.safetensors')
  assert server.requests == ['bytes=5000-']
  assert (tmp_path / 'model.safetensors').read_bytes() == server.content


def test_a_server_without_ranges_starts_over(server, tmp_path):
  server.ranges = False
  (tmp_path / 'model.safetensors.part').write_bytes(b'x' * 5000)
  published.download(server.url, tmp_path / 'model.safetensors')
  assert (tmp_path / 'model.safetensors').read_bytes() == server.content


def test_a_file_that_changed_meanwhile_starts_over(server, tmp_path):
  (tmp_path / 'model.safetensors.part').write_bytes(b'x' * 5000)
  (tmp_path / 'model.safetensors.part.etag').write_text('"older"')
  published.download(server.url, tmp_path / 'model.safetensors')
  assert (tmp_path / 'model.safetensors').read_bytes() == server.content


def test_a_rest_that_is_too_long_starts_over(server, tmp_path):
  (tmp_path / 'model.safetensors.part').write_bytes(b'x' * (len(server.content) + 1))
  published.download(server.url, tmp_path / 'model.safetensors')
  assert (tmp_path / 'model.safetensors').read_bytes() == server.content


def test_a_connection_that_brings_nothing_is_given_up(server, tmp_path):
  server.cut_after = 0
  with pytest.raises(published.DownloadError, match='the connection was cut'):
    published.download(server.url, tmp_path / 'model.safetensors')
  assert len(server.requests) == 4


def test_a_missing_file_is_not_asked_for_again(server, tmp_path):
  server.status = 404
  path = tmp_path / 'model.safetensors'
  with pytest.raises(published.DownloadError, match=rf'404 .*put it at {path}'):
    published.download(server.url, path)
  assert len(server.requests) == 1


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
      published.download(server.url, path)
  assert error.value.errno == errno.ENOSPC
  assert str(path) in str(error.value)
  assert not path.exists()
  published.download(server.url, path)
  assert server.requests == [None, 'bytes=5000-']
  assert path.read_bytes() == server.content


def test_the_files_are_those_of_the_release():
  official = published.SOURCES['official']
  release = 'https://github.com/IBM/CrossViT/releases/download/weights-0.1'
  assert official['crossvit_15_dagger_408'] == f'{release}/crossvit_15_dagger_384.pth'
  assert official['crossvit_15_dagger_384'] == official['crossvit_15_dagger_408']
  timm = published.SOURCES['timm']['crossvit_9_dagger_224']
  hub = 'https://huggingface.co/timm/crossvit_9_dagger_240.in1k'
  assert timm == f'{hub}/resolve/main/model.safetensors'
  crossvit = {name for name in official if name.startswith('crossvit')}
  assert crossvit == {name for name in published.SOURCES['timm'] if name.startswith('crossvit')}
  assert len(crossvit) == 22


def test_the_cache_is_where_the_environment_says(monkeypatch):
  monkeypatch.setenv('CROSSATTN_JAX_CACHE', '/somewhere')
  assert published.default_cache_dir() == pathlib.Path('/somewhere')
  monkeypatch.delenv('CROSSATTN_JAX_CACHE')
  monkeypatch.setenv('XDG_CACHE_HOME', '/cache')
  assert published.default_cache_dir() == pathlib.Path('/cache/crossattn_jax')
