"""Where compiled programs are kept, and that a person decides."""

import jax
import pytest

from crossattn_jax.conversion import published
from crossattn_jax.training import program_cache


@pytest.fixture(autouse=True)
def settings():
  """Puts back what jax was told."""
  names = (
    'jax_compilation_cache_dir',
    'jax_compilation_cache_max_size',
    'jax_enable_compilation_cache',
    'jax_persistent_cache_min_compile_time_secs',
  )
  before = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache_folder(tmp_path, monkeypatch):
  monkeypatch.setenv(published.CACHE_VARIABLE, str(tmp_path))
  jax.config.update('jax_compilation_cache_dir', None)
  assert program_cache.enable() == tmp_path / 'programs'
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'programs')
  assert (tmp_path / 'programs').is_dir()


@pytest.mark.parametrize(('folder', 'enabled'), [('/tmp/mine', True), (None, False)])
def test_what_a_person_chose_stays(tmp_path, monkeypatch, folder, enabled):
  monkeypatch.setenv(published.CACHE_VARIABLE, str(tmp_path / 'unused'))
  jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_enable_compilation_cache', enabled)
  assert program_cache.enable() is None
  assert jax.config.jax_compilation_cache_dir == folder
  assert not (tmp_path / 'unused').exists()


def test_a_home_that_cannot_be_written_keeps_nothing(tmp_path, monkeypatch):
  (tmp_path / 'file').touch()
  monkeypatch.setenv(published.CACHE_VARIABLE, str(tmp_path / 'file'))
  jax.config.update('jax_compilation_cache_dir', None)
  assert program_cache.enable() is None
