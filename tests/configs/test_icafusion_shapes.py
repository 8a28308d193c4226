"""One stream alone is trained as both are: the table of docs/icafusion.md compares networks."""

import pytest

from configs import icafusion_shapes
from crossattn_jax.training import config as config_lib


@pytest.mark.parametrize('modality', ['rgb', 'thermal'])
def test_a_single_stream_differs_in_the_model_alone(modality):
  both, alone = (
    config_lib.flat(icafusion_shapes.get_config(*argument)) for argument in ((), (modality,))
  )
  different = {key for key in both if '.' in key and both[key] != alone[key]}
  assert alone['model.modalities'] == (modality,)
  # Patterns of parameters that a single stream does not have.
  assert different == {'model.modalities', 'optimizer.muon_exclude', 'optimizer.multipliers'}
