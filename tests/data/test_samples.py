"""The files that ship with the library are those that it makes."""

import numpy as np
from PIL import Image

from crossattn_jax.data import samples


def test_samples_are_small_and_those_that_are_made(tmp_path):
  samples.write(tmp_path)
  names, made = (
    sorted(path.relative_to(folder) for path in folder.rglob('*') if path.is_file())
    for folder in (samples.FOLDER, tmp_path)
  )
  assert names == made
  assert sum((samples.FOLDER / name).stat().st_size for name in names) < 150_000
  for name in names:
    if name.suffix in ('.jpg', '.png'):
      ours, new = (
        np.asarray(Image.open(folder / name), int) for folder in (samples.FOLDER, tmp_path)
      )
      assert np.abs(ours - new).max() <= 4  # Codecs may round apart.
    else:
      assert (samples.FOLDER / name).read_bytes() == (tmp_path / name).read_bytes()
