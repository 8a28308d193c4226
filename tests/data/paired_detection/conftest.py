import numpy as np
from PIL import Image
import pytest


@pytest.fixture(scope='session')
def write_pairs():
  """Writes pairs of noise, of (height, width), with the text of each one's objects."""

  def write(
    root,
    folders=('visible/train', 'infrared/train', 'labels/train'),
    size=(20, 30),
    endings=('.png', '.png', '.txt'),
    table='names: [person, car]\n',
    **texts,
  ):
    for number, (name, text) in enumerate(texts.items()):
      rng = np.random.default_rng(number)
      pixels = (rng.integers(256, size=(*size, 3)), rng.integers(256, size=size))
      files = zip(folders, endings, strict=True)
      places = [root / folder / f'{name}{ending}' for folder, ending in files]
      for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
      for place, image in zip(places, pixels, strict=False):
        Image.fromarray(image.astype(np.uint8)).save(place)
      if text is not None:
        places[2].write_text(text)
    if table:
      (root / 'data.yaml').write_text(table)
    return root

  return write
