"""Checkpoints are unwrapped, whoever wrote them, and what is none is named."""

import argparse
import functools
import json
import os
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from crossattn_jax.conversion import reading, torch_files

FILES = pathlib.Path(__file__).parent / 'files'
X, Y = np.arange(3, dtype=np.float32), np.arange(4, dtype=np.float32)
RAW, AVERAGE = {'a.w': X, 'b.w': Y}, {'a.w': X + 1, 'b.w': Y + 1}


def under(prefix, state):
  return {f'{prefix}.{key}': x for key, x in state.items()}


def read(tmp_path, monkeypatch, content, which='auto'):
  """What is read of a file with this content."""
  path = tmp_path / 'checkpoint.pth'
  path.touch()
  monkeypatch.setattr(reading, '_read', lambda path: content)
  return reading.read_checkpoint(path, which)


WRAPPED = {
  'flat': RAW,
  'model': {'model': RAW, 'optimizer': {'state': {}}, 'epoch': 3},
  'state_dict': {'state_dict': RAW},
  'model_state': {'model_state': RAW, 'cfg': 'text', 'epoch': 3},
  'nested': {'model': {'state_dict': RAW}},
  'data-parallel': {'state_dict': under('module', RAW)},
  'compiled': under('_orig_mod', RAW),
  'compiled within': {'model': under('module', under('_orig_mod', RAW))},
  'lightning': {'state_dict': {**under('model', RAW), 'criterion.weight': X}, 'epoch': 3},
  'backbone': {'state_dict': under('backbone', RAW)},
  'beside a tensor': {'model': RAW, 'best': X[0:1]},
  'with a teacher': {'model': RAW, 'teacher': AVERAGE},
}


@pytest.mark.parametrize('content', WRAPPED.values(), ids=WRAPPED)
def test_weights_are_found_in_every_wrapper(tmp_path, monkeypatch, content):
  checkpoint = read(tmp_path, monkeypatch, content)
  assert list(checkpoint.state) == list(RAW)
  np.testing.assert_array_equal(checkpoint.state['a.w'], X)
  assert checkpoint.told.startswith('weights')


WITH_AVERAGE = {
  'DeiT': {'model': RAW, 'model_ema': AVERAGE, 'epoch': 299},
  'timm': {'state_dict': RAW, 'state_dict_ema': AVERAGE, 'epoch': 299},
  'within': {'model': {'state_dict': RAW, 'ema': AVERAGE}, 'epoch': 299},
  'prefixes': {'state_dict': {**under('model', RAW), **under('ema', AVERAGE)}, 'epoch': 299},
  'DINO': {
    'student': under('module', RAW),
    'teacher': under('module', AVERAGE),
    'epoch': 299,
  },
}


@pytest.mark.parametrize('content', WITH_AVERAGE.values(), ids=WITH_AVERAGE)
def test_the_average_is_taken_and_the_other_can_be(tmp_path, monkeypatch, content):
  for which, expected in (('auto', X + 1), ('ema', X + 1), ('raw', X)):
    checkpoint = read(tmp_path, monkeypatch, content, which)
    assert list(checkpoint.state) == list(RAW)
    np.testing.assert_array_equal(checkpoint.state['a.w'], expected)


def test_what_was_taken_is_told(tmp_path, monkeypatch):
  content = WITH_AVERAGE['DeiT']
  told = read(tmp_path, monkeypatch, content).told
  assert told == "EMA weights ('model_ema') of epoch 299; which='raw' takes 'model'"
  told = read(tmp_path, monkeypatch, content, 'raw').told
  assert told == "raw weights ('model') of epoch 299; which='ema' takes 'model_ema'"
  assert read(tmp_path, monkeypatch, {'model': RAW}).told == "weights ('model')"
  content = {'state_dict': {**under('model', RAW), **under('encoder', AVERAGE)}}
  told = read(tmp_path, monkeypatch, content).told
  assert told == "weights ('state_dict.model'), without 'state_dict.encoder'"


def test_an_entry_can_be_named(tmp_path, monkeypatch):
  content = {'netG': RAW, 'netD': under('module', AVERAGE)}
  options = torch_files.Foreign()
  with pytest.raises(reading.CheckpointError, match=r"weights in 'netG' and 'netD': which='netG'"):
    read(tmp_path, monkeypatch, content | {'args': options})
  checkpoint = read(tmp_path, monkeypatch, content, 'netD')
  np.testing.assert_array_equal(checkpoint.state['a.w'], X + 1)
  with pytest.raises(reading.CheckpointError, match="no entry 'netH', but the entries 'netG'"):
    read(tmp_path, monkeypatch, content, 'netH')


def test_an_average_that_is_not_there_is_missed(tmp_path, monkeypatch):
  with pytest.raises(reading.CheckpointError, match="no 'ema' weights, only model"):
    read(tmp_path, monkeypatch, {'model': RAW, 'model_ema': None}, 'ema')


@pytest.mark.parametrize(
  'said',
  [
    {'classes': ['cat', 'dog']},
    {'class_names': ('cat', 'dog')},
    {'names': {1: 'dog', 0: 'cat'}},
    {'class_to_idx': {'dog': 1, 'cat': 0}},
    {'meta': {'CLASSES': ('cat', 'dog')}},
    {'meta': {'dataset_meta': {'classes': ('cat', 'dog')}}},
  ],
  ids=lambda said: next(iter(said)),
)
def test_class_names_are_found(tmp_path, monkeypatch, said):
  assert read(tmp_path, monkeypatch, {'model': RAW, **said}).class_names == ('cat', 'dog')
  for others in ({}, {'names': {0: 'cat', 'b': 'dog'}}, {'classes': {'cat': [0], 'dog': 1}}):
    assert read(tmp_path, monkeypatch, {'model': RAW, **others}).class_names == ()


def test_files_of_torch_are_read_without_it(monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'torch', None)
  for file, start in (('training.pth', 100), ('before_1_6.pth', 0)):
    state = reading.read_checkpoint(FILES / file).state
    assert set(state) == {'w', 'turned', 'part', 'half', 'count', 'mask', 'empty'}
    np.testing.assert_array_equal(state['w'], np.arange(start, start + 6).reshape(2, 3))
    assert state['half'].dtype == np.float32


def test_a_pickled_network_is_read_as_its_state_dict():
  state = reading.read_checkpoint(FILES / 'network.pth').state
  assert set(state) == {
    *('conv.weight', 'conv.bias', 'norm.weight', 'norm.bias', 'norm.running_mean'),
    *('norm.running_var', 'norm.num_batches_tracked'),
  }
  np.testing.assert_array_equal(state['conv.weight'].ravel(), np.arange(6))


def test_the_network_of_an_authors_class_is_read_by_its_average_with_its_classes():
  """`yolo.pt` holds two of `models.yolo_test.Model`, as YOLOv5's training saves them."""
  checkpoint = reading.read_checkpoint(FILES / 'yolo.pt')
  assert list(checkpoint.state) == [
    *('model.0.conv.weight', 'model.0.bn.weight', 'model.0.bn.bias', 'model.0.bn.running_mean'),
    *('model.0.bn.running_var', 'model.0.bn.num_batches_tracked', 'model.1.anchors'),
    *('model.1.anchor_grid', 'model.1.m.0.weight', 'model.1.m.0.bias'),
  ]
  kernel = checkpoint.state['model.0.conv.weight']
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(kernel.ravel(), np.arange(1, 7))
  np.testing.assert_array_equal(checkpoint.state['model.1.anchor_grid'].ravel(), [10, 13])
  assert checkpoint.class_names == ('person',)
  assert checkpoint.told == "EMA weights ('ema'); which='raw' takes 'model'"
  kernel = reading.read_checkpoint(FILES / 'yolo.pt', 'raw').state['model.0.conv.weight']
  np.testing.assert_array_equal(kernel.ravel(), np.arange(6))


class Network:
  """Pickled, a network."""

  def __init__(self, **state):
    self.__dict__.update(state)


class Calls:
  """Pickled, a call of any function."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


def test_nothing_in_a_pickled_network_is_called(tmp_path):
  witness = tmp_path / 'witness'
  calls = [
    Calls(os.system, f'touch {witness}'),
    Calls(eval, f'open({str(witness)!r}, "w")'),
    Calls(functools.partial, Calls(os.system, f'touch {witness}')),
  ]
  hidden = [
    *({'model': call} for call in calls),
    *({'model': Network(_modules={'0': call})} for call in calls),
    *({'model': Network(_parameters={'w': call}, names=[call])} for call in calls),
    *({'model': Network(_parameters=call, _buffers=call, _modules=call)} for call in calls),
    *({'ema': Network(_modules={'0': Network(_buffers={'w': call})})} for call in calls),
  ]
  for content in hidden:
    with zipfile.ZipFile(tmp_path / 'x.pt', 'w') as archive:
      archive.writestr('archive/data.pkl', pickle.dumps(content, 2))
    with pytest.raises(reading.CheckpointError, match=r'x\.pt: refused: it would have to execute'):
      reading.read_checkpoint(tmp_path / 'x.pt')
  assert not witness.exists()


# In the letters of pickles: four numbers, a tensor of them, and how a state is set.
NUMBERS = b'(Vstorage\nctorch\nFloatStorage\n%sV0\nVcpu\nI4\ntQ'
TENSOR = b'ctorch._utils\n_rebuild_tensor_v2\n(%sI0\n(I%d\nt(I%d\ntI00\n(dtR'
STATE = b'(V%s\n%sdb'


@pytest.mark.parametrize(
  'tensor',
  [
    TENSOR % (NUMBERS % b'' + STATE % (b'size', b'I9\n'), 9, 1),
    TENSOR % (NUMBERS % b'', 4, 1) + STATE % (b'shape', b'(I9\nt'),
    TENSOR % (NUMBERS % (STATE % (b'dtype', b'VO\n')), 4, 1),
  ],
  ids=['storage', 'tensor', 'dtype'],
)
def test_what_tensors_read_memory_by_cannot_be_changed(tmp_path, tensor):
  """Sizes, shapes and dtypes that do not fit each other would read beyond the file's numbers."""
  with pytest.raises(reading.CheckpointError, match='changes a tensor that it has made'):
    reading.read_checkpoint(save_tensor(tmp_path / 'x.pt', tensor))


@pytest.mark.parametrize(
  ('length', 'stride'), [(5, 1), (2, 4), (-4, 1), (2**62, 0), (2**70, 0), (1, 2**62)]
)
def test_tensors_of_sizes_that_cannot_be_are_damaged(tmp_path, length, stride):
  path = save_tensor(tmp_path / 'x.pt', TENSOR % (NUMBERS % b'', length, stride))
  with pytest.raises(reading.CheckpointError, match=r'x\.pt: is damaged at w \('):
    reading.read_checkpoint(path)


def save_tensor(path, tensor):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', b'(Vw\n%sd.' % tensor)
    archive.writestr('archive/data/0', np.arange(4, dtype=np.float32).tobytes())
  return path


def test_a_network_that_contains_itself_is_refused(tmp_path, monkeypatch):
  network = torch_files.Foreign()
  network.state = {'_modules': {'0': network}}
  with pytest.raises(reading.CheckpointError, match='contains itself'):
    read(tmp_path, monkeypatch, {'model': network})


def test_half_precision_is_widened(tmp_path):
  half = np.arange(4, dtype=np.float16)
  safetensors.numpy.save_file({'w': half}, tmp_path / 'half.safetensors')
  state = reading.read_checkpoint(tmp_path / 'half.safetensors').state
  assert state['w'].dtype == np.float32
  np.testing.assert_array_equal(state['w'], half.astype(np.float32))


def test_numbers_of_eight_bits_are_refused_by_name(tmp_path):
  header = json.dumps({'w': {'dtype': 'F8_E4M3', 'shape': [4], 'data_offsets': [0, 4]}}).encode()
  path = tmp_path / 'narrow.safetensors'
  path.write_bytes(len(header).to_bytes(8, 'little') + header + bytes(4))
  with pytest.raises(reading.CheckpointError, match="'w' is F8_E4M3; take a file of"):
    reading.read_checkpoint(path)


def test_several_files_with_an_index_are_one(tmp_path):
  safetensors.numpy.save_file({'a.w': X}, tmp_path / 'model-1.safetensors')
  safetensors.numpy.save_file({'b.w': Y}, tmp_path / 'model-2.safetensors')
  index = {'weight_map': {'a.w': 'model-1.safetensors', 'b.w': 'model-2.safetensors'}}
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
  assert set(reading.read_checkpoint(tmp_path / 'model.safetensors.index.json').state) == set(RAW)


def test_a_truncated_safetensors_checkpoint_is_refused(tmp_path):
  path = tmp_path / 'checkpoint.safetensors'
  safetensors.numpy.save_file({'w': X}, path)
  path.write_bytes(path.read_bytes()[:-10])
  with pytest.raises(reading.CheckpointError, match='download it again'):
    reading.read_checkpoint(path)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'is empty'),
    (b'<!doctype html><html>log in</html>', 'a web page'),
    (b'\n<html>', 'a web page'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'git lfs pull'),
    (b'{"error": "not found"}', 'JSON'),
    (b'\x1f\x8b\x08\0\0\0\0\0', 'gunzip'),
    (b'\x89HDF\r\n\x1a\n', 'HDF5'),
    (b'PK\x03\x04truncated', 'download it again'),
    (b'\x80\x02}q\0', 'download it again'),
    (b'\x08\0\0\0\0\0\0\0{"a":1}', 'download it again'),
    (b'\x93NUMPY\x01\0', 'no file of PyTorch or safetensors'),
  ],
)
def test_what_was_downloaded_by_mistake_is_named(tmp_path, content, message, suffix):
  path = tmp_path / f'damaged{suffix}'
  path.write_bytes(content)
  with pytest.raises(reading.CheckpointError, match=rf'damaged\{suffix}.*{message}'):
    reading.read_checkpoint(path)


@pytest.mark.torch
class TestTorchFiles:
  def save(self, path, content):
    import torch

    torch.save(content, path)
    return path

  def tensors(self):
    import torch

    return {key: torch.from_numpy(value) for key, value in RAW.items()}

  def test_a_flat_state_dict_is_read(self, tmp_path):
    path = self.save(tmp_path / 'model.pth', self.tensors())
    assert list(reading.read_checkpoint(path).state) == list(RAW)

  def test_a_training_checkpoint_is_unwrapped(self, tmp_path):
    content = {
      'model': {f'module.{key}': tensor for key, tensor in self.tensors().items()},
      'optimizer': {'state': {}, 'param_groups': []},
      'epoch': 3,
      'args': argparse.Namespace(lr=0.1),
    }
    result = reading.read_checkpoint(self.save(tmp_path / 'checkpoint.pth', content)).state
    assert list(result) == list(RAW)
    np.testing.assert_array_equal(result['a.w'], RAW['a.w'])

  def test_a_file_that_would_execute_code_is_refused(self, tmp_path):
    witness = tmp_path / 'executed'

    class Evil:
      def __reduce__(self):
        return (open, (str(witness), 'w'))

    path = self.save(tmp_path / 'evil.pth', {'model': Evil()})
    with pytest.raises(reading.CheckpointError, match=r'evil\.pth: refused'):
      reading.read_checkpoint(path)
    assert not witness.exists()

  @pytest.mark.parametrize('zipped', [True, False])
  def test_a_network_of_classes_that_are_not_here_is_its_state_dict(
    self, tmp_path, monkeypatch, zipped
  ):
    import torch

    def pretend(name, base=torch.nn.Module):
      module, _, kind = name.rpartition('.')
      made = types.ModuleType(module)
      for part in (module, module.partition('.')[0]):
        monkeypatch.setitem(sys.modules, part, made)
      setattr(made, kind, type(kind, (base,), {'__module__': module}))
      return getattr(made, kind)

    conv, network = pretend('models.common.Conv')(), pretend('models.yolo_test.Model')()
    conv.conv, conv.bn = torch.nn.Conv2d(3, 2, 1, bias=False), torch.nn.BatchNorm2d(2)
    head = torch.nn.ModuleList([torch.nn.Conv2d(2, 18, 1)])
    head.register_buffer('anchor_grid', torch.rand(1, 1, 1, 1, 1, 2))
    head.register_buffer('kept', torch.rand(2), persistent=False)
    network.model, network.names = torch.nn.Sequential(conv, head), {0: 'person'}
    network.anchors = pretend('utils.autoanchor.Anchors', object)()
    content = {'epoch': -1, 'model': network.half(), 'ema': None, 'optimizer': None}
    torch.save(content, tmp_path / 'x.pt', _use_new_zipfile_serialization=zipped)
    for name in ('models.common', 'models.yolo_test', 'utils.autoanchor'):
      monkeypatch.delitem(sys.modules, name)
    checkpoint = reading.read_checkpoint(tmp_path / 'x.pt')
    expected = network.state_dict()
    assert set(checkpoint.state) == set(expected)
    for key, x in checkpoint.state.items():
      np.testing.assert_array_equal(x, expected[key].numpy())
    assert checkpoint.class_names == ('person',)
    assert checkpoint.told == "weights ('model')"

  def test_what_is_no_state_dict_is_refused(self, tmp_path):
    path = self.save(tmp_path / 'numbers.pth', {'epoch': 3})
    with pytest.raises(reading.CheckpointError, match='holds no state dict'):
      reading.read_checkpoint(path)
