import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.conversion import correspondence, mapping
from crossattn_jax.conversion.systems import crossvit
from crossattn_jax.parity import adapters, cases, replay
from crossattn_jax.parity.arguments import ArgumentError

REFERENCE = pathlib.Path(__file__).parents[2] / 'reference' / 'crossvit'


def _build(model, torch_shapes=None, spelling=''):
  image = jax.ShapeDtypeStruct((1, *model.image_size, model.num_channels), jnp.float32)
  template = jax.eval_shape(model.init, jax.random.key(0), image)
  return mapping.build_mapping(crossvit.model_rules(model), template, torch_shapes, spelling)


def _recorded_shapes(case):
  state = json.loads((REFERENCE / f'{case}.json').read_text())['state']
  return {entry['key']: tuple(entry['shape']) for entry in state}


@pytest.mark.parametrize(
  ('case', 'name', 'fields'),
  [
    ('crossvit_9_dagger_224', 'crossvit_9_dagger_224', {}),
    ('crossvit_18_dagger_384', 'crossvit_18_dagger_408', {}),
    ('crossvit_t2t_tiny', 'crossvit_tiny_240', {'patch_embedding': 't2t'}),
    ('crossvit_tiny_fusion_all_attention', 'crossvit_tiny_240', {'fusion': 'all_attention'}),
    ('crossvit_tiny_fusion_pairwise', 'crossvit_tiny_240', {'fusion': 'pairwise'}),
  ],
)
def test_written_keys_are_the_original_s(case, name, fields):
  built = _build(models.create_model(name, **fields))
  assert {e.torch_key: e.torch_shape for e in built.entries} == _recorded_shapes(case)


def test_official_and_timm_keys_are_read_alike_and_written_on_request():
  shapes = _recorded_shapes('crossvit_tiny_224')
  timm = {
    key.replace('pos_embed.', 'pos_embed_').replace('cls_token.', 'cls_token_'): shape
    for key, shape in shapes.items()
  }
  model = models.create_model('crossvit_tiny_240')
  _build(model).check(shapes)
  _build(model).check(timm)
  assert {entry.torch_key for entry in _build(model, spelling='timm').entries} == set(timm)


def test_nested_cross_attention_blocks_keep_their_index():
  model = models.create_model('crossvit_tiny_240', depths=((1, 1, 2),))
  keys = {entry.torch_key for entry in _build(model).entries}
  assert 'blocks.0.fusion.1.0.attn.wq.weight' in keys
  assert 'blocks.0.fusion.1.1.attn.wq.weight' in keys
  assert 'blocks.0.fusion.1.attn.wq.weight' not in keys


def test_every_registered_model_is_described():
  for name in models.list_models('crossvit*'):
    model = models.create_model(name)
    described = correspondence.describe_model(name, model)
    assert described.inputs['image'].shape == (1, 3, *model.image_size)
    assert list(described.heads) == ['head_0', 'head_1']


def test_the_performer_s_frozen_matrix_is_a_constant():
  built = _build(models.create_model('crossvit_18_performer_240'))
  constants = {entry.torch_key for entry in built.entries if entry.collection == 'constants'}
  assert constants == {f'patch_embed.{d}.attention{b}.w' for d in (0, 1) for b in (1, 2)}


def manifest_of(module, constructor, *, state=None, inputs=None, outputs=(), mode='eval'):
  """A case of shapes alone."""
  return {
    'system': 'crossvit',
    'module': module,
    'case': 'synthetic',
    'constructor': constructor,
    'mode': mode,
    'state': [
      {'key': key, 'shape': shape, 'kind': 'param'} for key, shape in (state or {}).items()
    ],
    'inputs': {name: {'kind': 'generated', 'shape': shape} for name, shape in inputs.items()},
    'shapes': {f'out/{name}': shape for name, shape in dict(outputs).items()},
  }


def official_state(c):
  """The state dict of IBM's constructor, by its specification."""
  widths, state = c['embed_dim'], {}

  def affine(key, out, *rest, bias=True):
    state[f'{key}.weight'] = (out, *rest)
    if bias:
      state[f'{key}.bias'] = (out,)

  for d, (width, side, patch) in enumerate(
    zip(widths, c['img_size'], c['patch_size'], strict=True)
  ):
    state[f'pos_embed.{d}'] = (1, 1 + (side // patch) ** 2, width)
    state[f'cls_token.{d}'] = (1, 1, width)
    if c['multi_conv']:
      affine(f'patch_embed.{d}.proj.0', width // 4, c['in_chans'], 7, 7)
      affine(f'patch_embed.{d}.proj.2', width // 2, width // 4, 3, 3)
      affine(f'patch_embed.{d}.proj.4', width, width // 2, 3, 3)
    else:
      affine(f'patch_embed.{d}.proj', width, c['in_chans'], patch, patch)
  for k, (*depths, fusions) in enumerate(c['depth']):
    for d, (width, depth) in enumerate(zip(widths, depths, strict=True)):
      for i in range(depth):
        block, hidden = f'blocks.{k}.blocks.{d}.{i}', int(c['mlp_ratio'][d] * width)
        affine(f'{block}.norm1', width)
        affine(f'{block}.attn.qkv', 3 * width, width, bias=c['qkv_bias'])
        affine(f'{block}.attn.proj', width, width)
        affine(f'{block}.norm2', width)
        affine(f'{block}.mlp.fc1', hidden, width)
        affine(f'{block}.mlp.fc2', width, hidden)
      other = widths[(d + 1) % len(widths)]
      affine(f'blocks.{k}.projs.{d}.0', width)
      affine(f'blocks.{k}.projs.{d}.2', other, width)
      for j in [''] if fusions == 0 else [f'.{j}' for j in range(fusions)]:
        affine(f'blocks.{k}.fusion.{d}{j}.norm1', other)
        for name in ('wq', 'wk', 'wv'):
          affine(f'blocks.{k}.fusion.{d}{j}.attn.{name}', other, other, bias=c['qkv_bias'])
        affine(f'blocks.{k}.fusion.{d}{j}.attn.proj', other, other)
      affine(f'blocks.{k}.revert_projs.{d}.0', other)
      affine(f'blocks.{k}.revert_projs.{d}.2', width, other)
  for d, width in enumerate(widths):
    affine(f'norm.{d}', width)
    if c['num_classes']:
      affine(f'head.{d}', c['num_classes'], width)
  return state


OFFICIAL = {
  'img_size': [48, 36],
  'patch_size': [8, 12],
  'in_chans': 3,
  'num_classes': 5,
  'embed_dim': [16, 24],
  'depth': [[1, 2, 0], [2, 1, 2]],
  'num_heads': [2, 3],
  'mlp_ratio': [2.5, 2.0, 1.0],
  'qkv_bias': True,
  'multi_conv': False,
}


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'img_size': [36, 64], 'patch_size': [12, 16], 'multi_conv': True, 'in_chans': 1},
    {'num_classes': 0, 'qkv_bias': False},
    {
      'img_size': [24, 16, 32],
      'patch_size': [8, 8, 16],
      'embed_dim': [16, 24, 32],
      'depth': [[1, 1, 2, 1]],
      'num_heads': [2, 3, 4],
      'mlp_ratio': [2, 2, 1, 1],
    },
  ],
  ids=['sides', 'multi_conv', 'no_classes', 'three_branches'],
)
@pytest.mark.parametrize('mode', ['eval', 'train'])
def test_every_argument_of_the_official_constructor_reaches_the_model(changes, mode):
  c = OFFICIAL | changes
  image = (1, c['in_chans'], c['img_size'][0], c['img_size'][0])
  state = official_state(c)
  rates = {'drop_rate': 0.0, 'attn_drop_rate': 0, 'drop_path_rate': 0.1 if mode == 'eval' else 0}
  manifest = manifest_of(
    'CrossViT', c | rates | {'norm_eps': 1e-5}, state=state, inputs={'image': image}, mode=mode
  )
  adapter = adapters.find_adapter(manifest)  # refuses a state dict that the model does not have
  assert adapters.parameter_count(adapter, manifest) == sum(map(math.prod, state.values()))
  inputs = {'image': jax.ShapeDtypeStruct(image, jnp.float32)}
  outputs, _ = jax.eval_shape(adapter.run, adapter.template, inputs)
  assert outputs['logits'].shape == (1, c['num_classes'] or sum(c['embed_dim']))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'window': 7}, 'crossvit, CrossViT: its adapter does not know window; it knows model, num_cl'),
    ({'drop_path_rate': 0.1}, 'drop_path_rate is 0.1; in training mode only 0 can be replayed'),
  ],
)
def test_what_cannot_be_replayed_is_refused_by_name(change, message):
  manifest = manifest_of(
    'CrossViT',
    OFFICIAL | change,
    state=official_state(OFFICIAL),
    inputs={'image': (1, 3, 48, 48)},
    mode='train',
  )
  with pytest.raises(ArgumentError, match=message):
    adapters.find_adapter(manifest)


def test_what_a_case_does_not_say_its_shapes_do():
  told = ('num_classes', 'in_chans', 'qkv_bias', 'multi_conv')
  c = OFFICIAL | {'img_size': [36, 64], 'patch_size': [12, 16], 'multi_conv': True, 'in_chans': 1}
  silent = {name: value for name, value in c.items() if name not in told}
  manifest = manifest_of(
    'CrossViT', silent, state=official_state(c), inputs={'image': (1, 1, 36, 36)}
  )
  adapter = adapters.find_adapter(manifest)
  assert adapters.parameter_count(adapter, manifest) == sum(
    map(math.prod, official_state(c).values())
  )


def test_scores_have_the_scale_of_the_case(vary, compute):
  recorded, taps = compute(vary('crossvit/op_cross_attention'))
  manifest = vary('crossvit/op_cross_attention', {'qk_scale': 0.9})
  outputs, same_taps = compute(manifest)
  for name, tap in taps.items():  # Queries are what they were.
    np.testing.assert_allclose(same_taps[name], tap, rtol=1e-12)
  split = lambda x: x.reshape(*x.shape[:2], 4, 8)
  query, key, value = (split(taps[name]) for name in ('wq', 'wk', 'wv'))
  scores = 0.9 * np.einsum('bqhd,bkhd->bhqk', query, key)
  weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  attended = np.einsum('bhqk,bkhd->bqhd', weights, value).reshape(2, 1, 32)
  weight, bias = (
    cases.generate(manifest['seed'], e['key'], e['shape'], mean=e['mean'], std=e['std'])
    for e in manifest['state'] if e['key'].startswith('proj.')
  )  # fmt: skip
  np.testing.assert_allclose(outputs['y'], attended @ weight.T.astype(float) + bias, rtol=1e-9)
  assert not np.allclose(outputs['y'], recorded['y'])


def test_a_scale_is_of_what_fuses_the_branches_alone(vary, compute):
  """The official code does not hand it to the blocks of a branch."""
  (_, taps), (_, scaled) = (
    compute(vary('crossvit/op_multiscale_block', {'qk_scale': scale})) for scale in (None, 2.0)
  )
  np.testing.assert_allclose(scaled['blocks.0'], taps['blocks.0'], rtol=1e-12)
  assert not np.allclose(scaled['revert_projs.0'], taps['revert_projs.0'])


def test_a_grid_of_other_tokens_is_refused(vary):
  manifest = vary('crossvit/op_fusion_pairwise', {'grids': [[6, 5], [2, 4]]})
  with pytest.raises(ArgumentError, match='that of xs is not of its 16 tokens'):
    adapters.find_adapter(manifest)


def _run(manifest, **inputs):
  outputs, _ = adapters.find_adapter(manifest).run({}, inputs)
  return {name: np.asarray(output) for name, output in outputs.items()}


def test_targets_and_losses_take_their_constants_from_the_case():
  labels = jnp.array([2, 0, 1])
  constructor = {'num_classes': 4, 'lam': 0.7, 'smoothing': 0.2}
  target = _run(manifest_of('mixup_target', constructor, inputs={'labels': [3]}), labels=labels)
  smooth = 0.8 * np.eye(4)[[2, 0, 1]] + 0.05
  np.testing.assert_allclose(target['target'], 0.7 * smooth + 0.3 * smooth[::-1], rtol=1e-6)

  logits = np.array([[1.0, 2, 0, -1], [0, 0, 3, 1], [2, 1, 0, 0]])
  log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  inputs = {'logits': [3, 4], 'labels': [3]}
  manifest = manifest_of('loss_label_smoothing_ce', {'smoothing': 0.3}, inputs=inputs)
  outputs = _run(manifest, logits=jnp.asarray(logits), labels=labels)
  picked = -log[np.arange(3), [2, 0, 1]]
  np.testing.assert_allclose(outputs['ce'], picked.mean(), rtol=1e-6)
  np.testing.assert_allclose(outputs['ls'], (0.7 * picked - 0.3 * log.mean(-1)).mean(), rtol=1e-6)


def test_position_embeddings_go_between_any_grids():
  x = jnp.asarray(np.random.RandomState(0).standard_normal((1, 7, 2)))
  manifest = manifest_of(
    'pos_embed_resize',
    {'grids': {'a': [[2, 3], [4, 3]], 'b': [[2, 3], [2, 3]]}},
    inputs={'a': [1, 7, 2], 'b': [1, 7, 2]},
    outputs={'a2': [1, 13, 2], 'b2': [1, 7, 2]},
  )
  outputs = _run(manifest, a=x, b=x)
  assert outputs['a2'].shape == (1, 13, 2)
  np.testing.assert_array_equal(outputs['b2'], x)
  np.testing.assert_array_equal(outputs['a2'][:, 0], x[:, 0])


def test_learning_rates_follow_the_recipe_of_the_case():
  recipe = {'lr': 0.01, 'epochs': 20, 'warmup_epochs': 2, 'warmup_lr': 1e-4, 'min_lr': 1e-3}
  manifest = manifest_of('lr_schedule', recipe, inputs={}, outputs={'mine': [6]})
  t = np.arange(-1, 5).clip(0)  # one epoch late
  cosine = 1e-3 + (0.01 - 1e-3) * (1 + np.cos(np.pi * t / 20)) / 2
  expected = np.where(t < 2, 1e-4 + t * (0.01 - 1e-4) / 2, cosine)
  np.testing.assert_allclose(_run(manifest)['mine'], expected, rtol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize('name', ['sides', 'multi_conv'])
def test_other_arguments_of_timm_s_model_replay(name, tmp_path):
  torch = pytest.importorskip('torch')
  timm = pytest.importorskip('timm.models.crossvit')
  from crossattn_jax.parity import record

  common = {'embed_dim': (16, 24), 'depth': ((1, 1, 1),), 'num_heads': (2, 3), 'num_classes': 3}
  constructor, mode = {
    'sides': ({'img_size': 32, 'img_scale': (1.0, 0.75), 'patch_size': (8, 12)}, 'train'),
    'multi_conv': (
      {
        'img_size': (48, 48),
        'img_scale': (1.0, 1.0),
        'patch_size': (12, 16),
        'multi_conv': True,
        'qkv_bias': False,
        'global_pool': 'avg',
      },
      'eval',
    ),
  }[name]
  constructor = common | constructor | {'mlp_ratio': (2.0, 2.5, 4.0)}
  module = timm.CrossVit(
    **constructor, norm_layer=lambda width, **types: torch.nn.LayerNorm(width, eps=1e-3, **types)
  )
  path = record.record(
    module,
    {'image': record.Generated((2, 3, 32, 40))},
    tmp_path,
    system='crossvit',
    module_kind='timm.CrossVit',
    case=name,
    constructor=constructor | {'norm_eps': 1e-3},
    mode=mode,
    call=lambda module, tensors: {'logits': module(tensors['image'])},
    taps=lambda tap: tap in ('norm.0', 'norm.1'),
  )
  result = replay.replay_case(cases.read_case(path), 'float64')
  assert result.passed, result.failures()
  if name == 'sides':  # The same model in the official code's words.
    manifest = json.loads(path.read_text())
    del manifest['constructor']['img_scale']
    manifest['constructor']['img_size'] = [32, 24]
    path.write_text(json.dumps(manifest | {'module': 'CrossViT'}))
    result = replay.replay_case(cases.read_case(path), 'float64')
    assert result.passed, result.failures()
