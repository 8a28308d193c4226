"""A small file of a run is never half-written."""

import errno

from etils import epath
import pytest

from crossattn_jax.training import files


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
  path = epath.Path(tmp_path / 'config.json')
  files.replace_text(path, 'first')
  write = type(path).write_text

  def write_half(self, text, *arguments, **options):
    write(self, text[: len(text) // 2], *arguments, **options)
    raise OSError(errno.ENOSPC, 'No space left on device', str(self))

  monkeypatch.setattr(type(path), 'write_text', write_half)
  with pytest.raises(OSError, match='No space left'):
    files.replace_text(path, 'second')
  assert path.read_text() == 'first'
  monkeypatch.undo()
  files.replace_text(path, 'second')
  assert [path.read_text(), *(each.name for each in tmp_path.iterdir())] == [
    'second',
    'config.json',
  ]
