"""Files of torch.save are read without PyTorch, to the bit, and nothing in them is executed.

`files/` was written by PyTorch 2.12; `torch_` tests write others and compare with torch.load.
"""

import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from crossattn_jax.conversion import torch_files

FILES = pathlib.Path(__file__).parent / 'files'


def state_dict(start):
  """What the files hold: numbers that count from `start`."""
  count = np.arange(start, start + 16, dtype=np.float32)
  return {
    'module.w': count[:6].reshape(2, 3),
    'module.turned': count[:6].reshape(2, 3).T,
    'module.part': count.reshape(4, 4)[1:3, ::2],
    'module.half': count[:3],
    'module.count': np.int64(7),
    'module.mask': np.array([True, False]),
    'module.empty': np.zeros((0, 3), np.float32),
  }


def assert_holds(tensors, expected):
  assert list(tensors) == list(expected)
  for key, value in expected.items():
    array = tensors[key].numpy()
    np.testing.assert_array_equal(np.asarray(array, value.dtype), value, err_msg=key)
    assert array.dtype.name == ('bfloat16' if key == 'module.half' else value.dtype.name)


def test_tensors_are_read_to_the_bit_whatever_view_they_are():
  content = torch_files.load(FILES / 'training.pth')
  assert_holds(content['model'], state_dict(0))
  assert_holds(content['model_ema'], state_dict(100))
  assert content['epoch'] == 299
  assert content['class_to_idx'] == {'cat': 0, 'dog': 1}


def test_files_of_pytorch_before_1_6_are_read():
  content = torch_files.load(FILES / 'before_1_6.pth')
  assert_holds(content['state_dict'], state_dict(0))


def test_what_is_no_tensor_stands_for_what_the_file_says():
  content = torch_files.load(FILES / 'training.pth')
  assert isinstance(content['args'], torch_files.Foreign)
  assert content['args'].state == {'lr': 0.1, 'tags': {'a'}}
  assert isinstance(content['best'], torch_files.Foreign)
  network = torch_files.load(FILES / 'network.pth')
  assert type(network).__name__ == 'DataParallel'
  assert '_modules' in network.state


def write_zip(path, pickled, **storages):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', pickled)
    for key, content in storages.items():
      archive.writestr(f'archive/data/{key}', content)
  return path


def crafted(shape, strides, offset=0, size=4):
  """A pickle, in text, of a tensor with these numbers on a storage of `size`."""
  integers = {name: ''.join(f'I{n}\n' for n in x) for name, x in (('n', shape), ('s', strides))}
  return (
    b'ctorch._utils\n_rebuild_tensor_v2\n('
    b'('
    + b'Vstorage\nctorch\nFloatStorage\nVkey\nVcpu\n'
    + f'I{size}\n'.encode()
    + b'tQ'
    + f'I{offset}\n({integers["n"]}t({integers["s"]}tI00\nNtR.'.encode()
  )


def test_a_crafted_tensor_is_read(tmp_path):
  path = write_zip(
    tmp_path / 'x.pth', crafted((2, 2), (2, 1)), key=np.arange(4.0, dtype='<f4').tobytes()
  )
  np.testing.assert_array_equal(torch_files.load(path).numpy(), [[0, 1], [2, 3]])


@pytest.mark.parametrize(
  'tensor',
  [
    {'shape': (3, 2), 'strides': (2, 1)},
    {'shape': (2, 2), 'strides': (2, 1), 'offset': 1},
    {'shape': (2, 2), 'strides': (-2, 1)},
    {'shape': (2, 2), 'strides': (2, 1), 'offset': -1},
    {'shape': (2, 2), 'strides': (2, 10**9)},
    {'shape': (100, 100), 'strides': (100, 1), 'size': 10_000},
    {'shape': (2, 2), 'strides': (2,)},
  ],
)
def test_no_tensor_reaches_beyond_its_storage(tmp_path, tensor):
  path = write_zip(tmp_path / 'x.pth', crafted(**tensor), key=bytes(16))
  with pytest.raises(torch_files.UnreadableTorchFile, match='a tensor'):
    torch_files.load(path).numpy()


class Calls:
  """Pickled, a call of any function."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


def test_nothing_that_a_file_names_is_called(tmp_path):
  witness = tmp_path / 'witness'
  content = {
    'open': Calls(open, str(witness), 'w'),
    'eval': Calls(eval, f'open({str(witness)!r}, "w")'),
    'getattr': Calls(getattr, 1, 'real'),
  }
  path = write_zip(tmp_path / 'x.pth', pickle.dumps(content, 2))
  loaded = torch_files.load(path)
  assert all(isinstance(x, torch_files.Foreign) for x in loaded.values())
  assert not witness.exists()


def test_a_file_cannot_change_what_the_next_one_means(tmp_path):
  """An attribute set on one of the few functions that a pickle gets stays in that pickle."""
  setting = b'ctorch._utils\n_rebuild_tensor_v2\n(N(dV__defaults__\n(I1\ntstb.'
  write_zip(tmp_path / 'x.pth', setting)
  with pytest.raises(torch_files.UnreadableTorchFile, match='damaged'):
    torch_files.load(tmp_path / 'x.pth')
  assert_holds(torch_files.load(FILES / 'training.pth')['model'], state_dict(0))


@pytest.mark.parametrize('length', [10, 600, 1200])
def test_a_file_that_is_cut_short_is_refused(tmp_path, length):
  path = tmp_path / 'short.pth'
  path.write_bytes((FILES / 'before_1_6.pth').read_bytes()[:length])
  with pytest.raises(torch_files.UnreadableTorchFile):
    torch_files.load(path)
  path.write_bytes((FILES / 'training.pth').read_bytes()[: 4 * length])
  with pytest.raises(torch_files.UnreadableTorchFile):
    torch_files.load(path)


def test_other_archives_and_pickles_are_named(tmp_path):
  np.savez(tmp_path / 'x.npz', a=np.ones(2))
  with pytest.raises(torch_files.UnreadableTorchFile, match=r'a zip archive of a\.npy'):
    torch_files.load(tmp_path / 'x.npz')
  (tmp_path / 'x.pkl').write_bytes(pickle.dumps({'a': 1}))
  with pytest.raises(torch_files.UnreadableTorchFile, match=r'not of torch\.save'):
    torch_files.load(tmp_path / 'x.pkl')


@pytest.mark.torch
class TestAgainstTorch:
  @pytest.mark.parametrize('zipped', [True, False])
  def test_every_kind_of_tensor_is_what_torch_reads(self, tmp_path, zipped):
    import torch

    linear = torch.nn.Linear(3, 4)
    x = torch.randn(4, 6, generator=torch.manual_seed(0))
    content = {
      **{str(kind): (10 * x).to(kind) for kind in (torch.float16, torch.bfloat16, torch.float64)},
      **{str(kind): (10 * x).to(kind) for kind in (torch.int8, torch.uint8, torch.int16)},
      **{str(kind): (10 * x).to(kind) for kind in (torch.int32, torch.int64, torch.bool)},
      **{str(kind): x.to(kind) for kind in (torch.complex64, torch.complex128)},
      'turned': x.T,
      'expanded': x[:1].expand(5, 6),
      'part': x[1:, ::3],
      'scalar': torch.tensor(2.5),
      'empty': torch.zeros(3, 0),
      'parameter': linear.weight,
      'channels_last': x.reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    }
    path = tmp_path / 'x.pth'
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    expected = torch.load(path, weights_only=True)
    for key, tensor in torch_files.load(path).items():
      array, wanted = tensor.numpy(), expected[key].detach()
      assert str(wanted.dtype) == f'torch.{array.dtype.name}'
      wanted = wanted.float() if wanted.dtype == torch.bfloat16 else wanted
      np.testing.assert_array_equal(np.asarray(array, wanted.numpy().dtype), wanted.numpy(), key)

  def test_a_torchscript_program_is_named(self, tmp_path):
    import torch

    torch.jit.trace(torch.nn.Linear(2, 3), torch.ones(1, 2)).save(tmp_path / 'x.pt')
    with pytest.raises(torch_files.UnreadableTorchFile, match='TorchScript'):
      torch_files.load(tmp_path / 'x.pt')
