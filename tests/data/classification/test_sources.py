import io

import cloudpickle
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from crossattn_jax.data.classification import sources


def png(value: int) -> bytes:
  file = io.BytesIO()
  Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(file, 'png')
  return file.getvalue()


def write_tfds(data_dir, name: str, features: dict, examples: list[dict]):
  """Writes a split 'train' as the builder of any TFDS dataset would."""

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      yield from enumerate(examples)

  Builder.name = name
  Builder(data_dir=data_dir, file_format='array_record').download_and_prepare()


def test_tfds_dataset_opens_by_name_whatever_its_features_are_called(tmp_path):
  features = {
    'picture': tfds.features.Image(shape=(4, 4, 3)),
    'class': tfds.features.ClassLabel(names=['cat', 'dog']),
    'file_name': tfds.features.Text(),
  }
  examples = [{'picture': png(i), 'class': i % 2, 'file_name': f'{i}.png'} for i in range(3)]
  write_tfds(tmp_path, 'pets', features, examples)
  source = sources.create_source('pets', 'train', tmp_path)
  assert (len(source), source.class_names) == (3, ('cat', 'dog'))
  assert source[1]['image'] == png(1)
  assert source[1]['label'] == 1
  assert source[1]['key'] == 'pets/train[1] (1.png)'


def test_tfds_example_without_a_name_is_named_by_its_index(tmp_path):
  features = {
    'image': tfds.features.Image(shape=(4, 4, 3)),
    'segmentation_mask': tfds.features.Image(shape=(4, 4, 3)),
    'label': tfds.features.ClassLabel(num_classes=2),
    'species': tfds.features.ClassLabel(num_classes=2),
  }
  example = {'image': png(1), 'segmentation_mask': png(0), 'label': 1, 'species': 0}
  write_tfds(tmp_path, 'pets', features, [example])
  source = sources.create_source('pets', 'train', tmp_path)
  assert source[0] == {'image': png(1), 'label': 1, 'key': 'pets/train[0]'}


def test_a_label_that_is_no_class_is_refused_by_name(tmp_path):
  features = {
    'image': tfds.features.Image(shape=(4, 4, 3)),
    'label': tfds.features.ClassLabel(num_classes=2),
  }
  write_tfds(tmp_path, 'pets', features, [{'image': png(1), 'label': -1}])
  source = sources.create_source('pets', 'train', tmp_path)
  with pytest.raises(
    ValueError, match=r'pets/train\[0\] has the label -1, .* none of the 2 classes'
  ):
    source[0]


def test_tfds_split_may_be_a_slice(digits_dir):
  source = sources.create_source('digits', 'train[10:14]', digits_dir)
  whole = sources.create_source('digits', 'train', digits_dir)
  assert [source[i]['image'] for i in range(4)] == [whole[i]['image'] for i in range(10, 14)]


def test_sources_survive_pickling(digits_dir, image_folder):
  folder = image_folder('train', {'a': 2})
  for arguments in [('digits', 'test', digits_dir), ('image_folder', 'train', folder)]:
    source = sources.create_source(*arguments)
    copy = cloudpickle.loads(cloudpickle.dumps(source))
    assert copy[1] == source[1]
    assert copy.class_names == source.class_names


def test_unknown_split_is_refused_with_those_that_exist(digits_dir):
  with pytest.raises(ValueError, match=r"'digits' has no split 'valid'; it has t\w+, t\w+"):
    sources.create_source('digits', 'valid', digits_dir)


def test_dataset_that_is_not_prepared_is_refused_with_the_command(tmp_path):
  with pytest.raises(ValueError, match="'imagenet2012' is not prepared in") as error:
    sources.create_source('imagenet2012', 'train', tmp_path)
  command = f'tfds build imagenet2012 --data_dir={tmp_path} --file_format=array_record'
  assert str(error.value).endswith(command)


def test_dataset_without_random_access_is_refused_with_the_command(digits_dir, monkeypatch):
  def as_data_source(self, *args, **kwargs):
    raise NotImplementedError

  monkeypatch.setattr(read_only_builder.ReadOnlyBuilder, 'as_data_source', as_data_source)
  with pytest.raises(ValueError, match='no random access') as error:
    sources.TfdsSource('digits', 'train', digits_dir)
  command = f'tfds build digits --data_dir={digits_dir} --file_format=array_record'
  assert str(error.value).endswith(command)


def test_misspelt_dataset_is_refused_with_near_names(tmp_path):
  with pytest.raises(ValueError, match=r"unknown dataset 'imagenet2021'; .*'imagenet2012'"):
    sources.create_source('imagenet2021', 'train', tmp_path)
  with pytest.raises(ValueError, match=r"did you mean .*'digits'"):
    sources.create_source('digit', 'train', tmp_path)


def test_dataset_of_another_kind_is_refused_with_its_features(tmp_path):
  write_tfds(
    tmp_path, 'numbers', {'label': tfds.features.ClassLabel(num_classes=2)}, [{'label': 1}]
  )
  with pytest.raises(ValueError, match='not for classification: expected one Image feature'):
    sources.create_source('numbers', 'train', tmp_path)


def test_image_folder_numbers_classes_by_name_and_reads_nested_folders(image_folder, tmp_path):
  data_dir = image_folder('train', {'b': 2, 'a/deep': 1})
  (tmp_path / 'train' / 'b' / 'notes.txt').write_text('not an image')
  source = sources.create_source('image_folder', 'train', data_dir)
  assert source.class_names == ('a', 'b')
  found = [(source[i]['label'], source[i]['key'][len(data_dir) :]) for i in range(len(source))]
  assert found == [
    (0, '/train/a/deep/000.png'),
    (1, '/train/b/000.png'),
    (1, '/train/b/001.png'),
  ]


def test_image_folder_errors_say_what_is_missing(image_folder, tmp_path):
  data_dir = image_folder('train', {'a': 1})
  with pytest.raises(ValueError, match=r"no folder 'val' in .*; it has 'train'"):
    sources.create_source('image_folder', 'val', data_dir)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match='has no folders; expected one folder of images per class'):
    sources.create_source('image_folder', 'empty', data_dir)
  (tmp_path / 'train' / 'b').mkdir()
  with pytest.raises(ValueError, match=r"class folder '.*train/b' holds no image"):
    sources.create_source('image_folder', 'train', data_dir)
  with pytest.raises(ValueError, match='needs data_dir'):
    sources.create_source('image_folder', 'train')


def test_hidden_folders_and_files_are_no_classes_and_no_images(image_folder, tmp_path):
  image_folder('train', {'cat': 1, 'dog': 1, '.ipynb_checkpoints': 1})
  (tmp_path / 'train' / 'cat' / '._000.png').write_bytes(b'\0\5\26\7')
  source = sources.create_source('image_folder', 'train', tmp_path)
  assert source.class_names == ('cat', 'dog')
  assert len(source) == 2


def test_image_folder_knows_neither_hidden_classes_nor_hidden_images(
  image_folder, tmp_path, caplog
):
  counts = {'cat': 2, 'dog': 1, '.ipynb_checkpoints': 1, '__MACOSX/cat': 1, '.git': 0}
  data_dir = image_folder('train', counts)
  (tmp_path / 'train' / 'cat' / '._000.png').write_bytes(b'of macOS')
  (tmp_path / 'train' / 'cat' / 'notes.txt').write_text('not an image')
  (tmp_path / 'train' / '000.png').write_bytes(png(0))
  for _ in range(2):
    source = sources.create_source('image_folder', 'train', data_dir)
  assert source.class_names == ('cat', 'dog')
  assert [source[i]['label'] for i in range(len(source))] == [0, 0, 1]
  expected = f"left out of '{tmp_path}/train': 1 .png beside the folders of classes, 1 .txt"
  assert [record.message for record in caplog.records] == [expected]


def test_shares_of_class_folders_without_splits_part_their_images(image_folder, tmp_path):
  data_dir = image_folder('', {'a': 40, 'b': 40})
  train, held_out = (
    sources.create_source('image_folder', split, data_dir) for split in ('.[:90%]', '.[90%:]')
  )
  keys = [{source[i]['key'] for i in range(len(source))} for source in (train, held_out)]
  assert len(keys[0] | keys[1]) == len(train) + len(held_out) == 80
  # Another image moves none of them.
  (tmp_path / 'a' / 'more.png').write_bytes(png(0))
  again = sources.create_source('image_folder', '.[90%:]', data_dir)
  assert {again[i]['key'] for i in range(len(again))} - {f'{data_dir}/a/more.png'} == keys[1]
  with pytest.raises(ValueError, match=r"has none of the 81 images: .* '\.\[:50%\]'"):
    sources.create_source('image_folder', '.[:0.001%]', data_dir)


def test_tfds_labels_follow_the_names_that_are_expected(tmp_path):
  features = {
    'image': tfds.features.Image(shape=(4, 4, 3)),
    'label': tfds.features.ClassLabel(names=['cat', 'dog']),
  }
  write_tfds(tmp_path, 'pets', features, [{'image': png(1), 'label': 0}])
  for names, label in [(('dog', 'cat'), 1), (('kitten', 'puppy'), 0)]:
    source = sources.create_source('pets', 'train', tmp_path, class_names=names)
    assert (source.class_names, source[0]['label']) == (names, label)
  with pytest.raises(ValueError, match=r"has 2 classes .'cat', 'dog'., but .* are 1 .'cat'."):
    sources.create_source('pets', 'train', tmp_path, class_names=('cat',))


def test_a_folder_is_mapped_to_expected_classes_by_name(image_folder, caplog):
  data_dir = image_folder('train', {'a': 1, 'b': 1})
  names = ('c', 'b', 'a')
  source = sources.create_source('image_folder', 'train', data_dir, class_names=names)
  labels = {source[i]['key'].split('/')[-2]: source[i]['label'] for i in range(2)}
  assert (source.class_names, labels) == (names, {'b': 1, 'a': 2})
  assert f"'train' of '{data_dir}' has no image of 'c'" in caplog.text
  with pytest.raises(
    ValueError, match=r"a class 'b' that is not among the 1 expected classes .'a'."
  ):
    sources.create_source('image_folder', 'train', data_dir, class_names=('a',))
