import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.conversion import convert, correspondence, mapping, pretrained, published
from crossattn_jax.conversion.systems import swiftformer
from crossattn_jax.models import registry
from crossattn_jax.parity import adapters
from crossattn_jax.parity.arguments import ArgumentError

REFERENCE = pathlib.Path(__file__).parents[2] / 'reference' / 'swiftformer'
SMALL = {'widths': (8, 12), 'depths': (2, 1), 'num_classes': 5}


def _template(model):
  image = jax.ShapeDtypeStruct((1, *model.image_size, model.num_channels), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)


def _build(model, torch_shapes=None, spelling=''):
  rules = swiftformer.model_rules(model)
  return mapping.build_mapping(rules, _template(model), torch_shapes, spelling)


def _recorded_shapes(case):
  """The original's state dict, buffers included."""
  state = json.loads((REFERENCE / f'{case}.json').read_text())['state']
  return {entry['key']: tuple(entry['shape']) for entry in state}


@pytest.mark.parametrize(
  ('case', 'name', 'fields'),
  [
    ('swiftformer_xs', 'swiftformer_xs', {}),
    ('swiftformer_l3', 'swiftformer_l3', {}),
    ('swiftformer_xs_nodist', 'swiftformer_xs', {'distillation': False, 'num_classes': 10}),
    ('swiftformer_l1_features', 'swiftformer_l1', {'backbone': True}),
  ],
)
def test_every_key_is_read_and_written_but_the_counters(case, name, fields):
  shapes = _recorded_shapes(case)
  built = _build(models.create_model(name, **fields), shapes)
  kept = {k: s for k, s in shapes.items() if not k.endswith('num_batches_tracked')}
  assert {entry.torch_key: entry.torch_shape for entry in built.entries} == kept


def test_the_teacher_s_keys_are_read_and_written_but_the_counters():
  shapes = _recorded_shapes('teacher_regnety_160')
  model = models.create_model('regnety_160')
  built = mapping.build_mapping(swiftformer.regnet_rules(model), _template(model), shapes)
  kept = {k: s for k, s in shapes.items() if not k.endswith('num_batches_tracked')}
  assert {entry.torch_key: entry.torch_shape for entry in built.entries} == kept


@pytest.mark.parametrize(
  ('spelling', 'keys'),
  [
    ('', ('network.0.1.attn.Proj.weight', 'network.1.proj.bias', 'network.0.0.layer_scale')),
    (
      'timm',
      ('stages.0.blocks.1.attn.proj.weight', 'stages.1.downsample.proj.bias', 'head_dist.weight'),
    ),
    (
      'transformers',
      (
        'swiftformer.encoder.network.0.blocks.1.attn.proj.weight',
        'swiftformer.patch_embed.patch_embedding.4.running_var',
        'swiftformer.encoder.network.0.blocks.0.point_wise_conv1.weight',
      ),
    ),
  ],
  ids=['official', 'timm', 'transformers'],
)
def test_there_and_back_is_exact_to_the_bit_in_every_spelling(spelling, keys):
  rng = np.random.RandomState(0)
  built = _build(models.create_model('swiftformer_xs', **SMALL), spelling=spelling)
  state = {
    entry.torch_key: rng.standard_normal(entry.torch_shape).astype(np.float32)
    for entry in built.entries
  }
  assert set(keys) < set(state)
  # Read without being told whose they are, counters and all.
  counters = {f'{key[:-4]}num_batches_tracked': np.int64(7) for key in state if '.norm.bias' in key}
  conversion = convert.to_flax('swiftformer_xs', state | counters, SMALL)
  back = convert.to_torch('swiftformer_xs', conversion.variables, SMALL, spelling)
  assert set(back) == set(state)
  for key, value in state.items():
    np.testing.assert_array_equal(back[key], value)


def test_a_checkpoint_of_another_variant_is_refused_by_key():
  with pytest.raises(mapping.MappingError, match=r'unexpected: network\.4\.8\.attn\.to_query'):
    _build(models.create_model('swiftformer_xs')).check(_recorded_shapes('swiftformer_s'))
  with pytest.raises(mapping.MappingError, match=r'unexpected: dist_head\.weight'):
    _build(models.create_model('swiftformer_xs', distillation=False)).check(
      _recorded_shapes('swiftformer_xs')
    )


@pytest.mark.parametrize('name', [*models.list_models('swiftformer*'), 'regnety_160'])
def test_every_registered_model_is_described(name):
  described = correspondence.describe_model(name, models.create_model(name))
  assert described.inputs['image'].shape == (1, 3, 224, 224)
  assert described.heads[0] == 'head'


def test_the_generation_of_downloaded_weights_is_recorded(tmp_path, monkeypatch):
  """The transformers port's weights come with its attention, now and from the cache."""
  small = models.create_model('swiftformer_xs', **SMALL)
  state = convert.to_torch(
    'swiftformer_xs',
    jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), _template(small)),
    SMALL,
    'transformers',
  )

  def download(weights, path):
    del weights
    path.parent.mkdir(parents=True, exist_ok=True)
    convert.write_torch(path.with_suffix('.safetensors'), state)
    path.with_suffix('.safetensors').rename(path)

  create = registry.create_model
  monkeypatch.setattr(registry, 'create_model', lambda name, **kw: create(name, **{**SMALL, **kw}))
  monkeypatch.setattr(published, 'download', download)
  for _ in range(2):
    model, _ = pretrained.load_pretrained('swiftformer_xs', 'transformers', cache_dir=tmp_path)
    assert model.attn_weights == 'ones'
  with pytest.raises(ValueError, match=r"are for attn_weights='ones' and mean nothing with 'l2'"):
    pretrained.load_pretrained(
      'swiftformer_xs', 'transformers', cache_dir=tmp_path, attn_weights='l2'
    )


def test_official_weights_that_no_program_can_download_are_said_to_be_so():
  with pytest.raises(ValueError, match=r'SwiftFormer_L1_ckpt\.pth from https.*as source'):
    pretrained.load_pretrained('swiftformer_l1')


def _manifest(case, **changes):
  manifest = json.loads((REFERENCE / f'{case}.json').read_text())
  shapes = {f'out/{name}': shape for name, shape in changes.pop('outputs', {}).items()}
  constructor = manifest['constructor'] | changes.pop('constructor', {})
  return manifest | changes | {'constructor': constructor} | ({'shapes': shapes} if shapes else {})


def _outputs(manifest):
  """Shapes of what the adapter returns, nothing computed."""
  adapter = adapters.find_adapter(manifest)
  outputs, _ = jax.eval_shape(adapter.run, adapter.template, adapters.input_structs(manifest))
  return {name: tuple(output.shape) for name, output in outputs.items()}


@pytest.mark.parametrize('mode', ['eval', 'train'])
def test_a_model_runs_in_either_mode_with_every_output(mode):
  statistic = {'after/norm.running_var'} if mode == 'train' else set()
  distilled = _outputs(_manifest('swiftformer_xs_train', mode=mode))
  assert {'logits', 'cls', 'dist'} | statistic <= set(distilled)
  alone = _outputs(_manifest('swiftformer_xs_nodist', mode=mode))
  assert alone['logits'] == (2, 10)
  assert not {'cls', 'dist'} & set(alone)
  assert statistic <= set(alone)
  maps = _outputs(_manifest('swiftformer_xs_features_grad', mode=mode))
  assert maps['c5'] == (1, 220, 2, 3)
  assert ('after/norm6.running_mean' in maps) == (mode == 'train')


def test_a_model_without_distillation_head_has_a_loss_of_integer_labels():
  manifest = _manifest('train_loss_xs', constructor={'distillation': False, 'smoothing': 0.2})
  state = [entry for entry in manifest['state'] if 'dist_head' not in entry['key']]
  inputs = {
    'image': manifest['inputs']['image'],
    'labels': {'kind': 'stored', 'shape': [4], 'dtype': 'int32'},
  }
  assert _outputs(manifest | {'state': state, 'inputs': inputs})['loss'] == ()


@pytest.mark.parametrize('base', ['LabelSmoothingCrossEntropy', 'CrossEntropyLoss'])
@pytest.mark.parametrize('kind', ['hard', 'soft', 'none'])
def test_the_loss_takes_its_constants_from_the_case(base, kind):
  constructor = {'base': base, 'distillation_type': kind, 'alpha': 0.3, 'tau': 2.0}
  constructor |= {'smoothing': 0.25} if base.startswith('Label') else {}
  out, distilled, teacher = np.random.RandomState(0).standard_normal((3, 4, 10))
  labels, smoothing = np.array([1, 9, 0, 3]), constructor.get('smoothing', 0.0)
  adapter = adapters.find_adapter(_manifest('loss_distill_hard_ls', constructor=constructor))
  outputs, _ = adapter.run(
    {}, {'out': out, 'out_kd': distilled, 'teacher': teacher, 'labels': labels}
  )

  def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))

  log = log_softmax(out)
  expected = -((1 - smoothing) * log[np.arange(4), labels] + smoothing * log.mean(-1)).mean()
  if kind == 'hard':
    expected *= 0.7
    expected -= 0.3 * log_softmax(distilled)[np.arange(4), teacher.argmax(-1)].mean()
  if kind == 'soft':
    student, target = log_softmax(distilled / 2), log_softmax(teacher / 2)
    expected = 0.7 * expected + 0.3 * 4 * (np.exp(target) * (target - student)).mean()
  np.testing.assert_allclose(outputs['loss'], expected, rtol=1e-5)


def test_parts_of_semantic_fpn_are_outputs():
  outputs = {'p3': [2, 16, 8, 12], 'decode_head.scale_heads.2': [2, 12, 8, 12], 'logits': []}
  found = _outputs(_manifest('op_semantic_fpn_eval', outputs=outputs))
  assert found['p3'] == (2, 16, 8, 12)
  assert found['decode_head.scale_heads.2'][:2] == (2, 12)


@pytest.mark.parametrize(
  ('case', 'constructor', 'message'),
  [
    ('swiftformer_xs_train', {'down_stride': 4}, 'down_stride is 4; its adapter replays only 2'),
    ('swiftformer_xs_train', {'drop_path_rate': 0.1}, 'in training mode only 0 can be replayed'),
    ('op_mlp_eval', {'groups': 2}, 'does not know groups; it knows in_features, drop'),
  ],
)
def test_what_cannot_be_replayed_is_refused_by_name(case, constructor, message):
  with pytest.raises(ArgumentError, match=message):
    adapters.find_adapter(_manifest(case, constructor=constructor))
