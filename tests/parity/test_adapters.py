"""What models are compared by, without PyTorch."""

import jax
import pytest

from crossattn_jax import models
from crossattn_jax.conversion import correspondence
from crossattn_jax.parity import adapters

QUICK = {'atfuse', 'biformer_stl', 'ccnet_resnet50', 'crossformer_small', 'crossvit_tiny_240'}
QUICK |= {'regnety_160', 'swiftformer_xs'}
TAPPED = [
  pytest.param(name, marks=[] if name in QUICK else pytest.mark.extended)
  for name in models.list_models()
  # Plain pyramids have no original; the others have taps of their recorded cases only.
  if not name.startswith(('pyramid', 'mmvit', 'mmca', 'saem', 'bert', 'test_'))
]


@pytest.mark.parametrize('name', TAPPED)
def test_every_tap_of_a_model_is_one_array_of_its_batch(name):
  module = models.create_model(name)
  parity = correspondence.describe_model(name, module)
  taps = {torch_name: tap for torch_name, tap in parity.taps.items() if tap is not None}
  run = lambda variables, inputs: adapters.run_with_taps(
    module, variables, inputs, call=parity.call, taps=taps
  )
  template = correspondence.model_template(module, parity.call, parity.inputs)
  _, found = jax.eval_shape(run, template, dict(parity.inputs))
  assert found
  assert {torch_name: tap.shape[0] for torch_name, tap in found.items()} == dict.fromkeys(taps, 1)
