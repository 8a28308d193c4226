import pytest

from crossattn_jax.data.paired_detection import batches, folder, scenes, sources


@pytest.fixture
def config():
  return batches.default_config()


def test_splits_of_a_folder_are_completed(tmp_path, write_pairs, config):
  for split in ('train', 'test'):
    places = [f'{kind}/{split}' for kind in ('visible', 'infrared', 'labels')]
    write_pairs(tmp_path, places, a='0 .5 .5 .1 .1')
  config.data_dir = str(tmp_path)
  assert sources.complete_splits(config)
  assert (config.train_split, config.eval_split) == ('train', 'test')
  assert isinstance(sources.open_source(config, 'test'), folder.PairFolder)


def test_scenes_are_pairs(datasets_dir, config):
  config.update(name='shape_scenes/tiny', data_dir=datasets_dir)
  assert sources.complete_splits(config)
  source = sources.open_source(config, config.eval_split)
  assert isinstance(source, scenes.PairedScenes)
  assert source[0]['rgb'] != source[0]['thermal']


def test_what_is_no_data_set_is_refused(tmp_path, config):
  config.name = 'pair_folders'
  with pytest.raises(ValueError, match="unknown dataset 'pair_folders'; did you mean 'pair_folde"):
    sources.open_source(config, 'train')
  config.name = 'pair_folder'
  with pytest.raises(ValueError, match=r"'pair_folder' needs dataset\.data_dir"):
    sources.complete_splits(config)
  config.data_dir = str(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match=r"dataset\.data_dir='.*nowhere' is no folder"):
    sources.open_source(config, 'train')
