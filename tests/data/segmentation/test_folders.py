import os

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data.segmentation import batches as data
from crossattn_jax.data.segmentation import folders, sources


def write(path, value=0, size=(6, 4)):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.new('L' if path.suffix == '.png' else 'RGB', size, value)
  image.save(path)


LAYOUTS = [
  ('images/{split}', 'masks/{split}'),
  ('images/{split}', 'annotations/{split}'),
  ('{split}/images', '{split}/labels'),
]


@pytest.mark.parametrize(('images', 'masks'), LAYOUTS)
def test_images_and_masks_belong_together_by_their_paths(tmp_path, images, masks):
  for split, names in {'train': ('a', 'city/a', 'city/b'), 'val': ('c',)}.items():
    for name in names:
      write(tmp_path / images.format(split=split) / f'{name}.jpg')
      write(tmp_path / masks.format(split=split) / f'{name}.png')
  # What systems and editors leave behind.
  folder = tmp_path / images.format(split='train')
  write(folder / '._a.jpg')
  write(folder / '.ipynb_checkpoints' / 'a.jpg')
  pairs = folders.find_pairs(tmp_path, 'train')
  assert [
    (os.path.relpath(image, folder), os.path.relpath(mask, tmp_path / masks.format(split='train')))
    for image, mask in pairs
  ] == [('a.jpg', 'a.png'), ('city/a.jpg', 'city/a.png'), ('city/b.jpg', 'city/b.png')]
  assert folders.find_splits(tmp_path) == ['train', 'val']
  with pytest.raises(
    ValueError, match=r"no images of split 'test', but of 'train', 'val'; expected"
  ):
    folders.find_pairs(tmp_path, 'test')


def test_without_folders_of_splits_a_share_is_held_out(tmp_path):
  for number in range(60):
    write(tmp_path / f'images/{number}.jpg')
    write(tmp_path / f'masks/{number}.png')
  config = data.default_config()
  config.name, config.data_dir = 'segmentation_folder', str(tmp_path)
  config.train_split = config.eval_split = None
  (note,) = sources.complete_splits(config)
  assert (config.train_split, config.eval_split) == ('.[:90%]', '.[90%:]')
  assert str(tmp_path) in note
  train, held_out = (
    {image for image, _ in folders.find_pairs(tmp_path, split)}
    for split in (config.train_split, config.eval_split)
  )
  assert len(train) + len(held_out) == len(train | held_out) == 60
  assert 2 <= len(held_out) <= 12
  with pytest.raises(ValueError, match='has none of the 60 images: take another share'):
    folders.find_pairs(tmp_path, '.[:0.01%]')


def test_what_does_not_belong_together_is_named_and_counted(tmp_path, caplog):
  def refused(message):
    with pytest.raises(ValueError, match=message):
      folders.find_pairs(tmp_path, 'train')

  refused(r"has no images of split 'train', but of none; expected images/SPLIT and masks/SPLIT")
  for name in ('a', 'b', 'c'):
    write(tmp_path / f'images/train/{name}.jpg')
  refused(
    r"masks of '.*images/train' are expected in '.*masks/train' or .*; there is none of those"
  )
  write(tmp_path / 'masks/train/a.jpg')
  refused(r"masks in '.*masks/train' are JPEG files, which do not keep values: save them as PNG")
  write(tmp_path / 'masks/train/a.png')
  refused(r"2 of the 3 images in .* have no mask: '.*b\.jpg' needs '.*masks/train/b'\.png; add")
  for name in ('b', 'c', 'd', 'e'):
    write(tmp_path / f'masks/train/{name}.png')
  assert len(folders.find_pairs(tmp_path, 'train')) == 3
  assert '2 of the 5 masks' in caplog.text
  write(tmp_path / 'images/train/a.png')
  refused(r"'.*a\.jpg' and '.*a\.png' have the same name; remove one")
  (tmp_path / 'labels/train').mkdir(parents=True)
  refused(r'there is both .*masks/train and .*labels/train')


@pytest.fixture
def config(tmp_path):
  """Two images of one colour; a road at the left of their masks."""
  for split in ('train', 'val'):
    for name in 'ab':
      write(tmp_path / f'images/{split}/{name}.jpg')
      mask = np.zeros((4, 6), np.uint8)
      mask[:, :2], mask[0, 5] = 255, 7
      path = tmp_path / f'masks/{split}/{name}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(mask).save(path)
  (tmp_path / 'classes.csv').write_text('value,name\n0,background\n255,road\n7,\n')
  config = data.default_config()
  config.name, config.data_dir, config.eval_split = 'segmentation_folder', str(tmp_path), 'val'
  return config


def test_masks_become_the_classes_of_the_table(config):
  _, label = data.Examples(config, 'train').decode(0)
  assert label.tolist() == [[1, 1, 0, 0, 0, 255]] + [[1, 1, 0, 0, 0, 0]] * 3
  config.class_names = ('road', 'sky', 'background')
  _, label = data.Examples(config, 'train').decode(0)
  assert label.tolist() == [[0, 0, 2, 2, 2, 255]] + [[0, 0, 2, 2, 2, 2]] * 3
  config.class_names = ('background', 'sky')
  with pytest.raises(ValueError, match=r"classes\.csv' has a class 'road' .* expected classes"):
    data.Examples(config, 'train')


def test_without_a_table_the_config_says_what_values_mean(config, tmp_path):
  (tmp_path / 'classes.csv').unlink()
  with pytest.raises(ValueError, match='value,name\n0,\n7,\n255,'):
    data.Examples(config, 'train')
  config.class_names, config.class_values = ('background', 'road', 'tree'), (0, 255, 7)
  _, label = data.Examples(config, 'train').decode(0)
  assert label.tolist() == [[1, 1, 0, 0, 0, 2]] + [[1, 1, 0, 0, 0, 0]] * 3


def test_a_value_that_is_no_class_is_refused_with_the_row_to_write(config, tmp_path):
  (tmp_path / 'classes.csv').write_text('value,name\n0,background\n255,road\n')
  with pytest.raises(
    ValueError,
    match=r"masks/train/a\.png' of .* holds 7 in 4\.17% of its pixels, which is no class; expected "
    r"0 'background', 255 'road'; give each value a row in classes\.csv: VALUE,NAME, or VALUE,",
  ):
    data.Examples(config, 'train').read(0)


def test_roads_of_255_are_never_ignored_in_silence(config, tmp_path):
  (tmp_path / 'classes.csv').write_text('value,name\n0,background\n1,road\n7,\n')
  with pytest.raises(
    ValueError, match=r"holds 255 in 33\.33% .*expected 0 'background', 1 'road', 7"
  ):
    data.Examples(config, 'train').read(0)


def test_a_mask_of_another_size_is_named(config, tmp_path):
  write(tmp_path / 'masks/train/a.png', size=(4, 6))
  with pytest.raises(ValueError, match=r"a\.png' has 6 x 4 pixels, the image 4 x 6; .*upright"):
    data.Examples(config, 'train').read(0)
