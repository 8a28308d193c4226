from PIL import Image
import pytest

from crossattn_jax.data.detection import batches, coco_folder, sources, yolo_folder


@pytest.fixture
def config():
  config = batches.default_config()
  config.train_split = config.eval_split = None
  return config


def test_masks_of_a_data_set_of_boxes_are_refused(tmp_path, coco_tfds, config):
  config.update(name='coco', data_dir=str(tmp_path), masks=True)
  with pytest.raises(ValueError, match=r"TFDS has the boxes of 'coco/2017' alone.*=False"):
    sources.open_source(config, 'train')
  config.masks = False
  assert len(sources.open_source(config, 'train')) == 2
  assert sources.complete_splits(config)
  assert (config.train_split, config.eval_split) == ('train', 'validation')


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


def test_scenes_have_splits(config):
  config.name = 'shape_scenes/160'
  sources.complete_splits(config)
  assert (config.train_split, config.eval_split) == ('train', 'validation')
