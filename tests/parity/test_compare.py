"""PyTorch and this library side by side."""

import functools
import json

from flax import linen as nn
import numpy as np
import pytest

from crossattn_jax.conversion import mapping
from crossattn_jax.layers import activations
from crossattn_jax.parity import __main__

timm = pytest.importorskip('timm')
torch = pytest.importorskip('torch')
pytestmark = pytest.mark.torch

NAME = 'crossvit_tiny_240'
SMALL = {
  'widths': (8, 16),
  'num_heads': (2, 2),
  'depths': ((1, 2, 0),),
  'image_size': (120, 120),
  'num_classes': 5,
}


def small_torch_module():
  return timm.models.crossvit.CrossVit(
    img_size=120,
    img_scale=(1.0, 224 / 240),
    patch_size=(12, 16),
    embed_dim=(8, 16),
    depth=((1, 2, 0),),
    num_heads=(2, 2),
    mlp_ratio=(4.0, 4.0, 1.0),
    num_classes=5,
  )


@pytest.fixture(scope='module')
def torch_module():
  from crossattn_jax.parity import compare

  module = small_torch_module()
  compare.fill_generated(module)
  return module


def run(torch_module, **options):
  from crossattn_jax.parity import compare

  return compare.compare(NAME, torch_module, overrides=SMALL, **options)


@pytest.mark.parametrize('precision', ['default', 'highest', 'bfloat16'])
def test_every_layer_of_timms_model_is_within_the_bound(torch_module, precision):
  comparison = run(torch_module, precision=precision)
  assert comparison.first_outside is None, comparison.first_outside
  names = [layer.name for layer in comparison.layers]
  # In execution order, the innermost first, the output last.
  for earlier, later in (
    ('patch_embed.0.proj', 'patch_embed.0'),
    ('patch_embed.0', 'blocks.0.blocks.0.0.norm1'),
    ('blocks.0.blocks.1.1.mlp.fc2', 'blocks.0.blocks.1.1'),
    ('blocks.0.fusion.0', 'blocks.0.revert_projs.0'),
    ('head.1', 'out/y'),
  ):
    assert names.index(earlier) < names.index(later)
  assert comparison.worst.error > 0
  if precision == 'bfloat16':
    assert comparison.worst.error > 1e-3


def test_the_first_wrong_layer_is_named(torch_module, monkeypatch):
  approximate = functools.partial(nn.gelu, approximate=True)
  monkeypatch.setattr(activations, 'gelu', approximate)
  first = run(torch_module).first_outside
  assert first.name.endswith('mlp.fc2')
  assert first.path.endswith('mlp/fc2')


def test_a_checkpoint_is_used_on_both_sides(torch_module, tmp_path):
  path = tmp_path / 'weights.pth'
  torch.save(torch_module.state_dict(), path)
  other = small_torch_module()
  comparison = run(other, weights=path)
  assert comparison.first_outside is None
  expected = run(torch_module)
  assert [layer.torch_error for layer in comparison.layers] == [
    layer.torch_error for layer in expected.layers
  ]


def test_weights_of_another_model_are_refused():
  with pytest.raises(mapping.MappingError, match=r'unexpected: weight \(2, 3\)'):
    run(torch.nn.Linear(3, 2))


def test_an_unknown_precision_is_refused(torch_module):
  with pytest.raises(ValueError, match=r"'tf32'; expected one of default, highest, bfloat16"):
    run(torch_module, precision='tf32')


def test_the_command_writes_table_json_and_picture(tmp_path, monkeypatch, capsys):
  (tmp_path / 'theirs.py').write_text(
    'import timm\n'
    'def small():\n'
    '  return timm.models.crossvit.CrossVit(img_size=120, img_scale=(1.0, 224 / 240),\n'
    '    patch_size=(12, 16), embed_dim=(8, 16), depth=((1, 2, 0),), num_heads=(2, 2),\n'
    '    mlp_ratio=(4.0, 4.0, 1.0), num_classes=5)\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  arguments = [f'--override={key}={json.dumps(value)}' for key, value in SMALL.items()]
  arguments += ['--json', str(tmp_path / 'c.json'), '--png', str(tmp_path / 'c.png')]
  assert __main__.main(['compare', NAME, '--against', 'theirs:small', *arguments]) == 0
  output = capsys.readouterr().out
  assert 'blocks.0.blocks.0.0.attn.qkv' in output
  assert output.splitlines()[-1] == 'every layer is within the bound'
  written = json.loads((tmp_path / 'c.json').read_text())
  assert written['first_outside'] is None
  assert all(layer['passed'] for layer in written['layers'])
  assert (tmp_path / 'c.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
  ('against', 'message'),
  [
    ('crossvit_tiny_240', 'expected timm:NAME, MODULE:FACTORY or FILE.py:FACTORY'),
    ('collections:OrderedDict', 'gives a OrderedDict, not a torch.nn.Module'),
    ('collections:resnet', "but collections has no 'resnet'"),
    (f'{functools.__file__}:resnet', "functools.py has no 'resnet'"),
  ],
)
def test_what_is_no_module_is_refused(against, message, capsys):
  assert __main__.main(['compare', NAME, '--against', against]) == 2
  assert message in capsys.readouterr().err


def test_a_file_of_its_own_may_hold_the_factory(tmp_path):
  from crossattn_jax.parity import compare

  (tmp_path / 'theirs.py').write_text('import torch\ndef build(): return torch.nn.Linear(2, 3)\n')
  module = compare.build_torch_module(f'{tmp_path / "theirs.py"}:build')
  assert module.out_features == 3


def test_generated_weights_hide_no_term(torch_module):
  for key, tensor in torch_module.state_dict().items():
    assert np.ptp(tensor.numpy()) > 0, key


@pytest.mark.parametrize(
  ('flax_shape', 'torch_shape', 'index', 'torch_index'),
  [
    ((2, 5, 4), (2, 5, 4), (1, 2, 3), (1, 2, 3)),
    ((2, 3, 5, 4), (2, 4, 3, 5), (1, 2, 4, 3), (1, 3, 2, 4)),
    ((2, 15, 4), (2, 4, 3, 5), (1, 7, 3), (1, 3, 1, 2)),
    ((2, 5, 3, 2, 4), (2, 5, 24), (1, 4, 2, 1, 3), (1, 4, 23)),
    ((2, 3, 4), (2, 1, 12), (1, 2, 3), (1, 0, 11)),
    ((2, 12, 5), (2, 3, 20), None, None),
    ((2, 5), (3, 5), None, None),
  ],
)
def test_results_are_laid_out_like_pytorchs_or_not_compared(
  flax_shape, torch_shape, index, torch_index
):
  from crossattn_jax.parity import compare

  layout = compare._result_layout(flax_shape, torch_shape)
  if index is None:
    assert layout is None
    return
  array = np.arange(np.prod(flax_shape)).reshape(flax_shape)
  assert layout((array, None))[torch_index] == array[index]
