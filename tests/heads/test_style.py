import jax.numpy as jnp
import pytest

from crossattn_jax.heads import style


def test_the_four_maps_of_a_backbone_come_finest_first():
  features = {f'stage_{s}': jnp.zeros((1, 8 >> s, 8 >> s, 2)) for s in (3, 1, 0, 2)}
  assert [x.shape[1] for x in style.stage_maps(features)] == [8, 4, 2, 1]


def test_a_model_without_maps_is_refused_with_what_it_has():
  with pytest.raises(KeyError, match='these have evidence, tokens/0'):
    style.stage_maps({'tokens/0': jnp.zeros(1), 'evidence': jnp.zeros(1)})
