import json
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.parity import adapters, convert, mapping, pretrained
from crossattn_jax.parity.systems.crossformer import rules as crossformer

REFERENCE = pathlib.Path(__file__).parents[2] / 'reference' / 'crossformer'


def _template(model):
  image = jax.ShapeDtypeStruct((1, *model.image_size, model.num_channels), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)


def _build(model, torch_shapes=None):
  return mapping.build_mapping(crossformer.model_rules(model), _template(model), torch_shapes)


def _recorded_shapes(case):
  state = json.loads((REFERENCE / f'{case}.json').read_text())['state']
  return {entry['key']: tuple(entry['shape']) for entry in state}


def _small(**fields):
  """A model with every kind of part, cooling included."""
  return models.create_model(
    'crossformer_pp_small', widths=(32, 64), depths=(4, 1), group_sizes=(4, 4), intervals=(2, 1),
    image_size=(32, 32), **fields,
  )  # fmt: skip


def _state(built, seed=0):
  rng = np.random.RandomState(seed)
  return {
    entry.torch_key: rng.standard_normal(entry.torch_shape).astype(np.float32)
    for entry in built.entries
  }


def test_every_key_of_the_official_model_is_read_and_written():
  shapes = _recorded_shapes('cls_pp_small_224')
  built = _build(models.create_model('crossformer_pp_small'), shapes)
  assert {entry.torch_key: entry.torch_shape for entry in built.entries} == shapes
  assert [entry.torch_key for entry in built.entries] == list(shapes)


def test_there_and_back_is_exact_to_the_bit():
  built = _build(_small())
  state = _state(built)
  back = built.to_torch(built.to_flax(state))
  assert list(back) == list(state)
  for key, value in state.items():
    np.testing.assert_array_equal(back[key], value)


def test_a_checkpoint_of_another_variant_is_refused_by_key():
  built = _build(_small())
  shapes = {entry.torch_key: entry.torch_shape for entry in built.entries}
  plain = {key: shape for key, shape in shapes.items() if '.ex_' not in key}
  with pytest.raises(mapping.MappingError, match=r'missing: layers\.0\.blocks\.2\.ex_conv\.weight'):
    built.check(plain)
  with pytest.raises(mapping.MappingError, match=r'unexpected: layers\.0\.blocks\.2\.ex_ln\.bias'):
    _build(_small(cooling=False)).check(shapes)
  with pytest.raises(mapping.MappingError, match=r'misshapen: patch_embed\.projs\.3\.weight'):
    built.check(shapes | {'patch_embed.projs.3.weight': (8, 3, 32, 32)})


def test_buffers_of_the_first_release_are_dropped():
  built = _build(_small())
  state = _state(built)
  old = {
    'layers.0.blocks.0.attn.biases': np.zeros((49, 2), np.float32),
    'layers.0.blocks.0.attn.relative_position_index': np.zeros((16, 16), np.int64),
  }
  for new, kept in zip(
    jax.tree.leaves(built.to_flax(state | old)), jax.tree.leaves(built.to_flax(state)), strict=True
  ):
    np.testing.assert_array_equal(new, kept)


@pytest.mark.parametrize('lda', ['region', 'global'])
def test_dense_predictors_start_from_a_classifier_s_weights(lda):
  state = _state(_build(_small()))
  backbone = _build(_small(backbone=True, lda=lda))
  variables = backbone.to_flax(state)
  assert set(variables['params']) == {'embedding', 'stage_0', 'downsampling_1', 'stage_1'}
  assert set(backbone.to_torch(variables)) == {
    key for key in state if key.split('.')[0] not in ('norm', 'head')
  }


def test_every_registered_model_is_described():
  for name in models.list_models('crossformer_*'):
    described = adapters.describe_model(name, models.create_model(name))
    assert described.inputs['image'].shape == (1, 3, 224, 224)
    assert described.heads == ('head',)


@pytest.mark.torch
def test_official_files_are_read_without_their_configuration_s_library(tmp_path, monkeypatch):
  """They hold the configuration as an object of yacs, beside the weights."""
  import torch

  module = types.ModuleType('yacs.config')

  class CfgNode(dict):
    def __init__(self, content):
      super().__init__(content)
      self.__dict__['__immutable__'] = True

  CfgNode.__module__, CfgNode.__qualname__ = 'yacs.config', 'CfgNode'
  module.CfgNode = CfgNode
  monkeypatch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
  monkeypatch.setitem(sys.modules, 'yacs.config', module)
  built = _build(_small())
  state = _state(built)
  path = tmp_path / 'crossformer-s.pth'
  torch.save(
    {
      'model': {key: torch.from_numpy(value) for key, value in state.items()},
      'config': CfgNode({'MODEL': CfgNode({'NAME': 'small', 'DEPTHS': [2, 2]})}),
      'epoch': 299,
      'max_accuracy': 82.5,
    },
    path,
  )
  monkeypatch.delitem(sys.modules, 'yacs.config')
  monkeypatch.delitem(sys.modules, 'yacs')
  read = convert.read_checkpoint(path)
  assert list(read) == list(state)
  np.testing.assert_array_equal(read['head.weight'], state['head.weight'])


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('crossformer_small', r'crossformer-s\.pth from https://drive\.google\.com/.*as source'),
    ('crossformer_pp_huge', r'from https://github\.com/cheerss/CrossFormer .*as source'),
  ],
)
def test_official_weights_that_no_program_can_download_are_said_to_be_so(name, message):
  with pytest.raises(ValueError, match=message):
    pretrained.load_pretrained(name)
