"""Examples of data, read back by what reads data of one's own."""

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data import examples
from crossattn_jax.data.classification import sources as image_sources
from crossattn_jax.data.detection import sources as box_sources


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """The folder of a kind, of the least size."""
  root = tmp_path_factory.mktemp('examples')

  def write(kind):
    folder = root / kind
    return folder if folder.exists() else examples.write(kind, folder, 10, seed=3)

  return write


def test_images_are_digits_in_folders_of_their_classes(written):
  folder = written('images')
  source = image_sources.create_source('image_folder', 'train', folder)
  assert len(source) == 8
  assert set(source.class_names) <= set('0123456789')
  assert len(list((folder / 'test').rglob('*.png'))) == 2
  image = Image.open(next((folder / 'train').rglob('*.png')))
  assert (*image.size, image.mode) == (8, 8, 'L')


def test_boxes_enclose_what_the_masks_show(written):
  source = box_sources.create_source('detection_folder', 'train', written('boxes'))
  assert source.class_names == ('star', 'heart', 'fish', 'cup')
  assert len(source) == 8
  assert source.masks_missing is None
  objects = source.annotations(0)
  assert len(objects.boxes) >= 2
  for box, mask, area in zip(objects.boxes, objects.masks(), objects.area, strict=True):
    rows, columns = np.nonzero(mask)
    assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert area == mask.sum()


def test_the_same_seed_writes_the_same_files(written, tmp_path):
  files = {
    seed: {
      path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()
    }
    for seed, folder in [
      ('given', written('images')),
      (3, examples.write('images', tmp_path / 'same', 10, seed=3)),
      (4, examples.write('images', tmp_path / 'other', 10, seed=4)),
    ]
  }
  assert files['given'] == files[3] != files[4]


def test_a_folder_that_has_something_stays_as_it_is(tmp_path):
  (tmp_path / 'mine.txt').write_text('mine')
  with pytest.raises(ValueError, match='is there and not empty; give a folder that is new'):
    examples.write('boxes', tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


def test_refuses_what_there_is_not(tmp_path):
  with pytest.raises(ValueError, match="unknown kind of examples 'box'; did you mean 'boxes'"):
    examples.write('box', tmp_path / 'box')
  with pytest.raises(ValueError, match='--size=3 is too small: expected at least 10 photos'):
    examples.write('boxes', tmp_path / 'boxes', 3)
  assert not any(tmp_path.iterdir())
