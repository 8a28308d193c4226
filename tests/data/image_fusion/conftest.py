import numpy as np
from PIL import Image
import pytest


@pytest.fixture(scope='session')
def write_images():
  def write(folder, names, size=(20, 24), suffix='png'):
    """Images of which the visible and the infrared one of a name have related levels."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
      rng = np.random.default_rng(number)
      pixels = rng.integers(0, 256, size).astype(np.uint8)
      Image.fromarray(pixels).save(folder / f'{name}.{suffix}')

  return write
