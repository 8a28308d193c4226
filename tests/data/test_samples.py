"""The files that ship with the library are those that it makes."""

import numpy as np
from PIL import Image

from crossattn_jax.data import samples
from crossattn_jax.data.scene_points import point_files


def test_samples_are_small_and_those_that_are_made(tmp_path):
  samples.write(tmp_path)
  names, made = (
    sorted(path.relative_to(folder) for path in folder.rglob('*') if path.is_file())
    for folder in (samples.FOLDER, tmp_path)
  )
  assert names == made
  assert sum((samples.FOLDER / name).stat().st_size for name in names) < 220_000
  for name in names:
    if name.suffix in ('.jpg', '.png'):
      ours, new = (
        np.asarray(Image.open(folder / name), int) for folder in (samples.FOLDER, tmp_path)
      )
      assert np.abs(ours - new).max() <= 4  # Codecs may round apart.
    elif name.suffix == '.ply':
      ours, new = (point_files.read(folder / name) for folder in (samples.FOLDER, tmp_path))
      np.testing.assert_allclose(ours.points, new.points, atol=1.1e-3)
      np.testing.assert_allclose(ours.colors.astype(int), new.colors, atol=1)
    else:
      assert (samples.FOLDER / name).read_bytes() == (tmp_path / name).read_bytes()
