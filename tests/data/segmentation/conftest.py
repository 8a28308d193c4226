import io

import numpy as np
from PIL import Image
import pytest


@pytest.fixture
def ade20k_dir(tmp_path):
  """Images of three sizes whose labels count the columns from 0."""
  for split in ('training', 'validation'):
    for kind in ('images', 'annotations'):
      (tmp_path / kind / split).mkdir(parents=True)
    for index, (height, width) in enumerate([(30, 50), (60, 32), (30, 47), (30, 50), (64, 64)]):
      noise = np.random.default_rng(index).integers(256, size=(height, width, 3), dtype=np.uint8)
      label = np.tile(np.arange(width, dtype=np.uint8), (height, 1))
      Image.fromarray(noise).save(tmp_path / 'images' / split / f'{index}.jpg')
      Image.fromarray(label).save(tmp_path / 'annotations' / split / f'{index}.png')
  return str(tmp_path)


@pytest.fixture(scope='session')
def encoded_label():
  """Bytes of an image file of an array or an image: PNG, or TIFF where PNG cannot hold it."""

  def encode(label):
    image = label if isinstance(label, Image.Image) else Image.fromarray(label)
    file = io.BytesIO()
    image.save(file, 'tiff' if image.mode in ('I', 'F') else 'png')
    return file.getvalue()

  return encode
