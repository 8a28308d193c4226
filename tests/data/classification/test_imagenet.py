"""The names of ImageNet's classes stand at their labels."""

import pytest

from crossattn_jax.data.classification import imagenet


def test_a_thousand_different_names_are_in_the_order_of_wordnet():
  names = imagenet.names()
  assert len(names) == len(set(names.values())) == imagenet.NUM_CLASSES
  assert list(names) == sorted(names)
  by_label = list(names.values())
  expected = {0: 'tench', 207: 'golden retriever', 281: 'tabby', 388: 'giant panda'}
  expected |= {134: 'crane bird', 517: 'crane', 638: 'maillot', 999: 'toilet tissue'}
  assert {label: by_label[label] for label in expected} == expected
  assert names['n02123045'] == 'tabby'


def test_data_sets_with_its_labels_are_recognised():
  assert imagenet.has_its_classes('imagenet2012', 1000)
  assert imagenet.has_its_classes('imagenet2012_real:1.0.0', 1000)
  assert not imagenet.has_its_classes('imagenet_resized/64x64', 1000)
  assert not imagenet.has_its_classes('imagenet2012', 10)
  assert not imagenet.has_its_classes('image_folder', 1000)


@pytest.mark.torch
def test_ids_and_names_are_those_of_timm():
  from timm import data

  info, names = data.ImageNetInfo(), imagenet.names()
  assert list(names) == info.label_names()
  for label, name in enumerate(names.values()):
    assert info.index_to_description(label).split(',')[0].split(' ')[0] == name.split(' ')[0]
