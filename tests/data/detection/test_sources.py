import cloudpickle
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from crossattn_jax.data.detection import batches, coco_folder, scenes, sources, yolo_folder

# (height, width) of the images of TFDS.
SIZE = (50, 40)


def write_tfds(data_dir, name, config, objects, examples, **features):
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


def write_coco_tfds(data_dir, image):
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
  write_tfds(data_dir, 'coco', '2017', objects, examples, **extra)


@pytest.fixture
def image(tmp_path):
  path = tmp_path / 'image.jpg'
  Image.new('RGB', SIZE[::-1]).save(path)
  return str(path)


@pytest.fixture
def config():
  config = batches.default_config()
  config.train_split = config.eval_split = None
  return config


def test_coco_of_tfds_has_boxes_and_its_own_numbers(tmp_path, image):
  write_coco_tfds(tmp_path, image)
  source = sources.create_source('coco', 'train', tmp_path)
  assert source.class_names[12] == 'class 12'
  # 12 is left out of COCO's numbers, and 91 is beyond them.
  assert source.category_ids[10:14] == (11, 13, 14, 15)
  assert source.category_ids[-1] == 90
  assert len(source.category_ids) == 80
  assert source.image_ids == (139, 140)
  np.testing.assert_array_equal(source.num_objects, [2, 0])
  assert source[0]['key'] == 'coco/2017/train[0] (139.jpg)'
  with open(image, 'rb') as file:
    assert source[0]['image'] == file.read()
  objects = cloudpickle.loads(cloudpickle.dumps(source)).annotations(0)
  assert objects.size == source.image_size(0) == SIZE
  np.testing.assert_allclose(objects.boxes, [[10, 5, 30, 25]] * 2, rtol=1e-6)
  np.testing.assert_array_equal(objects.labels, [12, 12])
  np.testing.assert_array_equal(objects.area, [321, 321])
  np.testing.assert_array_equal(objects.ids, [90, 90])
  np.testing.assert_array_equal(objects.crowd, [False, True])
  assert len(source.annotations(1)) == 0


def test_difficult_objects_of_pascal_voc_are_not_learnt(tmp_path, image):
  objects = {
    'bbox': tfds.features.BBoxFeature(),
    'label': tfds.features.ClassLabel(names=['aeroplane', 'bicycle']),
    'is_difficult': np.bool_,
  }
  box = tfds.features.BBox(ymin=0.1, xmin=0.25, ymax=0.5, xmax=0.75)
  rows = [{'bbox': box, 'label': 1, 'is_difficult': difficult} for difficult in (True, False)]
  write_tfds(tmp_path, 'voc', '2007', objects, [{'image': image, 'objects': rows}])
  source = sources.create_source(
    'voc/2007', 'train', tmp_path, class_names=('bicycle', 'aeroplane')
  )
  assert (source.category_ids, source.image_ids) == ((2, 1), (1,))
  found = source.annotations(0)
  np.testing.assert_array_equal(found.labels, [0, 0])
  np.testing.assert_array_equal(found.learnable, [False, True])
  np.testing.assert_allclose(found.area, [400, 400], rtol=1e-6)
  np.testing.assert_array_equal(found.ids, [1, 2])


def test_masks_of_a_data_set_of_boxes_are_refused(tmp_path, image, config):
  write_coco_tfds(tmp_path, image)
  config.update(name='coco', data_dir=str(tmp_path), masks=True)
  with pytest.raises(ValueError, match=r"TFDS has the boxes of 'coco/2017' alone.*=False"):
    sources.open_source(config, 'train')
  config.masks = False
  assert len(sources.open_source(config, 'train')) == 2
  assert sources.complete_splits(config)
  assert (config.train_split, config.eval_split) == ('train', 'validation')


def test_a_data_set_without_boxes_is_refused(tmp_path, image):
  objects = {'label': tfds.features.ClassLabel(num_classes=2)}
  write_tfds(tmp_path, 'pets', '1', objects, [{'image': image, 'objects': []}])
  with pytest.raises(ValueError, match="is not for detection: expected 'image' and a sequence of"):
    sources.create_source('pets', 'train', tmp_path)


def test_masks_that_are_missing_are_named(write_coco, coco_dict, config):
  del coco_dict['annotations'][0]['segmentation']
  config.update(name='detection_folder', data_dir=str(write_coco(coco_dict)), masks=True)
  with pytest.raises(ValueError, match=r"annotation 11 of .* has no 'segmentation'; add them, or"):
    sources.open_source(config, 'train')


def test_a_folder_is_of_the_layout_that_it_has(write_coco, tmp_path, config):
  write_coco()
  config.update(name='detection_folder', data_dir=str(tmp_path))
  (note,) = sources.complete_splits(config)
  assert note.endswith("'train[:90%]' for training, 'train[90%:]' for evaluation")
  for name in ('detection_folder', 'coco_folder', 'coco'):
    source = sources.create_source(name, 'train', tmp_path)
    assert isinstance(source, coco_folder.CocoFolder)
  # COCO's own folder has both when Ultralytics has downloaded it.
  labels = tmp_path / 'labels/train2017'
  labels.mkdir(parents=True)
  (labels / 'a.txt').write_text('0 .5 .5 .1 .1')
  (tmp_path / 'data.yaml').write_text('names: [cat]\ntrain: train2017')
  assert isinstance(
    sources.create_source('detection_folder', 'train', tmp_path), coco_folder.CocoFolder
  )
  (tmp_path / 'train2017/a.txt').write_text('0 .5 .5 .1 .1')
  source = sources.create_source('yolo_folder', 'train', tmp_path)
  assert isinstance(source, yolo_folder.YoloFolder)


def test_what_label_studio_writes_beside_yolo_is_no_coco_file(tmp_path, config):
  for folder in ('images', 'labels'):
    (tmp_path / folder).mkdir()
  Image.new('RGB', (8, 8)).save(tmp_path / 'images/a.png')
  (tmp_path / 'labels/a.txt').write_text('0 .5 .5 .5 .5')
  (tmp_path / 'classes.txt').write_text('cat\n')
  (tmp_path / 'notes.json').write_text('{"categories": [], "info": {}}')
  source = sources.create_source('detection_folder', '.', tmp_path)
  assert isinstance(source, yolo_folder.YoloFolder)
  config.update(name='detection_folder', data_dir=str(tmp_path))
  sources.complete_splits(config)
  assert (config.train_split, config.eval_split) == ('.[:90%]', '.[90%:]')


def test_folders_that_are_none_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r'holds neither COCO files \(.*\) nor those of YOLO \('):
    sources.create_source('detection_folder', 'train', tmp_path)
  with pytest.raises(ValueError, match=r"'coco_folder' needs dataset\.data_dir"):
    sources.create_source('coco_folder', 'train')
  with pytest.raises(ValueError, match=r"dataset\.data_dir='.*there' is no folder"):
    sources.create_source('yolo_folder', 'train', tmp_path / 'there')


def test_only_coco_files_are_told_where_their_images_are(tmp_path):
  with pytest.raises(ValueError, match=r"'yolo_folder' says itself where its images are; set data"):
    sources.create_source('yolo_folder', 'train', tmp_path, image_dir='photos')


def test_names_are_suggested(tmp_path):
  with pytest.raises(ValueError, match="unknown dataset 'coco_foldr'; did you mean 'coco_folder'"):
    sources.create_source('coco_foldr', 'train', tmp_path)
  with pytest.raises(ValueError, match=r"'coco/2017' is not prepared in .*: tfds build coco/2017"):
    sources.create_source('coco', 'train', tmp_path)
  with pytest.raises(ValueError, match=r"'voc/2007' is not prepared in .*: tfds build voc/2007"):
    sources.create_source('voc/2007', 'train', tmp_path)


def test_scenes_are_a_source(tmp_path, config):
  config.update(name='shape_scenes/tiny', data_dir=str(tmp_path), masks=True)
  sources.complete_splits(config)
  assert (config.train_split, config.eval_split) == ('train', 'validation')
  assert isinstance(sources.open_source(config, 'train'), scenes.SceneSource)
