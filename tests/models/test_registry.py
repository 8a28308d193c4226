import dataclasses

from flax import linen as nn
import jax.numpy as jnp
from ml_collections import config_dict
import pytest

from crossattn_jax import models
from crossattn_jax.models import registry


def test_a_misspelt_model_is_refused_with_the_nearest_name():
  with pytest.raises(ValueError, match=r'crosvit_tiny_240') as error:
    models.create_model('crosvit_tiny_240')
  assert str(error.value) == (
    "unknown model 'crosvit_tiny_240'; did you mean 'crossvit_tiny_240'? "
    "list_models('crossvit*') shows all"
  )


def test_a_misspelt_field_is_refused_with_the_nearest_one():
  for make in (models.create_model, models.model_config):
    with pytest.raises(
      ValueError, match="has no field 'drop_paths_rate'; did you mean 'drop_path_"
    ):
      make('crossvit_tiny_240', drop_paths_rate=0.1)


@pytest.mark.parametrize(
  ('name', 'hint'),
  [
    ('crossvit_tiny_240.in1k', "did you mean 'crossvit_tiny_240'? list_models('crossvit*') shows"),
    ('timm/swiftformer_xs.dist_in1k', "did you mean 'swiftformer_xs'? "),
    ('crossvit', "did you mean 'crossvit_9_240'? list_models('crossvit*') shows all"),
    ('inception_v3', "list_models('*') shows all"),
    ('zzz+upernet', "list_models('*+*') shows all"),
  ],
)
def test_no_model_is_suggested_where_none_is_near(name, hint):
  with pytest.raises(ValueError, match='unknown model') as error:
    models.create_model(name)
  assert str(error.value).startswith(f'unknown model {name!r}; {hint}')


@pytest.mark.parametrize(
  ('name', 'field', 'hint'),
  [
    ('crossvit_tiny_240', 'img_size', "did you mean 'image_size'? it has "),
    ('swiftformer_xs', 'in_chans', "did you mean 'num_channels'? it has "),
    ('biformer_tiny', 'drop_path', "did you mean 'drop_path_rate'? it has "),
    ('ccnet_resnet50', 'drop_rate', "did you mean 'dropout_rate'? it has "),
    ('biformer_tiny', 'drop_rate', 'it has '),
    (
      'crossvit_tiny_240',
      'pretrained',
      'crossattn_jax.load_pretrained(NAME, FILE_OR_SOURCE) gives',
    ),
    ('crossformer_small', 'features_only', 'every model returns (result, features), '),
    ('crossvit_tiny_240', 'zzz', 'it has '),
  ],
)
def test_words_of_other_libraries_are_answered_by_ours(name, field, hint):
  with pytest.raises(ValueError, match='has no field') as error:
    models.create_model(name, **{field: 1})
  assert str(error.value).startswith(f'model {name!r} has no field {field!r}; {hint}')


def test_an_unknown_dtype_is_refused():
  with pytest.raises(ValueError, match="dtype='bfloat17' is not a dtype; 'float32'"):
    models.create_model('crossvit_tiny_240', dtype='bfloat17')


def test_names_match_shell_patterns_in_order():
  assert models.list_models('crossvit_15*') == [
    'crossvit_15_224',
    'crossvit_15_240',
    'crossvit_15_dagger_224',
    'crossvit_15_dagger_240',
    'crossvit_15_dagger_384',
    'crossvit_15_dagger_408',
  ]
  assert models.list_models('swiftest*') == []


def test_a_config_holds_every_field_and_builds_the_variant():
  config = models.model_config('crossvit_9_240', num_classes=10, dtype='bfloat16')
  assert config.name == 'crossvit_9_240'
  assert config.num_classes == 10
  assert config.drop_path_rate is None
  model = models.create_model(**config)
  expected = models.create_model('crossvit_9_240', num_classes=10, dtype=jnp.bfloat16)
  assert model == expected
  fields = {field.name for field in dataclasses.fields(expected)} - {'parent', 'name'}
  assert set(config) == fields | {'name'}


def test_a_config_checks_the_types_of_what_is_set():
  config = models.model_config('crossvit_tiny_240')
  config.drop_path_rate = 0.1
  config.widths = (32, 64)
  config.dtype = 'bfloat16'
  with pytest.raises(TypeError):
    config.num_classes = 'ten'
  with pytest.raises((TypeError, ValueError)):
    config.remat = 'sometimes'


def test_lists_from_json_become_hashable_fields():
  config = config_dict.ConfigDict({'name': 'crossvit_tiny_240', 'depths': [[1, 2, 0], [1, 2, 0]]})
  model = models.create_model(**config)
  assert model.depths == ((1, 2, 0), (1, 2, 0))
  hash(model)


def test_a_name_is_registered_once_and_only_with_fields_of_its_module():
  class Model(nn.Module):
    width: int = 3

  with pytest.raises(ValueError, match="'crossvit_tiny_240' is already registered"):
    registry.register('crossvit_tiny_240', Model)
  with pytest.raises(ValueError, match="has no field 'height'; it has width"):
    registry.register('some_model', Model, height=3)
  assert 'some_model' not in models.list_models()


def test_a_backbone_with_a_head_is_a_model():
  assert models.list_models('swiftformer_x*+[su]*') == [
    'swiftformer_xs+semantic_fpn',
    'swiftformer_xs+upernet',
  ]
  assert 'pyramid_tiny+upernet' in models.list_models('*+upernet')
  assert not [name for name in models.list_models() if '+' in name]
  name = 'swiftformer_xs+upernet'
  fields = {'num_classes': 7, 'head_channels': 8, 'dtype': 'bfloat16', 'depths': [1] * 4}
  config = models.model_config(name, **fields)
  model = models.create_model(**config)
  assert (model.num_classes, model.head_channels, model.auxiliary_channels) == (7, 8, 256)
  assert model.backbone == models.create_model(
    'swiftformer_xs', backbone=True, depths=(1,) * 4, dtype='bfloat16'
  )
  assert model.dtype == model.backbone.dtype == jnp.bfloat16
  # A classifier that has no field `backbone` is one without classes.
  assert models.create_model('pyramid_tiny+upernet').backbone.num_classes == 0


@pytest.mark.parametrize(
  ('name', 'fields', 'message'),
  [
    (
      'swiftformer_xs+uppernet',
      {},
      r"unknown .*; did you mean 'swiftformer_xs\+upernet'\? list_models\('swiftformer\*\+\*'\)",
    ),
    (
      'crossvit_tiny_240+upernet',
      {},
      r"'crossvit_tiny_240' is no backbone for 'upernet': .* 4, 8, 16, 32; list_models\('\*\+uper",
    ),
    ('swiftformer_xs+upernet', {'heads_channels': 8}, "did you mean 'head_channels'"),
    ('swiftformer_xs+upernet', {'pyramid_channels': 8}, "has no field 'pyramid_channels'"),
    ('swiftformer_xs+upernet', {'backbone': False}, "has no field 'backbone'"),
  ],
)
def test_what_is_no_composite_is_refused_by_name(name, fields, message):
  with pytest.raises(ValueError, match=message):
    models.create_model(name, **fields)


def test_heads_have_names_of_their_own():
  with pytest.raises(ValueError, match="head 'upernet' is already registered"):
    registry.register_head('upernet', nn.Module, strides=(4,))


def test_the_fields_of_a_module_s_options_stand_for_its_own():
  model = models.create_model(**models.model_config('biformer_tiny', top_k=[2] * 4))
  assert model.top_k == model.options.top_k == (2, 2, 2, 2)
  assert model.depths == (2, 2, 8, 2)
  with pytest.raises(AttributeError, match='no attribute "top_ks"'):
    _ = model.top_ks
  with pytest.raises(ValueError, match="has no field 'options'"):
    models.create_model('biformer_tiny', options=model.options)
