"""The variants of the small sketch localizer differ in what they are about, and nothing else."""

import ml_collections
import pytest

from configs import sketch_localizer_shapes
from crossattn_jax.training import config as config_lib


@pytest.mark.parametrize(
  ('variant', 'changes'),
  [
    ('no_sketch', {'dataset.sketches.blank': True}),
    ('trainable', {'dataset.sketches.count': 3, 'model.sketch_fusion': 'trainable'}),
  ],
)
def test_a_variant_changes_what_its_name_says(variant, changes):
  plain, other = (
    config_lib.flat(sketch_localizer_shapes.get_config(*argument)) for argument in ((), (variant,))
  )
  values = {k: v for k, v in other.items() if not isinstance(v, ml_collections.ConfigDict)}
  assert {key: value for key, value in values.items() if plain[key] != value} == changes


def test_another_variant_is_refused():
  with pytest.raises(ValueError, match="the variant is 'mena'; it must be one of mean, trainable"):
    sketch_localizer_shapes.get_config('mena')
