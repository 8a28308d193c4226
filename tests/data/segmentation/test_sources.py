import io
import os

import numpy as np
from PIL import Image
import pytest
from tensorflow_datasets.datasets.cityscapes import cityscapes_dataset_builder

from crossattn_jax.data.segmentation import batches as data
from crossattn_jax.data.segmentation import sources, taxonomies


def test_cityscapes_folders_and_lists_are_read(tmp_path):
  for folder in ('leftImg8bit/train/ulm', 'gtFine/train/ulm'):
    (tmp_path / folder).mkdir(parents=True)
  for number in range(3):
    stem = f'ulm_00000{number}_000019'
    image = tmp_path / f'leftImg8bit/train/ulm/{stem}_leftImg8bit.png'
    Image.new('RGB', (40, 20), (number, 0, 0)).save(image)
    label = np.full((20, 40), 26, np.uint8)
    label[:, :5] = 3
    Image.fromarray(label).save(tmp_path / f'gtFine/train/ulm/{stem}_gtFine_labelIds.png')
  pairs = sources.create_source('cityscapes_folder', 'train', tmp_path).pairs
  lines = ['\t'.join(os.path.relpath(path, tmp_path) for path in pair) for pair in pairs[1:]]
  (tmp_path / 'list.lst').write_text('\n'.join(lines) + '\n')
  assert sources.create_source('cityscapes_folder', 'list.lst', tmp_path).pairs == pairs[1:]

  config = data.default_config()
  config.name, config.data_dir, config.image_size = 'cityscapes_folder', str(tmp_path), (16, 16)
  config.eval_split = 'train'
  (batch, *_) = data.Examples(config, config.eval_split).eval_batches(batch_size=3)
  assert (batch['label'][:, :, :5] == 255).all()
  assert (batch['label'][:, :, 5:] == taxonomies.CITYSCAPES.class_names.index('car')).all()

  (tmp_path / 'gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png').unlink()
  with pytest.raises(ValueError, match=r'ulm_000001_000019_gtFine_labelIds\.png.* does not exist'):
    sources.create_source('cityscapes_folder', 'train', tmp_path)
  with pytest.raises(ValueError, match=r'expected leftImg8bit/val/CITY'):
    sources.create_source('cityscapes_folder', 'val', tmp_path)


def test_cityscapes_is_read_as_the_builder_of_tfds_writes_it(tmp_path, monkeypatch):
  labels = np.full((1024, 2048), 26, np.uint8)
  labels[:, :5] = 3

  def encoded(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, 'png')
    return file.getvalue()

  def examples(builder):
    del builder
    image = encoded(np.full((1024, 2048, 3), (200, 100, 50), np.uint8))
    yield '0', {'image_id': 'ulm_1', 'image_left': image, 'segmentation_label': encoded(labels)}

  builder = cityscapes_dataset_builder.Builder
  monkeypatch.setattr(builder, '_generate_examples', examples)
  monkeypatch.setattr(
    builder, '_split_generators', lambda self, _: {'validation': self._generate_examples()}
  )
  builder(data_dir=tmp_path, file_format='array_record').download_and_prepare()
  source = sources.create_source('cityscapes', 'validation', tmp_path)
  assert source.image_size(0) == (1024, 2048)
  assert source[0]['key'] == 'cityscapes/validation[0] (ulm_1)'

  config = data.default_config()
  config.data_dir, config.channels = str(tmp_path), 'bgr'
  config.mean, config.std = (50.0, 100.0, 199.0), (1.0,) * 3
  (batch,) = data.Examples(config, config.eval_split).eval_batches(batch_size=1)
  assert (batch['image'] == (0, 0, 1)).all()
  assert (batch['label'][:, :, :5] == 255).all()
  assert (batch['label'][:, :, 5:] == taxonomies.CITYSCAPES.class_names.index('car')).all()
