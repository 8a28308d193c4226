"""Which registered model a state dict is of."""

import pytest

from crossattn_jax.conversion import correspondence, recognition
from crossattn_jax.models import registry


def shapes_of(name, **fields):
  converter, _ = correspondence.model_mapping(name, registry.create_model(name, **fields))
  return {entry.torch_key: entry.torch_shape for entry in converter.entries}


@pytest.mark.parametrize(
  ('name', 'fields'),
  [
    ('swiftformer_xs', {'num_classes': 3, 'distillation': False}),
    ('crossvit_9_dagger_240', {'image_size': (480, 480), 'num_channels': 1}),
    ('bert_base_uncased', {}),
  ],
)
def test_a_registered_model_is_recognised_with_other_classes_sizes_and_channels(name, fields):
  assert recognition.recognise(shapes_of(name, **fields), near='swiftformer_xs') == name


def test_what_is_of_no_model_is_not_recognised():
  shapes = shapes_of('swiftformer_xs')
  assert recognition.recognise({'fc.weight': (3, 2)}, near='crossvit_tiny_240') == ''
  assert recognition.recognise(shapes | {'fc.weight': (3, 2)}, near='crossvit_tiny_240') == ''
  del shapes['norm.bias']
  assert recognition.recognise(shapes, near='crossvit_tiny_240') == ''


def test_fields_of_a_backbone_are_the_models_own():
  model = registry.create_model('biformer_tiny+semantic_fpn', num_classes=3, top_k=(1, 2, 4, 0))
  assert recognition.field_of(model, 'num_classes') == 3
  assert recognition.field_of(model, 'top_k') == (1, 2, 4, 0)
  assert recognition.field_of(model, 'nothing') is None
