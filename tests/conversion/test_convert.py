"""Checkpoints of the originals to this library's variables and back."""

import re

import jax
import numpy as np
import pytest
import safetensors.numpy

from crossattn_jax.conversion import convert, correspondence, mapping
from crossattn_jax.models import registry, variables_io
from crossattn_jax.parity import __main__

NAME = 'crossvit_tiny_240'
SMALL = {
  'widths': [8, 16],
  'num_heads': [2, 2],
  'depths': [[1, 1, 0]],
  'image_size': [48, 48],
  'num_classes': 5,
}


@pytest.fixture(scope='module')
def state():
  """A state dict of the small model, in the official spelling, without running anything."""
  converter, _ = correspondence.model_mapping(NAME, registry.create_model(NAME, **SMALL))
  random = np.random.default_rng(0)
  return {
    entry.torch_key: random.normal(size=entry.torch_shape).astype(np.float32)
    for entry in converter.entries
  }


@pytest.fixture
def checkpoint(tmp_path, state):
  path = tmp_path / 'checkpoint.safetensors'
  safetensors.numpy.save_file(state, path)
  return path


def small_overrides():
  return [f'--override={field}={value}' for field, value in SMALL.items()]


def test_official_checkpoint_converts_both_ways_to_the_bit(state):
  conversion = convert.to_flax(NAME, state, SMALL)
  back = convert.to_torch(NAME, conversion.variables, SMALL)
  assert set(back) == set(state)
  for key, value in state.items():
    np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_timms_spelling_is_read_and_written(state):
  timm = {re.sub(r'^(pos_embed|cls_token)\.', r'\1_', key): x for key, x in state.items()}
  assert 'pos_embed_0' in timm
  conversion = convert.to_flax(NAME, timm, SMALL)
  back = convert.to_torch(NAME, conversion.variables, SMALL, spelling='timm')
  assert set(back) == set(timm)
  for key, value in timm.items():
    np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_the_report_has_a_line_per_tensor(state):
  report = convert.to_flax(NAME, state, SMALL).report
  assert [line.torch_key for line in report] == list(state)
  [line] = [line for line in report if line.torch_key == 'head.0.weight']
  assert (line.torch_shape, line.flax_path, line.flax_shape, line.action) == (
    (5, 8),
    'params/head_0/kernel',
    (8, 5),
    'linear',
  )


def test_a_checkpoint_of_another_model_is_refused_by_name():
  other = 'crossvit_9_240'
  converter, _ = correspondence.model_mapping(other, registry.create_model(other))
  state = {e.torch_key: np.broadcast_to(np.float32(0), e.torch_shape) for e in converter.entries}
  with pytest.raises(mapping.MappingError) as error:
    convert.to_flax('crossvit_9_dagger_240', state)
  assert 'missing: patch_embed.0.proj.0.weight' in str(error.value)
  assert 'unexpected: patch_embed.0.proj.weight' in str(error.value)
  assert str(error.value).startswith('crossvit_9_dagger_240: ')


def test_another_number_of_classes_is_never_dropped_silently(state):
  with pytest.raises(mapping.MappingError, match=r'misshapen: head\.0\.weight is \(5, 8\)'):
    convert.to_flax(NAME, state, {**SMALL, 'num_classes': 7})


def test_variables_file_rebuilds_its_model(tmp_path, state):
  conversion = convert.to_flax(NAME, state, SMALL)
  conversion.save(tmp_path / 'small.safetensors')
  name, overrides, variables, _ = variables_io.load_variables(tmp_path / 'small.safetensors')
  module = registry.create_model(name, **overrides)
  assert module.widths == (8, 16)
  logits, _ = jax.eval_shape(module.apply, variables, np.zeros((1, 48, 48, 3), np.float32))
  assert logits.shape == (1, 5)


def test_the_command_converts_there_and_back(tmp_path, checkpoint, state, capsys):
  ours, back = str(tmp_path / 'ours.safetensors'), tmp_path / 'back.safetensors'
  assert __main__.main(['convert', NAME, str(checkpoint), ours, *small_overrides()]) == 0
  output = capsys.readouterr().out
  assert 'params/head_0/kernel' in output
  assert output.splitlines()[-1].endswith(f'{len(state)} arrays of {NAME}')
  assert __main__.main(['convert', NAME, ours, str(back)]) == 0
  result = safetensors.numpy.load_file(back)
  assert set(result) == set(state)
  for key, value in state.items():
    np.testing.assert_array_equal(result[key], value, err_msg=key)


def test_the_command_replaces_the_head_and_resizes_when_asked(tmp_path, checkpoint, capsys):
  ours = str(tmp_path / 'ours.safetensors')
  arguments = ['convert', NAME, str(checkpoint), ours, *small_overrides()]
  assert __main__.main([*arguments, '--new-head', '3', '--new-image-size', '60x60']) == 0
  assert 'resized from 4x4 to 5x5 patches' in capsys.readouterr().out
  saved = variables_io.load_variables(ours)
  assert saved.overrides['num_classes'] == 3
  assert saved.variables['params']['head_0']['kernel'].shape == (8, 3)


def test_the_command_refuses_what_does_not_fit(tmp_path, checkpoint, capsys):
  output = tmp_path / 'ours.safetensors'
  assert __main__.main(['convert', 'crossvit_9_dagger_240', str(checkpoint), str(output)]) == 2
  assert 'missing: patch_embed.0.proj.0.weight' in capsys.readouterr().err
  assert not output.exists()


def test_the_command_refuses_a_field_that_the_checkpoint_contradicts(tmp_path, checkpoint, capsys):
  output = str(tmp_path / 'ours.safetensors')
  arguments = ['convert', NAME, str(checkpoint), output, *small_overrides()]
  assert __main__.main([*arguments, '--override=num_classes=1000']) == 2
  assert 'has num_classes=5, not 1000' in capsys.readouterr().err
  assert __main__.main([x for x in arguments if 'num_classes' not in x]) == 0
  assert variables_io.load_variables(output).overrides['num_classes'] == 5


def test_without_pytorch_writing_a_pth_names_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'torch', None)
  with pytest.raises(ImportError, match=r"pip install 'crossattn_jax\[torch\]'"):
    convert.write_torch(tmp_path / 'checkpoint.pth', {})


@pytest.mark.torch
class TestTorch:
  def test_a_pth_is_written_that_torch_loads(self, tmp_path, state):
    import torch

    variables = convert.to_flax(NAME, state, SMALL).variables
    path = tmp_path / 'back.pth'
    convert.write_torch(path, convert.to_torch(NAME, variables, SMALL))
    loaded = torch.load(path, weights_only=True)
    for key, value in state.items():
      np.testing.assert_array_equal(loaded[key].numpy(), value, err_msg=key)

  @pytest.mark.parametrize('name', ['crossvit_tiny_240', 'crossvit_9_dagger_240'])
  def test_timm_models_round_trip_to_the_bit(self, name):
    import timm

    state = timm.create_model(name, pretrained=False).state_dict()
    state = {key: tensor.numpy() for key, tensor in state.items()}
    variables = convert.to_flax(name, state).variables
    back = convert.to_torch(name, variables, spelling='timm')
    assert set(back) == set(state)
    for key, value in state.items():
      np.testing.assert_array_equal(back[key], value, err_msg=key)
