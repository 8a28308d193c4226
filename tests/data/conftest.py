import io

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data.classification import batches as classification
from crossattn_jax.data.classification import digits


@pytest.fixture(scope='session')
def digits_dir(tmp_path_factory) -> str:
  data_dir = str(tmp_path_factory.mktemp('tfds'))
  digits.prepare(data_dir)
  return data_dir


@pytest.fixture
def digits_config(digits_dir):
  """The digits with every random operation that fits 8 x 8 pixels."""
  config = classification.default_config()
  config.name = 'digits'
  config.data_dir = digits_dir
  config.eval_split = 'test'
  config.image_size = (8, 8)
  config.mean = config.std = (0.5,)
  config.augmentation.padding = 1
  return config


def encode(pixels: np.ndarray, image_format: str = 'png') -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, image_format)
  return file.getvalue()


@pytest.fixture
def image_folder(tmp_path):
  """Writes data_dir/split/class/index.png, 12 x 10 pixels of one colour: the running number."""

  def write(split: str, counts: dict[str, int]) -> str:
    number = 0
    for name, count in counts.items():
      folder = tmp_path / split / name
      folder.mkdir(parents=True)
      for index in range(count):
        color = np.array([number % 256, number // 256, 0], np.uint8)
        (folder / f'{index:03d}.png').write_bytes(encode(np.tile(color, (12, 10, 1))))
        number += 1
    return str(tmp_path)

  return write
