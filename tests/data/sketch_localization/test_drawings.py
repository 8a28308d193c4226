import numpy as np
import pytest

from crossattn_jax.data.sketch_localization import drawings


@pytest.fixture(params=['quickdraw', 'stroke3', 'sketchy', 'sketch_folder', 'shape_scenes'])
def source(request, sketches_config):
  """Two classes of each kind of drawings, and their part that is learnt."""
  folders = {'stroke3': 'stroke3_dir', 'quickdraw': 'quickdraw_dir'}
  name = {'stroke3': 'quickdraw'}.get(request.param, request.param)
  folder, classes = None, ('star', 'disc')
  if name != 'shape_scenes':
    folder = request.getfixturevalue(folders.get(request.param, 'pictures_dir'))
    classes = ('cat', 'dog' if name == 'quickdraw' else 'hot dog')
  config = sketches_config(name, folder)
  assert set(classes) <= set(drawings.find_classes(config))
  return lambda part: drawings.open_source(config, part, classes)


def test_every_kind_has_drawings_of_each_class(source):
  for part in (drawings.TRAINING, 'valid'):
    opened = source(part)
    assert len(opened.class_names) == len(opened.counts) == 2
    for label, count in enumerate(opened.counts.tolist()):
      assert count > 0
      drawing = opened.drawing(label, count - 1)
      if isinstance(drawing, np.ndarray):
        assert (drawing.ndim, drawing.dtype) == (2, np.uint8)
      else:
        assert all(stroke.shape[1] == 2 for stroke in drawing)
      assert opened.key(label, count - 1) != opened.key(1 - label, 0)


def test_parts_have_no_drawing_in_common(source):
  learnt, held = source(drawings.TRAINING), source('valid')
  count = min(50, learnt.counts[1])
  keys = {learnt.key(1, number) for number in range(count)}
  assert not keys & {held.key(1, number) for number in range(min(50, held.counts[1]))}


def test_what_is_no_collection_is_refused(sketches_config, tmp_path):
  (tmp_path / 'empty').mkdir()
  for config, message in (
    (sketches_config('quickdrew', tmp_path), r"'quickdrew'; did you mean 'quickdraw'\? known are"),
    (sketches_config('sketchy', None), r"'sketchy' needs dataset.sketches.data_dir: a folder with"),
    (sketches_config('quickdraw', tmp_path / 'x'), r'/x. is no folder'),
    (sketches_config('quickdraw', tmp_path / 'empty'), r"no drawings; expected 'bear.ndjson', or"),
    (sketches_config('sketch_folder', tmp_path / 'empty'), r'expected a folder of drawings for'),
  ):
    with pytest.raises(ValueError, match=message):
      drawings.find_classes(config)
