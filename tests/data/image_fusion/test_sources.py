import pytest

from crossattn_jax.data.image_fusion import sources


@pytest.mark.parametrize(
  ('name', 'folders', 'split'),
  [
    ('msrs', ('test/vi', 'test/ir'), 'test'),
    ('llvip', ('visible/test', 'infrared/test'), 'test'),
    ('roadscene', ('crop_LR_visible', 'cropinfrared'), 'all'),
    ('tno', ('vi', 'ir'), 'all'),
    ('m3fd', ('Vis', 'Ir'), 'all'),
    ('pair_folder', ('RGB/val', 'lwir/val'), 'val'),
    ('pair_folder', ('val/visible', 'val/thermal'), 'val'),
    ('pair_folder', ('visible', 'infrared'), '.'),
  ],
)
def test_folders_are_paired_by_name(tmp_path, write_images, name, folders, split):
  write_images(tmp_path / folders[0], ('b', 'a'), suffix='png')
  write_images(tmp_path / folders[1], ('a', 'b'), suffix='bmp')
  source = sources.create_source(name, split, tmp_path)
  assert [example['visible_key'][-5:] for example in source] == ['a.png', 'b.png']
  assert source[1]['infrared_key'].endswith(f'{folders[1]}/b.bmp')


def test_a_file_may_list_the_pairs_of_a_split(tmp_path, write_images):
  for folder in ('vi', 'ir'):
    write_images(tmp_path / folder, ('a', 'b', 'c'))
  (tmp_path / 'held_out.txt').write_text('c.png\na\n')
  assert len(sources.create_source('tno', 'held_out.txt', tmp_path)) == 2
  (tmp_path / 'held_out.txt').write_text('d\n')
  with pytest.raises(ValueError, match=r"lists 'd', which is not in .*vi"):
    sources.create_source('tno', 'held_out.txt', tmp_path)
  with pytest.raises(ValueError, match="has no folders of splits: the split is 'all'"):
    sources.create_source('tno', 'train', tmp_path)


def test_shares_of_own_pairs_have_each_pair_once(tmp_path, write_images):
  for folder in ('visible', 'infrared'):
    write_images(tmp_path / folder, map(str, range(20)))
  shares = [sources.create_source('pair_folder', x, tmp_path) for x in ('.[:70%]', '.[70%:]')]
  names = [example['visible_key'] for share in shares for example in share]
  assert len(shares[0]) > len(shares[1]) > 0
  assert len(set(names)) == len(names) == 20
  with pytest.raises(ValueError, match=r"no pairs of split 'val'; its folders are .*Expected"):
    sources.create_source('pair_folder', 'val', tmp_path / 'visible')
