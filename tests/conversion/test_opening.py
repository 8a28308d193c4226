"""Weights are opened as their network was saved, and what cannot be opened names the next step."""

import json

import numpy as np
import pytest
import safetensors.numpy

from crossattn_jax.conversion import correspondence, mapping, opening, reading
from crossattn_jax.models import registry, variables_io

TINY = {'swiftformer_xs': {'widths': (8, 12), 'depths': (2, 1)}}
TINY['crossvit_tiny_240'] = {'widths': (8, 16), 'num_heads': (2, 2), 'depths': ((1, 1, 0),)}
TINY['mmvit_tiny'] = {'embed_dim': 8, 'depths': (1, 1), 'cross_stages': (0,)}
TINY['biformer_tiny'] = {'widths': (32, 32, 32, 32), 'depths': (1, 1, 1, 1)}
TINY['ccnet_resnet50'] = {'depths': (1, 1, 1, 1), 'widths': (8, 8, 8, 8), 'stem_widths': (8, 8, 8)}
TINY['ccnet_resnet50'] |= {'head_channels': 8}
TINY['bert_base_uncased'] = {'width': 8, 'num_layers': 1, 'num_heads': 2, 'mlp_dim': 8}
TINY['bert_base_uncased'] |= {'vocab_size': 30, 'max_positions': 16}


def state_of(name, spelling='', **fields):
  """The state dict of a network, and the variables that it becomes."""
  converter, _ = correspondence.model_mapping(name, registry.create_model(name, **fields), spelling)
  random = np.random.default_rng(0)
  return {
    entry.torch_key: random.normal(size=entry.torch_shape).astype(np.float32)
    for entry in converter.entries
  }


def write(path, state, **metadata):
  safetensors.numpy.save_file(state, path, metadata)
  return path


SAVED = [
  # The network that was saved, then what was asked for.
  ('swiftformer_xs', {'num_classes': 7}, {'num_classes': 20, 'distillation': False}),
  ('swiftformer_xs', {'num_classes': 7, 'distillation': False}, {}),
  ('swiftformer_xs', {'num_classes': 0, 'distillation': False}, {'num_classes': 5}),
  ('swiftformer_xs', {'num_channels': 1}, {'num_channels': 3}),
  ('swiftformer_xs', {'backbone': True, 'distillation': False}, {}),
  ('swiftformer_xs', {}, {'backbone': True}),
  ('crossvit_tiny_240', {'image_size': (48, 48), 'num_classes': 3}, {'image_size': (96, 96)}),
  ('crossvit_tiny_240', {'branch_image_sizes': ((48, 48), (64, 64)), 'image_size': (48, 48)}, {}),
  ('crossvit_tiny_240', {'num_channels': 4}, {'num_classes': 3}),
  ('mmvit_tiny', {'image_size': (64, 64), 'num_classes': 3}, {}),
  ('mmvit_tiny', {'positions': 'separable', 'image_size': (32, 64)}, {'num_channels': 1}),
  ('mmvit_tiny', {'global_pool': 'avg', 'num_channels': 1}, {}),
  ('biformer_tiny', {'num_classes': 3, 'num_channels': 1}, {'num_classes': 0}),
  ('biformer_tiny', {'backbone': True}, {}),
  ('ccnet_resnet50', {'auxiliary': False, 'num_classes': 3}, {'num_classes': 4}),
  ('ccnet_resnet50', {'embedding': 4, 'num_channels': 1}, {}),
  ('bert_base_uncased', {'vocab_size': 20, 'pooler': False}, {}),
]


@pytest.mark.parametrize(('name', 'saved', 'asked'), SAVED)
def test_a_network_is_opened_as_it_was_saved(tmp_path, name, saved, asked):
  saved, asked = TINY[name] | saved, TINY[name] | asked
  path = write(tmp_path / 'x.safetensors', state_of(name, **saved))
  opened = opening.open_weights(path, name, asked)
  assert opened.name == name
  wanted = registry.create_model(name, **saved)
  given = registry.create_model(name, **opened.overrides)
  wanted, given = getattr(wanted, 'options', wanted), getattr(given, 'options', given)
  for field in saved:
    assert getattr(given, field) == getattr(wanted, field), field


def test_what_was_taken_is_told(tmp_path):
  name = 'swiftformer_xs'
  path = write(tmp_path / 'x.safetensors', state_of(name, 'timm', **TINY[name]))
  assert opening.open_weights(path, name, TINY[name]).told == f"{path}: timm's {name}, weights"


def test_transformers_spelling_is_of_the_first_generation(tmp_path):
  """Keys and shapes are the same but for their names, the outputs are not."""
  name = 'swiftformer_xs'
  path = write(tmp_path / 'x.safetensors', state_of(name, 'transformers', **TINY[name]))
  opened = opening.open_weights(path, name, TINY[name])
  assert opened.overrides['attn_weights'] == 'ones'
  assert opened.told.endswith(f"transformers' {name}, weights, for attn_weights='ones'")
  with pytest.raises(ValueError, match=r'mean nothing with .*leave attn_weights out'):
    opening.open_weights(path, name, {**TINY[name], 'attn_weights': 'l2'})
  path = write(tmp_path / 'x.safetensors', state_of(name, **TINY[name]))
  opened = opening.open_weights(path, name, {**TINY[name], 'attn_weights': 'ones'})
  assert opened.overrides['attn_weights'] == 'ones'


def test_dense_crossformers_of_the_first_release_group_the_whole_map(tmp_path):
  name, fields = 'crossformer_tiny+semantic_fpn', {'widths': (32, 32, 32, 32)}
  fields |= {'depths': (1, 1, 1, 1), 'head_channels': 8}
  state = state_of(name, **fields)
  opened = opening.open_weights(write(tmp_path / 'x.safetensors', state), name, fields)
  assert 'lda' not in opened.overrides
  state['backbone.layers.0.blocks.0.attn.biases'] = np.zeros((169, 2), np.float32)
  opened = opening.open_weights(write(tmp_path / 'x.safetensors', state), name, fields)
  assert opened.overrides['lda'] == 'global'


CONFIGS = [
  ('swiftformer_xs', {'model_type': 'swiftformer', 'batch_norm_eps': 1e-3}, 'batch_norm_eps'),
  ('swiftformer_xs', {'model_type': 'swiftformer', 'hidden_act': 'relu'}, 'hidden_act'),
  ('bert_base_uncased', {'model_type': 'bert', 'hidden_act': 'gelu_new'}, 'hidden_act'),
  ('bert_base_uncased', {'model_type': 'bert', 'layer_norm_eps': 1e-5}, 'layer_norm_eps'),
  ('bert_base_uncased', {'model_type': 'roberta'}, 'model_type'),
  ('crossvit_tiny_240', {'architecture': 'crossvit_tiny_240', 'global_pool': 'max'}, 'global_pool'),
]


@pytest.mark.parametrize(('name', 'config', 'entry'), CONFIGS)
def test_a_folder_whose_config_computes_something_else_is_refused(tmp_path, name, config, entry):
  write(tmp_path / 'model.safetensors', state_of(name, **TINY[name]))
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(
    mapping.MappingError, match=f'config.json: {entry} is .*, but {name} computes'
  ):
    opening.open_weights(tmp_path, name, TINY[name])


def test_a_folder_of_hugging_face_is_opened_with_its_classes(tmp_path):
  name = 'crossvit_tiny_240'
  fields = {**TINY[name], 'num_classes': 2}
  write(tmp_path / 'model.safetensors', state_of(name, 'timm', **fields))
  config = {'architecture': name, 'global_pool': 'avg', 'id2label': {'1': 'dog', '0': 'cat'}}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  opened = opening.open_weights(tmp_path, name, TINY[name])
  assert opened.class_names == ('cat', 'dog')
  assert opened.overrides['num_classes'] == 2
  assert opened.overrides['global_pool'] == 'avg'
  config['id2label'] = {'0': 'LABEL_0', '1': 'LABEL_1'}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  assert opening.open_weights(tmp_path, name, TINY[name]).class_names == ()


def test_images_that_are_normalised_otherwise_are_told(tmp_path):
  name = 'swiftformer_xs'
  path = write(tmp_path / 'model.safetensors', state_of(name, **TINY[name]))
  preprocessing = {'image_mean': [0.5, 0.5, 0.5], 'image_std': [0.229, 0.224, 0.225]}
  (tmp_path / 'preprocessor_config.json').write_text(json.dumps(preprocessing))
  told = opening.open_weights(path, name, TINY[name]).told
  assert told.endswith(', weights, for images of mean (0.5, 0.5, 0.5)')


def test_files_of_this_library_say_all_of_themselves(tmp_path):
  variables = {'params': {'head': {'kernel': np.ones((2, 3), np.float32)}}}
  path = tmp_path / 'weights.safetensors'
  fields = {'num_classes': 3, 'attn_weights': 'ones'}
  variables_io.save_variables(path, variables, 'swiftformer_xs', fields, ('a', 'b', 'c'))
  for source in (path, tmp_path):  # an exported model's folder
    opened = opening.open_weights(source, 'swiftformer_xs', {'num_classes': 7})
    assert opened.overrides == fields
    assert opened.class_names == ('a', 'b', 'c')
    np.testing.assert_array_equal(opened.variables['params']['head']['kernel'], np.ones((2, 3)))


def test_the_workdir_of_a_run_is_named(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(reading.CheckpointError, match=r'workdir of a run.*--mode=export'):
    opening.open_weights(tmp_path, 'swiftformer_xs')


def test_a_path_of_the_home_folder_is_found(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  write(tmp_path / 'x.safetensors', {'a': np.ones(1, np.float32)})
  with pytest.raises(mapping.MappingError, match='arrays of no registered model'):
    opening.open_weights('~/x.safetensors', 'swiftformer_xs')


def test_a_folder_without_weights_is_named(tmp_path):
  (tmp_path / 'notes.txt').touch()
  with pytest.raises(reading.CheckpointError, match=r'has none of weights.*, but notes\.txt'):
    opening.open_weights(tmp_path, 'swiftformer_xs')


def test_weights_of_another_registered_model_name_it(tmp_path):
  path = write(tmp_path / 'x.safetensors', state_of('swiftformer_s', num_classes=3))
  with pytest.raises(mapping.MappingError, match=r"of 'swiftformer_s', not of .*: use that name"):
    opening.open_weights(path, 'crossvit_tiny_240')
  with pytest.raises(mapping.MappingError, match=r"of 'swiftformer_s', not of .*: use that name"):
    opening.open_weights(path, 'swiftformer_xs')


def test_weights_of_no_registered_model_are_named(tmp_path):
  path = write(tmp_path / 'x.safetensors', {f'a.{i}': np.ones(2, np.float32) for i in range(99)})
  with pytest.raises(mapping.MappingError, match=r'99 arrays of no registered model.*a\.0, a\.1'):
    opening.open_weights(path, 'crossvit_tiny_240')


RELATED = [
  ('swiftformer_xs', {}, 'swiftformer_xs+semantic_fpn'),
  ('swiftformer_xs+semantic_fpn', {'num_classes': 3}, 'swiftformer_xs'),
  ('resnet50_deep_stem', {}, 'ccnet_resnet50'),
  ('bert_base_uncased', {}, 'mmca_bert_base'),
]


@pytest.mark.extended
@pytest.mark.parametrize(('saved', 'fields', 'asked'), RELATED)
def test_a_part_of_the_network_or_its_whole_is_opened_as_what_it_is(tmp_path, saved, fields, asked):
  path = write(tmp_path / 'x.safetensors', state_of(saved, **fields))
  assert opening.open_weights(path, asked, {}).name == saved


@pytest.mark.torch
def test_a_training_checkpoint_of_timm_is_opened_by_its_average(tmp_path):
  import timm
  import torch

  name = 'crossvit_tiny_240'
  states = [timm.create_model(name, num_classes=3).state_dict() for _ in range(2)]
  path = tmp_path / 'last.pth.tar'
  torch.save({'epoch': 9, 'state_dict': states[0], 'state_dict_ema': states[1]}, path)
  for which, state in (('auto', states[1]), ('raw', states[0])):
    opened = opening.open_weights(path, name, which=which)
    np.testing.assert_array_equal(
      opened.variables['params']['head_0']['kernel'], state['head.0.weight'].numpy().T
    )
  assert opened.overrides['num_classes'] == 3
  assert "timm's crossvit_tiny_240, raw weights ('state_dict') of epoch 9" in opened.told


def test_a_crossvit_of_other_widths_says_what_to_give(tmp_path):
  fields = {'widths': (16, 24), 'num_heads': (2, 2), 'depths': ((1, 1, 0),)}
  file = write(tmp_path / 'narrow.safetensors', state_of('crossvit_tiny_240', **fields))
  with pytest.raises(mapping.MappingError) as caught:
    opening.open_weights(file, 'crossvit_tiny_240', {'depths': ((1, 1, 0),)})
  assert 'widths=(16, 24), not (96, 192)' in str(caught.value)
  assert 'num_heads, which no array tells' in str(caught.value)
  assert opening.open_weights(file, 'crossvit_tiny_240', fields).overrides['widths'] == (16, 24)
