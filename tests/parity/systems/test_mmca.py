import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from crossattn_jax import models
from crossattn_jax.conversion import (
  convert,
  correspondence,
  mapping,
  pretrained,
  published,
  reading,
)
from crossattn_jax.parity import __main__ as command_line
from crossattn_jax.parity import adapters
from crossattn_jax.parity.arguments import ArgumentError

REFERENCE = pathlib.Path(__file__).parents[2] / 'reference' / 'mmca'
# Sizes of the recorded cases.
MMCA = {
  'region_dim': 40,
  'word_dim': 24,
  'width': 32,
  'num_heads': 4,
  'mlp_dim': 48,
  'conv_channels': 20,
  'cross_conv_channels': 20,
}
TINY_BERT = {'vocab_size': 30, 'max_positions': 16, 'mlp_dim': 40, 'num_heads': 4}
SAEM = {
  'region_dim': 64,
  'word_dim': 24,
  'width': 32,
  'num_heads': 4,
  'mlp_dim': 48,
  'max_words': 9,
  'text_layers': 2,
  'vocab_size': 30,
  'text_heads': 4,
  'text_mlp_dim': 40,
  'max_positions': 16,
}


def _recorded_state(case, prefix=''):
  rng = np.random.RandomState(0)
  return {
    prefix + entry['key']: rng.standard_normal(entry['shape']).astype(np.float32)
    for entry in json.loads((REFERENCE / f'{case}.json').read_text())['state']
  }


def _saem_state():
  """Both state dicts; the recorded branches have different widths."""
  image = _recorded_state('saem_image_branch', '0.')
  text = _recorded_state('saem_text_branch_tiny', '1.')
  rng = np.random.RandomState(1)
  text['1.mapping.weight'] = rng.standard_normal((32, 1536)).astype(np.float32)
  text['1.mapping.bias'] = rng.standard_normal(32).astype(np.float32)
  return image | text


def _modern(state):
  """As Hugging Face's library names what it trains today, the pretraining heads beside it."""
  names = {'gamma': 'weight', 'beta': 'bias'}
  renamed = {}
  for key, value in state.items():
    stem, _, last = key.rpartition('.')
    renamed[f'bert.{stem}.{names.get(last, last)}'] = value
  heads = {'cls.predictions.bias': np.zeros(30, np.float32)}
  return renamed | heads | {'bert.embeddings.position_ids': np.arange(16)[None]}


def _assert_same(a, b):
  assert set(a) == set(b)
  for key, value in a.items():
    np.testing.assert_array_equal(b[key], value)


@pytest.mark.parametrize(
  ('case', 'fields'),
  [
    ('similarity_small', {}),
    (
      'similarity_variant',
      {
        'num_heads': 8,
        'mlp_dim': 64,
        'conv_channels': 12,
        'cross_conv_channels': 16,
        'cross_units': 2,
      },
    ),
  ],
)
def test_checkpoints_convert_both_ways_without_losing_a_bit(case, fields):
  state, fields = _recorded_state(case), {**MMCA, **fields}
  conversion = convert.to_flax('mmca', state, fields)
  _assert_same(convert.to_torch('mmca', conversion.variables, fields), state)


def test_several_image_units_have_their_own_names():
  fields = {**MMCA, 'image_units': 2}
  _, template = correspondence.model_mapping('mmca', models.create_model('mmca', **fields))
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), template)
  state = convert.to_torch('mmca', zeros, fields)
  assert {'img_self.0.attn.q.weight', 'img_self.1.ln2.bias'} < set(state)
  assert set(convert.to_flax('mmca', state, fields).variables['params']) == set(template['params'])


BRANCHES = {'image_branch': 'gru', 'text_branch': 'gru', 'gru_dim': 5}


def test_branches_without_an_original_have_names_of_their_own():
  fields = {**MMCA, **BRANCHES}
  _, template = correspondence.model_mapping('saem', models.create_model('saem', **fields))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda x: rng.random(x.shape, np.float32), template)
  state = convert.to_torch('saem', variables, fields)
  assert {'img_gru.backward.hn.bias', 'txt_gru.forward.ir.weight', 'txt_map.bias'} < set(state)
  back = convert.to_flax('saem', state, fields).variables
  jax.tree.map(np.testing.assert_array_equal, back, variables)


@pytest.mark.extended
def test_branches_without_an_original_start_from_bert():
  state = _modern(_recorded_state('bert_tiny'))
  conversion = convert.to_flax_in_part('saem_bert_base', state, {**SAEM, **BRANCHES}, seed=0)
  new = {line.flax_path.split('/')[1] for line in conversion.report if not line.torch_key}
  assert new == {'image_gru', 'text_gru', 'text_projection'}


@pytest.mark.parametrize('rename', [dict, _modern], ids=['gamma', 'weight'])
def test_bert_is_read_in_every_spelling_that_is_published(rename):
  state = _recorded_state('bert_tiny')
  fields = {'width': 24, 'num_layers': 2, **TINY_BERT}
  conversion = convert.to_flax('bert_base_uncased', rename(state), fields)
  words = conversion.variables['params']['word_embedding']['embedding']
  np.testing.assert_array_equal(words, state['embeddings.word_embeddings.weight'])
  norm = conversion.variables['params']['layer_1']['norm2']
  np.testing.assert_array_equal(norm['scale'], state['encoder.layer.1.output.LayerNorm.gamma'])
  back = convert.to_torch('bert_base_uncased', conversion.variables, fields)
  spelt = convert.to_flax('bert_base_uncased', back, fields)
  jax.tree.map(np.testing.assert_array_equal, spelt.variables, conversion.variables)


@pytest.mark.torch
def test_a_training_checkpoint_of_saem_is_read_and_kept_whole(tmp_path):
  import torch

  state = _saem_state()
  halves = [
    {key[2:]: torch.from_numpy(x) for key, x in state.items() if key.startswith(prefix)}
    for prefix in ('0.', '1.')
  ]
  content = {'epoch': 3, 'model': halves, 'best_rsum': 400.0, 'Eiters': 9}
  torch.save(content, tmp_path / 'model_best.pth.tar')
  read = reading.read_checkpoint(tmp_path / 'model_best.pth.tar').state
  _assert_same(read, state)


def test_saem_converts_both_ways():
  state = _saem_state()
  conversion = convert.to_flax('saem_bert_base', state, SAEM)
  _assert_same(convert.to_torch('saem_bert_base', conversion.variables, SAEM), state)


def test_mmca_starts_from_saem_and_initialises_what_that_lacks():
  conversion = convert.to_flax_in_part('mmca_bert_base', _saem_state(), SAEM, seed=1)
  start = convert.to_flax('saem_bert_base', _saem_state(), SAEM).variables['params']
  params = conversion.variables['params']
  fresh = {'word_projection', 'cross_unit_0', 'cross_cnn'}
  assert set(params) == set(start) | fresh
  for name, tree in start.items():
    jax.tree.map(np.testing.assert_array_equal, params[name], tree)
  new = {line.flax_path.split('/')[1] for line in conversion.report if not line.torch_key}
  assert new == fresh
  assert 0 < np.abs(params['word_projection']['kernel']).max() <= 24**-0.5


@pytest.mark.extended
def test_mmca_starts_from_a_bert_by_the_command_line(tmp_path):
  state = _modern(_recorded_state('bert_tiny'))
  safetensors.numpy.save_file(state, tmp_path / 'bert.safetensors')
  overrides = [f'--override={field}={value}' for field, value in SAEM.items()]
  arguments = ['convert', 'mmca_bert_base', str(tmp_path / 'bert.safetensors')]
  output = str(tmp_path / 'mmca.safetensors')
  assert command_line.main([*arguments, output, *overrides]) == 2
  assert command_line.main([*arguments, output, *overrides, '--fresh=0']) == 0
  model, variables = pretrained.load_pretrained('mmca_bert_base', output, **SAEM)
  words = state['bert.embeddings.word_embeddings.weight']
  np.testing.assert_array_equal(variables['params']['bert']['word_embedding']['embedding'], words)
  inputs = {
    'regions': jnp.ones((1, 3, 64)),
    'words': jnp.ones((1, 9), jnp.int32),
  }
  assert jax.eval_shape(model.apply, variables, inputs)[0].shape == (1, 1)


def test_a_module_that_is_there_in_part_is_refused_by_key():
  state = _saem_state()
  del state['0.layer.output.dense.bias']
  with pytest.raises(mapping.MappingError, match=r'missing: img_self\.fc2\.bias'):
    convert.to_flax_in_part('mmca_bert_base', state, SAEM)
  with pytest.raises(mapping.MappingError, match='unexpected: other'):
    convert.to_flax_in_part('mmca_bert_base', _saem_state() | {'other': np.zeros(1)}, SAEM)
  with pytest.raises(mapping.MappingError, match='nothing of it is in the state dict: other'):
    convert.to_flax_in_part('mmca_bert_base', {'other': np.zeros(1)}, SAEM)


def test_a_text_encoder_that_is_trained_leaves_the_pooler_out():
  fields = {**SAEM, 'freeze_text_encoder': False}
  conversion = convert.to_flax('saem_bert_base', _saem_state(), fields)
  assert 'pooler' not in conversion.variables['params']['bert']
  dropped = {line.torch_key for line in conversion.report if not line.flax_path}
  assert dropped == {'1.bert.pooler.dense.weight', '1.bert.pooler.dense.bias'}


def test_the_published_bert_is_known():
  url = published.SOURCES['transformers']['bert_base_uncased']
  assert url.endswith('/bert-base-uncased/resolve/main/model.safetensors')


def _manifest(case, **changes):
  manifest = json.loads((REFERENCE / f'{case}.json').read_text())
  constructor = manifest['constructor'] | changes.pop('constructor', {})
  return manifest | changes | {'constructor': constructor}


def _outputs(manifest):
  """Shapes of what the adapter returns, nothing computed."""
  adapter = adapters.find_adapter(manifest)
  outputs, _ = jax.eval_shape(adapter.run, adapter.template, adapters.input_structs(manifest))
  return {name: tuple(output.shape) for name, output in outputs.items()}


@pytest.mark.parametrize('hardest', [True, False])
def test_the_triplet_loss_takes_its_margin_from_the_case(hardest):
  scores = np.random.RandomState(0).standard_normal((5, 5))
  constructor = {'margin': 0.7, 'hardest': hardest}
  adapter = adapters.find_adapter(_manifest('loss_triplet_hardest', constructor=constructor))
  outputs, _ = adapter.run({}, {'S': jnp.asarray(scores)})
  right = np.diag(scores)
  costs = [np.maximum(0, 0.7 + scores - right[:, None]), np.maximum(0, 0.7 + scores - right)]
  costs = [np.where(np.eye(5), 0, cost) for cost in costs]
  if hardest:
    expected = costs[0].max(axis=1).sum() + costs[1].max(axis=0).sum()
  else:
    expected = sum(cost.sum() for cost in costs)
  np.testing.assert_allclose(outputs['loss'], expected, rtol=1e-6)


@pytest.mark.parametrize('folds', [1, 2])
def test_recalls_take_their_folds_from_the_case(folds):
  scores = np.random.RandomState(0).standard_normal((8, 16))
  inputs = {'S': {'kind': 'stored', 'shape': [8, 16], 'dtype': 'float64'}}
  manifest = _manifest('recall_metrics', constructor={'folds': folds}, inputs=inputs)
  outputs, _ = adapters.find_adapter(manifest).run({}, {'S': scores})
  size, hits = 8 // folds, []
  for image in range(8):
    start = image // size * size
    own = scores[image, 2 * start : 2 * (start + size)]
    hits.append(np.argmax(own) // 2 == image - start)
  np.testing.assert_allclose(outputs['i2t_r1'], 100 * np.mean(hits))


def test_every_output_of_bert_and_of_mmca_has_its_name_in_either_mode():
  names = {'layer0', 'layer1', 'last_hidden_state', 'pooled', 'pooler_output'}
  assert set(_outputs(_manifest('bert_tiny', mode='train'))) == names
  shapes = _outputs(_manifest('mmca_train_step', mode='eval', constructor={'margin': 0.5}))
  assert shapes['S'] == shapes['S_cross'] == (5, 5)
  assert shapes['loss'] == ()
  assert shapes['i1'] == (5, 5, 32)


def test_an_argument_that_does_not_fit_the_state_is_refused():
  with pytest.raises(mapping.MappingError, match=r'misshapen: img_self\.fc1\.weight'):
    adapters.find_adapter(_manifest('similarity_small', constructor={'ffn': 50}))
  with pytest.raises(ArgumentError, match='mmca, MMCA: its adapter does not know beta; it knows'):
    adapters.find_adapter(_manifest('similarity_small', constructor={'beta': 1.0}))
