"""Variants of the small experiments on rooms differ in what they are about, and nothing else."""

import ml_collections
import pytest

from configs import minkunet_rooms, mit_rooms
from crossattn_jax.training import config as config_lib


def _changes(one: ml_collections.ConfigDict, other: ml_collections.ConfigDict) -> set[str]:
  one, other = config_lib.flat(one), config_lib.flat(other)
  return {key for key in one if '.' in key and one[key] != other.get(key)}


def test_points_alone_are_seen_by_the_same_network():
  both, alone = mit_rooms.get_config(), mit_rooms.get_config('points_only')
  views = {key for key in _changes(both, alone) if key.startswith('model.')}
  assert views == {
    'model.name',
    *(f'model.{name}' for name in ('num_views', 'image_size')),
    *(f'model.image_{name}' for name in ('widths', 'depths', 'stem_width')),
  }
  assert _changes(both, alone) - views == {'dataset.num_views', 'dataset.image_size'}


def test_pseudo_labels_are_learnt_as_true_ones():
  pseudo, true = (minkunet_rooms.get_config(labels) for labels in minkunet_rooms.LABELS)
  assert _changes(pseudo, true) == {'dataset.labels_dir'}


@pytest.mark.parametrize('module', [mit_rooms, minkunet_rooms])
def test_other_variants_are_refused(module):
  with pytest.raises(ValueError, match=r"'pseudos?'.* must be one of \w+, \w+"):
    module.get_config('pseudos')
