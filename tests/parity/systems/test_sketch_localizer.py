import pytest

from crossattn_jax.parity import adapters, arguments


@pytest.mark.parametrize(
  ('case', 'changes', 'message'),
  [
    ('ram_block_plain', {'H': 18}, 'H and W are .18, .*not the .* tokens of the case'),
    ('decoder_no_refine', {'num_feature_levels': 8}, 'num_feature_levels is 8; its'),
    ('quickdraw_raster', {'std': None}, 'std None: images are normalised by both'),
  ],
)
def test_what_does_not_fit_the_inputs_is_refused_by_name(vary, case, changes, message):
  with pytest.raises(arguments.ArgumentError, match=message):
    adapters.find_adapter(vary(f'sketch_localizer/{case}', changes))
