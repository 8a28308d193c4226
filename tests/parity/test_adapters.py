"""What models are compared by, without PyTorch."""

import jax
import pytest

from crossattn_jax import models
from crossattn_jax.conversion import correspondence
from crossattn_jax.parity import adapters

QUICK = {'atfuse', 'biformer_stl', 'ccnet_resnet50', 'crossformer_small', 'crossvit_tiny_240'}
QUICK |= {'regnety_160', 'swiftformer_xs'}
# Of other parts; what is left differs in widths and depths from one of these.
OTHERS = {'biformer_tiny', 'ccnet3d_resnet50', 'crossformer_pp_small', 'crossvit_9_dagger_240'}
OTHERS |= {'crossvit_18_performer_240', 'crossvit_18_t2t_240', 'deeplabv3_resnet50', 'icafusion_n'}
OTHERS |= {'icafusion_resnet50', 'icafusion_vgg16', 'maxvit_stl', 'mit_points'}
OTHERS |= {'pspnet_resnet50'}
OTHERS |= {'resnet50_deep_stem', 'resnetv2_50', 'sketch_localizer_tiny'}
TIERS = dict.fromkeys(OTHERS, pytest.mark.extended) | dict.fromkeys(QUICK, ())
TAPPED = [
  pytest.param(name, marks=TIERS.get(name, pytest.mark.slow))
  for name in models.list_models()
  # Plain pyramids have no original; the others have taps of their recorded cases only.
  if not name.startswith(('pyramid', 'minkunet', 'mmvit', 'mmca', 'saem', 'bert', 'test_'))
]


@pytest.mark.parametrize('name', TAPPED)
def test_every_tap_of_a_model_is_one_array_of_its_batch(name):
  module = models.create_model(name)
  parity = correspondence.describe_model(name, module)
  taps = {torch_name: tap for torch_name, tap in parity.taps.items() if tap is not None}
  call, structs = correspondence.bind_examples(parity.call, parity.inputs)
  run = lambda variables, inputs: adapters.run_with_taps(
    module, variables, inputs, call=call, taps=taps
  )
  template = correspondence.model_template(module, parity.call, parity.inputs)
  _, found = jax.eval_shape(run, template, structs)
  assert found
  assert {torch_name: tap.shape[0] for torch_name, tap in found.items()} == dict.fromkeys(taps, 1)
