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
