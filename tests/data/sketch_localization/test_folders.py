import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data import pipeline
from crossattn_jax.data.sketch_localization import folders

SVG = '<svg xmlns="http://www.w3.org/2000/svg"><path d="M 0 0 L 40 0 L 40 20"/></svg>'


def keys(source, label):
  return {source.key(label, number) for number in range(source.counts[label])}


def test_half_of_few_drawings_and_ten_of_many_are_held_out(pictures_dir):
  for number in range(30):
    Image.new('L', (8, 8)).save(pictures_dir / 'cat' / f'more_{number}.png')
  learnt, held = (
    folders.OwnDrawings(pictures_dir, part, ('hot dog', 'cat')) for part in ('train', 'valid')
  )
  assert learnt.counts.tolist() == [3, 26]
  assert held.counts.tolist() == [3, 10]
  assert not keys(learnt, 1) & keys(held, 1)
  assert folders.OwnDrawings.find_classes(pictures_dir) == ('cat', 'hot dog')


def test_drawings_that_come_later_leave_the_others_where_they_are(pictures_dir):
  before = keys(folders.OwnDrawings(pictures_dir, 'valid', ('cat',)), 0)
  for number in range(2):
    Image.new('L', (8, 8)).save(pictures_dir / 'cat' / f'more_{number}.png')
  after = keys(folders.OwnDrawings(pictures_dir, 'valid', ('cat',)), 0)
  assert len(before & after) >= 2


def test_parts_may_be_folders(pictures_dir, tmp_path):
  root = tmp_path / 'divided'
  root.mkdir()
  pictures_dir.rename(root / 'train')
  with pytest.raises(ValueError, match="has a folder 'train', but none of 'valid', 'val'"):
    folders.OwnDrawings(root, 'valid', ('cat',))
  (root / 'val' / 'Cat').mkdir(parents=True)
  (root / 'val' / 'Cat' / 'a.svg').write_text(SVG)
  assert folders.OwnDrawings(root, 'train', ('cat',)).counts.tolist() == [6]
  source = folders.OwnDrawings(root, 'valid', ('cat',))
  assert source.counts.tolist() == [1]
  (stroke,) = source.drawing(0, 0)
  np.testing.assert_allclose(stroke, [[0, 0], [255, 0], [255, 127.5]])


def test_pictures_become_strokes(pictures_dir):
  strokes = folders.OwnDrawings(pictures_dir, 'train', ('cat',)).drawing(0, 0)
  points = np.concatenate(strokes)
  assert points.min() >= 0
  assert 250 <= points.max() <= 255


def test_sketchys_pictures_stay_as_they_are(tmp_path):
  folder = tmp_path / 'sketch' / 'tx_000000000000' / 'car_(sedan)'
  folder.mkdir(parents=True)
  for number in range(24):
    Image.new('RGB', (16, 16), (number,) * 3).save(folder / f'{number:02}.png')
  assert folders.SketchyDrawings.find_classes(tmp_path) == ('car',)
  parts = [folders.SketchyDrawings(tmp_path, part, ('car',)) for part in ('train', 'test')]
  assert [part.counts.tolist() for part in parts] == [[14], [10]]
  levels = {part.drawing(0, k).mean() for part in parts for k in range(part.counts[0])}
  assert levels == set(range(24))


def test_what_is_missing_is_named(pictures_dir):
  with pytest.raises(ValueError, match=r"no drawings of 'bear': expected the folder 'bear' with"):
    folders.OwnDrawings(pictures_dir, 'train', ('bear',))
  (pictures_dir / 'bear').mkdir()
  with pytest.raises(ValueError, match=r"bear' has no drawings: expected \.jpg"):
    folders.OwnDrawings(pictures_dir, 'train', ('bear',))
  (pictures_dir / 'bear' / 'a.png').write_bytes(b'no picture')
  with pytest.raises(ValueError, match=r"bear' has one drawing, 'bear/a.png': expected two"):
    folders.OwnDrawings(pictures_dir, 'train', ('bear',))
  (pictures_dir / 'bear' / 'b.png').write_bytes(b'no picture')
  for kind in (folders.OwnDrawings, folders.SketchyDrawings):
    with pytest.raises(pipeline.UnreadableError, match=r'bear/[ab].png'):
      kind(pictures_dir, 'train', ('bear',)).drawing(0, 0)
