import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from crossattn_jax import models
from crossattn_jax.parity import adapters, mapping
from crossattn_jax.parity.systems.crossvit import rules as crossvit

REFERENCE = pathlib.Path(__file__).parents[2] / 'reference' / 'crossvit'


def _build(model, torch_shapes=None, spelling=''):
  image = jax.ShapeDtypeStruct((1, *model.image_size, model.num_channels), jnp.float32)
  template = jax.eval_shape(model.init, jax.random.key(0), image)
  return mapping.build_mapping(crossvit.model_rules(model), template, torch_shapes, spelling)


def _recorded_shapes(case):
  state = json.loads((REFERENCE / f'{case}.json').read_text())['state']
  return {entry['key']: tuple(entry['shape']) for entry in state}


@pytest.mark.parametrize(
  ('case', 'name', 'fields'),
  [
    ('crossvit_9_dagger_224', 'crossvit_9_dagger_224', {}),
    ('crossvit_18_dagger_384', 'crossvit_18_dagger_408', {}),
    ('crossvit_t2t_tiny', 'crossvit_tiny_240', {'patch_embedding': 't2t'}),
    ('crossvit_tiny_fusion_all_attention', 'crossvit_tiny_240', {'fusion': 'all_attention'}),
    ('crossvit_tiny_fusion_pairwise', 'crossvit_tiny_240', {'fusion': 'pairwise'}),
  ],
)
def test_written_keys_are_the_original_s(case, name, fields):
  built = _build(models.create_model(name, **fields))
  assert {e.torch_key: e.torch_shape for e in built.entries} == _recorded_shapes(case)


def test_official_and_timm_keys_are_read_alike_and_written_on_request():
  shapes = _recorded_shapes('crossvit_tiny_224')
  timm = {
    key.replace('pos_embed.', 'pos_embed_').replace('cls_token.', 'cls_token_'): shape
    for key, shape in shapes.items()
  }
  model = models.create_model('crossvit_tiny_240')
  _build(model).check(shapes)
  _build(model).check(timm)
  assert {entry.torch_key for entry in _build(model, spelling='timm').entries} == set(timm)


def test_nested_cross_attention_blocks_keep_their_index():
  model = models.create_model('crossvit_tiny_240', depths=((1, 1, 2),))
  keys = {entry.torch_key for entry in _build(model).entries}
  assert 'blocks.0.fusion.1.0.attn.wq.weight' in keys
  assert 'blocks.0.fusion.1.1.attn.wq.weight' in keys
  assert 'blocks.0.fusion.1.attn.wq.weight' not in keys


def test_every_registered_model_is_described():
  for name in models.list_models('crossvit*'):
    model = models.create_model(name)
    described = adapters.describe_model(name, model)
    assert described.inputs['image'].shape == (1, 3, *model.image_size)
    assert list(described.heads) == ['head_0', 'head_1']


def test_the_performer_s_frozen_matrix_is_a_constant():
  built = _build(models.create_model('crossvit_18_performer_240'))
  constants = {entry.torch_key for entry in built.entries if entry.collection == 'constants'}
  assert constants == {f'patch_embed.{d}.attention{b}.w' for d in (0, 1) for b in (1, 2)}
