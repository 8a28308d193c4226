import json
import pathlib

import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.conversion import convert, correspondence, mapping, published, reading
from crossattn_jax.parity import adapters, arguments, cases

REFERENCE = pathlib.Path(__file__).parents[2] / 'reference' / 'atfuse'
CASES = {
  'atfuse_eval_128': {},
  'atfuse_eval_small_concat': {
    'feature_sum': False,
    'width': 32,
    'num_heads': 8,
    'mlp_ratio': 2.0,
  },
}


def _recorded_state(case):
  """A state dict of the original's keys and shapes, counters included."""
  rng = np.random.RandomState(0)
  state = {}
  for entry in json.loads((REFERENCE / f'{case}.json').read_text())['state']:
    shape = tuple(entry['shape'])
    counter = entry['key'].endswith('num_batches_tracked')
    drawn = np.int64(7) if counter else rng.standard_normal(shape)
    state[entry['key']] = np.asarray(drawn, np.int64 if counter else np.float32)
  return state


@pytest.mark.parametrize(('case', 'fields'), list(CASES.items()))
def test_a_checkpoint_is_kept_whole_where_the_model_holds_what_is_unused(case, fields):
  state = _recorded_state(case)
  overrides = {**fields, 'unused_parameters': True}
  conversion = convert.to_flax('atfuse', state, overrides)
  back = convert.to_torch('atfuse', conversion.variables, overrides)
  kept = {key: value for key, value in state.items() if not key.endswith('num_batches_tracked')}
  assert set(back) == set(kept)
  for key, value in kept.items():
    np.testing.assert_array_equal(back[key], value)


def test_what_is_unused_is_dropped_by_default_and_said_to_be_so():
  state = _recorded_state('atfuse_eval_128')
  conversion = convert.to_flax('atfuse', state)
  assert set(conversion.variables) == {'params', 'batch_stats'}
  dropped = {line.torch_key for line in conversion.report if not line.flax_path}
  assert {'mhca_stage.fuse.weight', 'stem2.4.conv.weight', 'resBlock.conv1.bias'} < dropped
  back = convert.to_torch('atfuse', conversion.variables)
  assert set(back) == set(state) - dropped
  for key, value in back.items():
    np.testing.assert_array_equal(value, state[key])


@pytest.mark.torch
def test_a_data_parallel_training_checkpoint_is_read(tmp_path):
  import torch

  state = _recorded_state('atfuse_eval_128')
  wrapped = {f'module.{key}': torch.from_numpy(value) for key, value in state.items()}
  content = {'epoch': 3, 'state_dict': wrapped, 'optimizer': {}, 'best_pred': 1.5, 'records': {}}
  torch.save(content, tmp_path / 'best_ckp.pth')
  read = reading.read_checkpoint(tmp_path / 'best_ckp.pth').state
  assert set(read) == set(state)


def test_a_checkpoint_of_another_configuration_is_refused_by_key():
  state = _recorded_state('atfuse_eval_small_concat')
  with pytest.raises(mapping.MappingError, match=r'misshapen: stem1\.0\.conv\.weight'):
    convert.to_flax('atfuse', state)
  del state['head.conv1.weight']
  with pytest.raises(mapping.MappingError, match=r'missing: head\.conv1\.weight'):
    convert.to_flax('atfuse', state, CASES['atfuse_eval_small_concat'])


def test_the_model_is_described_and_its_release_known():
  described = correspondence.describe_model('atfuse', models.create_model('atfuse'))
  assert described.inputs['ir'].shape == (1, 1, 128, 128)
  assert published.SOURCES['official']['atfuse'].endswith('/model/best_ckp.pth')


def test_the_images_swap_their_roles_on_request(vary, compute):
  manifest = vary(
    'atfuse/atfuse_eval_small_concat', inputs={'vi': (1, 1, 8, 8), 'ir': (1, 1, 8, 8)},
    outputs=['k'],
  )  # fmt: skip
  case = cases.Case(REFERENCE, manifest, {}, {})
  swapped = vary('atfuse/atfuse_eval_small_concat', {'q': 'ir'}, outputs=['k'])
  out = compute(manifest)[0]['k']
  again = compute(swapped, vi=case.inputs['ir'], ir=case.inputs['vi'])[0]['k']
  np.testing.assert_array_equal(out, again)


def test_attention_may_have_no_bias_and_tokens_of_two_sizes(vary, compute):
  manifest = vary(
    'atfuse/factor_att_common', {'qkv_bias': False, 'num_heads': 2},
    inputs={'q': (2, 5, 16)}, without=('q.bias', 'k.bias', 'v.bias'),
  )  # fmt: skip
  assert compute(manifest)[0]['out'].shape == (2, 5, 16)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'embed_dims': [32, 64]}, 'the first two are equal'),
    ({'num_paths': [4, 2, 3, 3]}, r'num_paths begins with \[4, 2\]'),
    ({'in_channels': 3}, 'in_channels is 3'),
    ({'use_aggregate': False}, 'use_aggregate is False'),
  ],
)
def test_what_cannot_be_honoured_is_refused_by_name(vary, changes, message):
  with pytest.raises(arguments.ArgumentError, match=message):
    adapters.find_adapter(vary('atfuse/atfuse_eval_small_concat', changes))
