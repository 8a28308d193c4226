import numpy as np
import pytest


@pytest.fixture(scope='session')
def write_split():
  def write(folder, split, images, repeat=1, regions=3, channels=4, captions=5):
    """Region files in which region r of image i holds i + r / 10 everywhere."""
    rows = np.repeat(np.arange(images), repeat)[:, None, None] + np.arange(regions)[:, None] / 10
    np.save(folder / f'{split}_ims.npy', np.tile(rows, (1, 1, channels)).astype(np.float32))
    lines = [f'Image {i} caption {c}\n' for i in range(images) for c in range(captions)]
    (folder / f'{split}_caps.txt').write_text(''.join(lines))

  return write
