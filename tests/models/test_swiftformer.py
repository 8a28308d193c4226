import dataclasses
import math

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.models import swiftformer

# With two heads, with one, and as a backbone.
PARAMETERS = {
  'swiftformer_xs': (3_475_360, 3_254_360, 3_033_792),
  'swiftformer_s': (6_092_128, 5_867_128, 5_642_688),
  'swiftformer_l1': (12_057_920, 11_672_920, 11_288_592),
  'swiftformer_l3': (28_494_736, 27_981_736, 27_469_760),
}
IMAGES = jnp.asarray(np.random.RandomState(7).standard_normal((2, 21, 32, 3)), jnp.float32)


def _tiny(**fields):
  """Two stages for any image."""
  fields = {'widths': (8, 12), 'depths': (2, 1), 'num_classes': 5} | fields
  return models.create_model('swiftformer_xs', **fields)


def _variables(model, image=IMAGES):
  """Variables large enough that every part of the model matters."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)
  rng = np.random.RandomState(0)

  def draw(path, leaf):
    array = 0.3 * rng.standard_normal(leaf.shape)
    return jnp.asarray(np.abs(array) + 0.5 if path[-1].key == 'var' else array, leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def _run(model, variables, image=IMAGES, **kwargs):
  return jax.jit(lambda v, x: model.apply(v, x, **kwargs))(variables, image)


@pytest.fixture(scope='module')
def result():
  """The tiny model's variables, logits and features of IMAGES."""
  model = _tiny()
  variables = _variables(model)
  return variables, *_run(model, variables)


@pytest.fixture(scope='module')
def trained(result):
  """The same in training, and the updated statistics."""
  return _run(_tiny(), result[0], train=True, mutable=['batch_stats'])


@pytest.mark.parametrize('name', PARAMETERS)
def test_parameter_counts_are_the_original_s(name):
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  counts = []
  for fields in ({}, {'distillation': False}, {'backbone': True}):
    model = models.create_model(name, **fields)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    counts.append(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params'])))
  assert tuple(counts) == PARAMETERS[name]


def test_backbones_take_any_size_and_share_the_features_of_pyramids():
  model = models.create_model('swiftformer_l1', backbone=True)
  image = jax.ShapeDtypeStruct((1, 150, 221, 3), jnp.float32)
  (maps, features), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
  shapes = [(1, 38, 56, 48), (1, 19, 28, 96), (1, 10, 14, 192), (1, 5, 7, 384)]
  assert [x.shape for x in maps] == shapes
  assert [features[f'stage_{s}'].shape for s in range(4)] == shapes


def test_evaluation_averages_the_heads_and_training_keeps_them_apart(result, trained):
  variables, logits, features = result
  both = features['logits/class'], features['logits/distillation']
  np.testing.assert_allclose(logits, (both[0] + both[1]) / 2, rtol=1e-6)
  (logits, features), _ = trained
  np.testing.assert_array_equal(logits, features['logits/class'])
  assert np.any(features['logits/distillation'] != logits)
  averaging = _tiny(average_heads=True)
  apply = lambda image: averaging.apply(variables, image, train=True, mutable=['batch_stats'])
  (_, features), _ = jax.eval_shape(apply, IMAGES)
  assert not [name for name in features if name.startswith('logits/')]


def test_attention_maps_are_the_weights_without_signs(result):
  _, _, features = result
  assert features['attention/0'].shape == (2, 6, 8)
  maps = _tiny().attention_maps(features)
  np.testing.assert_array_equal(
    maps['stage 1: how much each place counts'], np.abs(features['attention/0'])
  )
  assert set(maps) == {f'stage {s}: how much each place counts' for s in (1, 2)}
  # A single position has nothing to show.
  alone = {**features, 'attention/1': jnp.ones((2, 1, 1))}
  assert set(_tiny().attention_maps(alone)) == {'stage 1: how much each place counts'}


def test_the_second_generation_s_weights_differ_and_share_all_parameters(result):
  variables, logits, _ = result
  first, features = _run(_tiny(attn_weights='ones'), variables)
  assert np.abs(first - logits).max() > 1e-3
  np.testing.assert_array_equal(features['attention/1'], 1)


def test_training_updates_statistics_and_frozen_norms_do_not(result, trained):
  variables, _, _ = result
  moved = jax.tree.map(
    lambda new, old: bool(np.any(new != old)), trained[1]['batch_stats'], variables['batch_stats']
  )
  assert set(jax.tree.leaves(moved)) == {True}
  frozen = _tiny(frozen_norm=True, distillation=False)
  params = {k: v for k, v in variables['params'].items() if k != 'head_distillation'}
  variables = variables | {'params': params}
  (_, features), updated = _run(frozen, variables, train=True, mutable=['batch_stats'])
  np.testing.assert_allclose(features['stage_1'], result[2]['stage_1'], rtol=1e-4, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, updated['batch_stats'], variables['batch_stats'])


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32(result):
  variables, expected, _ = result
  logits, features = _run(_tiny(dtype=jnp.bfloat16), variables)
  assert features['stage_0'].dtype == jnp.bfloat16
  assert features['attention/0'].dtype == logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.extended
def test_rematerialisation_changes_neither_gradient_nor_statistics():
  options = swiftformer.Options(layer_scale=0.5)
  stored = swiftformer.Stage((0.5, 0.5), True, options)
  x = jnp.asarray(np.random.RandomState(0).standard_normal((3, 4, 4, 4)), jnp.float32)
  variables = _variables(stored, x)

  def gradient(module):
    def loss(variables):
      (out, _), updated = module.apply(
        variables, x, True, rngs={'drop_path': jax.random.key(1)}, mutable=['batch_stats']
      )
      return jnp.sum(jnp.sin(out)), updated

    return jax.jit(jax.grad(loss, has_aux=True))(variables)

  remat = stored.clone(options=dataclasses.replace(stored.options, remat=True))
  assert 'remat' in str(jax.make_jaxpr(remat.apply)(variables, x))
  for a, b in zip(jax.tree.leaves(gradient(stored)), jax.tree.leaves(gradient(remat)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('remat', [False, pytest.param(True, marks=pytest.mark.extended)])
def test_a_loop_over_the_blocks_changes_no_result_statistic_or_gradient(remat):
  options = swiftformer.Options(layer_scale=0.5)
  called = swiftformer.Stage((0.0, 0.0, 0.0), True, options)
  scanned = called.clone(options=dataclasses.replace(options, scan_blocks=True, remat=remat))
  x = jnp.asarray(np.random.RandomState(0).standard_normal((3, 4, 4, 4)), jnp.float32)
  variables = _variables(called, x)

  def gradient(module):
    def loss(params):
      (out, _), updated = module.apply(
        variables | {'params': params}, x, True, mutable=['batch_stats']
      )
      return jnp.sum(jnp.sin(out)), (out, updated)

    return jax.jit(jax.grad(loss, has_aux=True))(variables['params'])

  assert 'scan[' in str(jax.make_jaxpr(scanned.apply)(variables, x))
  chex.assert_trees_all_close(gradient(called), gradient(scanned), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('everywhere', [False, True], ids=['official', 'timm'])
def test_drop_path_grows_linearly_over_all_blocks(everywhere):
  model = models.create_model('swiftformer_xs', drop_path_rate=0.15, drop_convolutions=everywhere)
  rates = {}

  def note(next_function, args, kwargs, context):
    module = context.module
    if isinstance(module, swiftformer.ConvEncoder | swiftformer.SwiftFormerEncoder):
      rates['/'.join(module.path)] = module.drop_path_rate
    return next_function(*args, **kwargs)

  with nn.intercept_methods(note):
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    jax.eval_shape(model.init, jax.random.key(0), image)
  blocks = [f'stage_{s}/block_{b}' for s in range(4) for b in range(model.depths[s])]
  last = {f'stage_{s}/block_{model.depths[s] - 1}' for s in range(4)}
  for i, name in enumerate(blocks):
    expected = 0.15 * i / 15 if everywhere or name in last else 0
    assert rates.pop(name) == pytest.approx(expected), name
  assert set(rates.values()) == {0.0}  # local representations


def test_initialisation_is_the_original_s():
  module = swiftformer.SwiftFormerEncoder(0.0, swiftformer.Options())
  params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 2, 2, 128)))['params']
  for part, name in (('attention', 'query'), ('mlp', 'fc1'), ('local_representation', 'fc2')):
    np.testing.assert_allclose(np.std(params[part][name]['kernel']), 0.02, rtol=0.05)
    assert not np.any(params[part][name]['bias'])
  np.testing.assert_allclose(np.std(params['attention']['query_weights']), 1, rtol=0.2)
  depthwise = params['local_representation']['depthwise']
  np.testing.assert_allclose(np.std(depthwise['kernel']), 0.02, rtol=0.1)
  assert not np.any(depthwise['bias'])
  np.testing.assert_array_equal(params['local_representation']['layer_scale'], 1)
  np.testing.assert_array_equal(params['layer_scale1'], np.float32(1e-5))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'depths': (1, 1, 1)}, r'depths=\(1, 1, 1\) needs a positive entry for each of 2 stages'),
    ({'depths': (1, 0)}, r'depths=\(1, 0\) needs a positive entry'),
    ({'attn_weights': 'l1'}, r"attn_weights='l1' is not one of l2, ones, softmax, raw"),
  ],
  ids=str,
)
def test_fields_that_do_not_fit_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    _tiny(**fields)


@pytest.mark.parametrize(
  ('image', 'message'),
  [
    (jnp.zeros((2, 3, 32, 32)), r'images \[batch, height, width, 3\], not an array of shape'),
    (jnp.zeros((2, 32, 32, 3), jnp.uint8), 'normalised floating-point images, not uint8'),
  ],
  ids=['channels first', 'integers'],
)
def test_images_of_another_kind_are_refused(image, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(_tiny().init, jax.random.key(0), image)
