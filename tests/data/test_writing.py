"""Data sets that are made here are written once, or it is said why not."""

import subprocess
import sys

import pytest

from crossattn_jax.data import sources
from crossattn_jax.data.classification import digits


def test_a_full_disk_is_named_and_what_to_do(tmp_path):
  program = f"""
import resource
from crossattn_jax.data import sources
from crossattn_jax.data.classification import digits
resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, 2**15))
try:
  digits.prepare({str(tmp_path)!r})
except sources.NotPreparedError as error:
  print(error)
"""
  result = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert f"cannot write data set 'digits' to {tmp_path}" in result.stdout
  assert 'File too large; make room there' in result.stdout
  assert '--config.dataset.data_dir=FOLDER' in result.stdout


def test_a_folder_that_is_a_file_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(sources.NotPreparedError, match='Not a directory; make room'):
    digits.prepare(tmp_path / 'file')
