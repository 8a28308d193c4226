"""Examples of data, read back by what reads data of one's own."""

import io
import re

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data import examples
from crossattn_jax.data.classification import sources as image_sources
from crossattn_jax.data.detection import sources as box_sources
from crossattn_jax.data.image_fusion import sources as fusion_sources
from crossattn_jax.data.paired_detection import sources as pair_sources
from crossattn_jax.data.retrieval import sources as caption_sources
from crossattn_jax.data.scene_points import folder as scene_folder
from crossattn_jax.data.scenes import rooms, shapes
from crossattn_jax.data.segmentation import class_tables
from crossattn_jax.data.segmentation import folders as mask_folders
from crossattn_jax.data.sketch_localization import folders as sketch_folders


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


def test_masks_have_values_of_the_table(written):
  folder = written('masks')
  taxonomy = class_tables.read_table(folder / 'classes.csv')
  assert taxonomy.class_names == ('ground', 'star', 'heart', 'fish', 'cup')
  pairs = mask_folders.find_pairs(folder, 'train')
  assert len(pairs) == 8
  values = [np.asarray(Image.open(mask)) for _, mask in pairs]
  assert all(value.shape == (64, 64) for value in values)
  assert np.unique(values).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.extended
def test_pairs_show_objects_where_the_lines_say(written):
  source = pair_sources.create_source('pair_folder', 'val', written('pairs'))
  assert source.class_names == ('star', 'heart', 'fish', 'cup')
  fused = fusion_sources.create_source('pair_folder', 'val', written('pairs'))
  assert len(source) == len(fused) == 2
  images = [np.asarray(Image.open(io.BytesIO(source[0][kind]))) for kind in ('rgb', 'thermal')]
  assert [image.shape for image in images] == [(96, 96, 3), (96, 96)]
  objects = source.annotations(0)
  sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
  assert len(objects.boxes) >= 3
  assert 5 < sides.min() <= sides.max() < 40
  np.testing.assert_allclose(objects.boxes, np.rint(objects.boxes), atol=1e-3)


def test_captions_name_what_the_photos_show(written):
  folder = written('captions')
  source = caption_sources.create_source('caption_folder', 'train', folder, region_dim=8)
  assert len(source) == 8
  assert source.captions_per_image == 5
  words = set(caption_sources.own_vocabulary('caption_folder', folder))
  assert all(set(re.findall(r'\w+', x)) <= words for x in source[0].captions)
  # Any shape of the first photo is in each sentence about shapes.
  assert re.search('|'.join(shapes.SHAPES), source[0].captions[3])


@pytest.mark.extended
def test_points_have_labels_photographs_and_tags_that_agree(written):
  source = scene_folder.open_split(written('points'), 'val')
  assert source.class_names == rooms.CLASS_NAMES
  scene = source.scene(0)
  assert len(scene.labels) == len(scene.points) > 500
  assert source.views(0) == 4
  held = {source.class_names[label] for label in np.unique(scene.labels) if label >= 0}
  rows = dict(
    line.split(',', 1) for line in (written('points') / 'tags.csv').read_text().splitlines()
  )
  assert set(rows[source.keys[0]].split(',')) == held
  assert len(rows) == 10


@pytest.mark.extended
def test_sketches_are_read_as_strokes_of_the_classes_of_the_photos(written):
  folder = written('sketches')
  photos = box_sources.create_source('detection_folder', 'val', folder / 'photos')
  drawn = sketch_folders.OwnDrawings(folder / 'sketches', 'train', photos.class_names)
  held = sketch_folders.OwnDrawings(folder / 'sketches', 'valid', photos.class_names)
  assert drawn.counts.tolist() == [20] * 8
  assert held.counts.tolist() == [10] * 8
  strokes = drawn.drawing(0, 0)
  assert 1 <= len(strokes) <= 12
  assert np.concatenate(strokes).max() == pytest.approx(255)


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
