import copy
import functools
import json

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

# Three images of 20 x 30 pixels (height x width); ids that are neither in order nor without gaps.
COCO = {
  'info': {'description': 'made by hand'},
  'images': [
    {'id': 7, 'file_name': 'a.png', 'height': 20, 'width': 30},
    {'id': 3, 'file_name': 'b.png', 'height': 20, 'width': 30},
    {'id': 9, 'file_name': 'empty.png', 'height': 20, 'width': 30},
  ],
  'annotations': [
    # A rectangle of 4 x 3 pixels.
    {
      'id': 11,
      'image_id': 3,
      'category_id': 8,
      'bbox': [2, 5, 4, 3],
      'area': 12,
      'iscrowd': 0,
      'segmentation': [[2, 5, 6, 5, 6, 8, 2, 8]],
    },
    # Uncompressed run lengths, down the columns: the first column, and half of the second one.
    {
      'id': 5,
      'image_id': 7,
      'category_id': 8,
      'bbox': [0, 0, 2, 20],
      'area': 30,
      'iscrowd': 1,
      'segmentation': {'size': [20, 30], 'counts': [0, 30, 570]},
    },
    # Two rectangles of 2 x 2 pixels.
    {
      'id': 6,
      'image_id': 7,
      'category_id': 2,
      'bbox': [10, 10, 12, 2],
      'area': 8,
      'iscrowd': 0,
      'segmentation': [[10, 10, 12, 10, 12, 12, 10, 12], [20, 10, 22, 10, 22, 12, 20, 12]],
    },
  ],
  'categories': [
    {'id': 8, 'name': 'dog', 'supercategory': 'animal'},
    {'id': 2, 'name': 'cat', 'supercategory': 'animal'},
  ],
}


# (height, width) of the images of TFDS.
SIZE = (50, 40)


@pytest.fixture
def coco_dict():
  """What a small COCO file says."""
  return copy.deepcopy(COCO)


@pytest.fixture
def write_coco(tmp_path):
  """Writes a COCO file and its images, noise, below a folder; returns the folder."""

  def write(content=COCO, file='annotations/instances_train2017.json', images='train2017'):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    for number, image in enumerate(content['images']):
      noise = np.random.default_rng(number).integers(256, size=(20, 30, 3), dtype=np.uint8)
      target = tmp_path / images / image['file_name']
      target.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(noise).save(target)
    return tmp_path

  return write


@pytest.fixture
def image(tmp_path):
  path = tmp_path / 'image.jpg'
  Image.new('RGB', SIZE[::-1]).save(path)
  return str(path)


@pytest.fixture
def write_tfds(tmp_path):
  return functools.partial(_write_tfds, tmp_path)


def _write_tfds(data_dir, name, config, objects, examples, **features):
  """Writes a split 'train' of images with objects, as the builder of any TFDS dataset would."""

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version='1.1.0')]

    def _info(self):
      known = {'image': tfds.features.Image(), 'objects': tfds.features.Sequence(objects)}
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(known | features)
      )

    def _split_generators(self, dl_manager):
      return {'train': enumerate(examples), 'validation': enumerate(examples)}

    def _generate_examples(self):
      raise NotImplementedError

  Builder.name = name
  Builder(data_dir=data_dir, config=config, file_format='array_record').download_and_prepare()


@pytest.fixture
def coco_tfds(write_tfds, image):
  """Writes COCO as TFDS has it: two images, the first with an object and a crowd."""
  objects = {
    'id': np.int64,
    'area': np.int64,
    'bbox': tfds.features.BBoxFeature(),
    'label': tfds.features.ClassLabel(names=[f'class {number}' for number in range(80)]),
    'is_crowd': np.bool_,
  }
  box = tfds.features.BBox(ymin=0.1, xmin=0.25, ymax=0.5, xmax=0.75)
  rows = [{'id': 90, 'area': 321, 'bbox': box, 'label': 12, 'is_crowd': crowd} for crowd in (0, 1)]
  examples = [
    {'image': image, 'image/filename': f'{number}.jpg', 'image/id': number, 'objects': found}
    for number, found in ((139, rows), (140, []))
  ]
  extra = {'image/filename': tfds.features.Text(), 'image/id': np.int64}
  write_tfds('coco', '2017', objects, examples, **extra)
