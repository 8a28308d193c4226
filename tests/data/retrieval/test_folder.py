import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data import pipeline
from crossattn_jax.data.retrieval import batches, folder, sources

TABLE = 'file,caption\na.png,red above\na.png,"blue, below"\nb.png,all red\nb.png,no blue\n'


@pytest.fixture
def root(tmp_path):
  """Two images: one is red in its upper half and blue below, the other one red."""
  pixels = np.zeros((8, 12, 3), np.uint8)
  pixels[..., 0] = 255
  Image.fromarray(pixels).save(tmp_path / 'b.png')
  pixels[4:] = (0, 0, 255)
  Image.fromarray(pixels).save(tmp_path / 'a.png')
  (tmp_path / 'train.csv').write_text(TABLE)
  return tmp_path


def test_sentences_are_those_of_the_files(root):
  source = sources.create_source('caption_folder', 'train', root, region_dim=16)
  assert [source.key(n) for n in range(len(source))] == ['a.png', 'b.png']
  assert source[0].captions == ('red above', 'blue, below')
  assert source.captions_per_image == 2


def test_regions_are_the_whole_and_windows_of_half_the_sides(root):
  source = sources.create_source('caption_folder', 'train', root, region_dim=16)
  features = source[0].regions
  assert features.shape == (10, 16)
  # Windows in the first row see red alone, as those of the red image do, those in the last blue.
  red = source[1].regions
  np.testing.assert_array_equal(features[1:4], red[1:4])
  assert np.abs(features[7:] - red[7:]).max() > 0.1
  assert source.picture(0).boxes[0] == (0, 0, 8, 12)
  assert source.picture(0).boxes[1] == (0, 0, 4, 6)
  assert source.picture(0).boxes[9] == (4, 6, 8, 12)


def test_images_with_different_numbers_of_sentences_need_a_word(root):
  (root / 'val.csv').write_text(TABLE + 'b.png,a third\n')
  with pytest.raises(ValueError, match=r"has 2 captions of 'a.png' and 3 of 'b.png'.*_image=2"):
    folder.CaptionFolder(root, 'val', 16)
  assert folder.CaptionFolder(root, 'val', 16, 2)[1].captions == ('all red', 'no blue')
  with pytest.raises(ValueError, match='expected 3 of each image'):
    folder.CaptionFolder(root, 'val', 16, 3)


@pytest.mark.parametrize(
  ('table', 'message'),
  [
    ('image;caption\n', "no column 'file'; expected a first line 'file,caption'"),
    ('file,caption\n', 'has no rows'),
    ('file,caption\na.png,\n', "line 2 of .*val.csv': expected a file and a caption"),
    ('file,caption\na.png,red, and blue\n', 'line 2 of .* more entries'),
    (
      'file,caption\nc.png,x\na.png,y\n',
      "1 of 2 images that are not there, such as '.*c.png'",
    ),
  ],
)
def test_refuses_tables_that_are_wrong(root, table, message):
  (root / 'val.csv').write_text(table)
  with pytest.raises(ValueError, match=message):
    folder.CaptionFolder(root, 'val', 16)


def test_a_table_in_another_encoding_is_named(root):
  (root / 'val.csv').write_bytes('file,caption\na.png,une forêt\n'.encode('latin-1'))
  with pytest.raises(ValueError, match=r"val.csv', line 2: not UTF-8; save the file as UTF-8"):
    folder.CaptionFolder(root, 'val', 16)


def test_says_which_tables_there_are(root):
  with pytest.raises(ValueError, match=r"val.csv' does not exist; .* has tables of 'train'"):
    folder.CaptionFolder(root, 'val', 16)


def test_an_image_that_cannot_be_read_is_named(root):
  (root / 'a.png').write_bytes(b'no image')
  with pytest.raises(pipeline.UnreadableError, match=r'a\.png'):
    folder.CaptionFolder(root, 'train', 16)[0]


def test_the_vocabulary_has_the_words_of_the_sentences(root, capsys):
  config = batches.default_config()
  config.update(name='caption_folder', data_dir=str(root), max_words=8)
  with pytest.raises(ValueError, match=r'python -m crossattn_jax.data.retrieval.folder'):
    batches.tokenizer(config)
  with pytest.raises(SystemExit, match=r"no table '.*nowhere/train.csv'"):
    folder.write_vocabulary(['folder', str(root / 'nowhere')])
  folder.write_vocabulary(['folder', str(root)])
  assert '11 words' in capsys.readouterr().out
  words = batches.tokenizer(config)
  assert words.vocabulary == (
    *('[PAD]', '[UNK]', '[CLS]', '[SEP]'), ',', 'above', 'all', 'below', 'blue', 'no', 'red'
  )  # fmt: skip
  assert words.pieces(*words('Red, red dog')) == ['[CLS]', 'red', ',', 'red', '[UNK]', '[SEP]']
