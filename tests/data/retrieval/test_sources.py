import pickle

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data.retrieval import sources


@pytest.mark.parametrize('repeat', [1, 5])
def test_captions_belong_to_their_image_whether_or_not_rows_are_repeated(
  tmp_path, write_split, repeat
):
  write_split(tmp_path, 'test', 3, repeat)
  source = sources.create_source('region_files', 'test', tmp_path)
  assert len(source) == 3
  for index, example in enumerate(source):
    assert example.regions[0, 0] == index
    assert example.captions == tuple(f'Image {index} caption {c}' for c in range(5))
    assert example.key == f'test_ims[{index}]'


@pytest.mark.parametrize('given', [False, True])
@pytest.mark.parametrize(
  ('images', 'captions', 'repeat'), [(100, 1, 1), (30, 2, 1), (30, 2, 2), (40, 5, 5), (1, 5, 5)]
)
def test_images_have_any_number_of_captions(tmp_path, write_split, images, captions, repeat, given):
  write_split(tmp_path, 'test', images, repeat, captions=captions)
  given = captions if given else None
  source = sources.create_source('region_files', 'test', tmp_path, captions_per_image=given)
  assert (len(source), source.captions_per_image) == (images, captions)
  for index in range(images):
    assert source[index].regions[0, 0] == index
    assert source[index].captions == tuple(f'Image {index} caption {c}' for c in range(captions))


def test_rows_and_captions_that_do_not_fit_are_refused(tmp_path, write_split):
  def refused(message, given=None):
    with pytest.raises(ValueError, match=message):
      sources.create_source('region_files', 'test', tmp_path, captions_per_image=given)

  write_split(tmp_path, 'test', 100, captions=1)
  refused('row 1 should be the same as row 0; set dataset.captions_per_image, to 1 if', given=5)
  refused('expected features .* and 3 captions of each image, or a row per caption', given=3)
  write_split(tmp_path, 'test', 20, captions=3)
  refused('has 60 lines; expected features .* and 5 captions', given=5)
  rows = np.load(tmp_path / 'test_ims.npy')
  np.save(tmp_path / 'test_ims.npy', np.concatenate([np.repeat(rows[:18], 3, 0), rows[:6]]))
  refused('for each of the 60 captions, .* has 3 captions, row 55 should be the same as row 54')
  (tmp_path / 'test_caps.txt').write_text('a dog\n\na cat\n')
  refused(r"test_caps\.txt', line 2: there is no caption")
  with pytest.raises(ValueError, match=r'captions_per_image=3, but .* has 5 captions'):
    sources.create_source('shape_scenes/tiny', 'train', tmp_path, captions_per_image=3)


@pytest.mark.parametrize('count', [3, 15])
def test_ids_are_one_of_each_image_or_of_each_caption(tmp_path, write_split, count):
  write_split(tmp_path, 'test', 3)
  ids = [f'id{3 * number // count}\n' for number in range(count)]
  (tmp_path / 'test_ids.txt').write_text(''.join(ids))
  source = sources.create_source('region_files', 'test', tmp_path)
  assert [example.key for example in source] == ['id0', 'id1', 'id2']
  (tmp_path / 'test_ids.txt').write_text('id0\nid1\n')
  with pytest.raises(ValueError, match=r"test_ids\.txt' has 2 lines for 3 images"):
    sources.create_source('region_files', 'test', tmp_path)


def test_region_files_are_mapped_and_not_sent_to_workers(tmp_path, write_split):
  write_split(tmp_path, 'test', 40, regions=20, channels=50)
  source = sources.create_source('region_files', 'test', tmp_path)
  assert isinstance(source._features.array, np.memmap)
  pickled = pickle.dumps(source)
  assert len(pickled) < 20_000
  np.testing.assert_array_equal(pickle.loads(pickled)[39].regions, source[39].regions)


def test_region_files_that_do_not_fit_are_refused_by_name(tmp_path, write_split):
  with pytest.raises(ValueError, match=r"test_ims\.npy' does not exist; .* has the splits none"):
    sources.create_source('region_files', 'test', tmp_path)
  write_split(tmp_path, 'test', 3)
  np.save(tmp_path / 'test_ims.npy', np.zeros((4, 3, 4)))
  with pytest.raises(ValueError, match=r'shape \(4, 3, 4\) and .*caps\.txt. has 15 lines'):
    sources.create_source('region_files', 'test', tmp_path)
  with pytest.raises(
    ValueError, match="unknown dataset 'region_file'; did you mean 'region_files'"
  ):
    sources.create_source('region_file', 'test', tmp_path)


def test_pictures_of_region_files_are_found_by_id(tmp_path, write_split):
  write_split(tmp_path, 'test', 2)
  (tmp_path / 'test_ids.txt').write_text('7\n12\n')
  Image.new('RGB', (6, 5)).save(tmp_path / 'coco_0012.jpg')
  pattern = str(tmp_path / 'coco_{:0>4}.jpg')
  source = sources.create_source('region_files', 'test', tmp_path, image_files=pattern)
  assert source.picture(1).image.size == (6, 5)
  with pytest.raises(ValueError, match=r'cannot read the image .*coco_0007\.jpg'):
    source.picture(0)
  assert sources.create_source('region_files', 'test', tmp_path).picture(0) is None
