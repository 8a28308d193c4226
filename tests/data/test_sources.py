"""What counts as an image of a folder."""

from crossattn_jax.data import sources


def test_files_below_a_folder_are_found_without_hidden_ones_and_others_are_counted(tmp_path):
  for name in (
    'b/2.JPG',
    'b/c/1.png',
    'a.jpg',
    '.DS_Store',
    '._a.jpg',
    'b/._2.JPG',
    '.ipynb_checkpoints/a-checkpoint.jpg',
    '__MACOSX/b/2.JPG',
    'b/notes.txt',
    'readme.TXT',
    'LICENSE',
  ):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  found, left_out = sources.find_files(tmp_path)
  assert found == [str(tmp_path / name) for name in ('a.jpg', 'b/2.JPG', 'b/c/1.png')]
  assert left_out == {'.txt': 2, '': 1}
  assert sources.counted(left_out) == '2 .txt, 1 without extension'
  assert sources.find_files(tmp_path, ('.txt',))[0] == [
    str(tmp_path / name) for name in ('readme.TXT', 'b/notes.txt')
  ]
  assert sources.find_files(tmp_path, apart_from=tmp_path / 'b') == (
    [str(tmp_path / 'a.jpg')],
    {'.txt': 1, '': 1},
  )
