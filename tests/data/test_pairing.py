import re

import pytest

from crossattn_jax.data import pairing


def test_folders_are_found_by_their_names(tmp_path):
  assert pairing.find_folders(tmp_path) is None
  for name in ('Thermal', 'RGB', 'labels'):
    (tmp_path / name).mkdir()
  assert pairing.find_folders(tmp_path) == (tmp_path / 'RGB', tmp_path / 'Thermal')
  (tmp_path / 'lwir').mkdir()
  with pytest.raises(ValueError, match='has Thermal and lwir, of which one is expected'):
    pairing.find_folders(tmp_path)


def test_images_are_paired_by_their_paths_without_extensions_and_endings():
  visible = ['v/day/2.jpg', 'v/FLIR_1_RGB.jpg', 'v/a_co.png', 'v/iris.png']
  infrared = ['t/a_ir.png', 't/iris.png', 't/day/2.jpeg', 't/FLIR_1_PreviewData.jpeg']
  pairs = pairing.pair_files(visible, infrared, 'v', 't')
  assert [tuple(map(str, pair)) for pair in pairs] == [
    ('v/day/2.jpg', 't/day/2.jpeg'),
    ('v/FLIR_1_RGB.jpg', 't/FLIR_1_PreviewData.jpeg'),
    ('v/a_co.png', 't/a_ir.png'),
    ('v/iris.png', 't/iris.png'),
  ]


@pytest.mark.parametrize(
  ('visible', 'infrared', 'message'),
  [
    (['v/a.jpg'], [], "'v/a.jpg' has no partner: expected 't' to have an image 'a', such as 'a."),
    ([], ['t/a.png', 't/b.png'], "to have an image 'a', such as 'a.png'; 1 other image has none"),
    (['v/a.jpg', 'v/a.png'], ['t/a.png'], "'v/a.jpg' and 'v/a.png' have the same name; remove"),
    (['v/a.jpg'], ['t/a.png', 't/a_ir.png'], "'t/a.png' and 't/a_ir.png' have the same name"),
  ],
)
def test_images_without_or_with_several_partners_are_refused(visible, infrared, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    pairing.pair_files(visible, infrared, 'v', 't')
