import dataclasses
import functools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.attention import bi_level_routing
from crossattn_jax.models import biformer

PARAMETERS = {
  'biformer_tiny': 13_142_760,
  'biformer_small': 25_536_232,
  'biformer_base': 56_804_968,
  'biformer_stl': 28_372_552,
  'biformer_stl_nchw': 28_372_552,
  'maxvit_stl': 28_285_666,
}
IMAGES = jnp.asarray(np.random.RandomState(7).standard_normal((2, 32, 32, 3)), jnp.float32)


def _tiny(name='biformer_tiny', **fields):
  """Two stages for 32 x 32 images: 8 x 8 tokens in 4 x 4 regions, then 4 x 4 tokens."""
  fields = {
    'widths': (8, 16),
    'depths': (2, 1),
    'attentions': ('routed', 'global_lepe'),
    'top_k': (3, 0),
    'regions_per_side': (4, 4),
    'kv_pool_sizes': (1, 1),
    'head_dim': 4,
    'num_classes': 5,
  } | fields
  return models.create_model(name, **fields)


def _variables(model, image=IMAGES):
  """Variables large enough that every part of the model matters."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)
  rng = np.random.RandomState(0)

  def draw(path, leaf):
    array = 0.3 * rng.standard_normal(leaf.shape)
    return jnp.asarray(np.abs(array) + 0.5 if path[-1].key == 'var' else array, leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def _run(model, image=IMAGES, variables=None, **kwargs):
  variables = _variables(model, image) if variables is None else variables
  return jax.jit(lambda v, x: model.apply(v, x, **kwargs))(variables, image)


@pytest.fixture(scope='module')
def result():
  """The tiny model's variables, logits and features of IMAGES."""
  model = _tiny()
  variables = _variables(model)
  return variables, *_run(model, variables=variables)


@pytest.mark.parametrize('name', PARAMETERS)
def test_parameter_counts_are_the_original_s(name):
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  variables = jax.eval_shape(models.create_model(name).init, jax.random.key(0), image)
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))
  assert count == PARAMETERS[name]


@pytest.mark.parametrize(
  ('name', 'regions', 'parameters'),
  [('biformer_small', 8, 25_024_128), ('biformer_base', 16, 56_037_312)],
)
def test_backbones_of_dense_predictors_take_any_size(name, regions, parameters):
  model = models.create_model(name, backbone=True, padding='input', regions_per_side=(regions,) * 4)
  image = jax.ShapeDtypeStruct((1, 150, 221, 3), jnp.float32)
  (maps, features), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
  sizes = [(38, 56), (19, 28), (10, 14), (5, 7)]
  assert [x.shape[1:3] for x in maps] == sizes
  assert [x.shape[-1] for x in maps] == list(model.widths)
  assert features['routing/2/17'].shape == (1, regions**2, 16)
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))
  assert count == parameters


def test_features_are_maps_routings_and_the_evidence(result):
  _, logits, features = result
  shapes = {name: x.shape for name, x in features.items()}
  assert shapes == {
    'stage_0': (2, 8, 8, 8),
    'stage_1': (2, 4, 4, 16),
    'routing/0/0': (2, 16, 3),
    'routing/0/1': (2, 16, 3),
    'evidence': (2, 4, 4),
  }
  assert logits.shape == (2, 5)
  routing = np.sort(features['routing/0/0'], axis=-1)
  assert (np.diff(routing, axis=-1) > 0).all()  # distinct
  assert routing.min() >= 0
  assert routing.max() < 16


def test_evidence_adds_up_to_the_largest_logit(result):
  variables, logits, features = result
  best = np.argmax(logits, axis=-1)
  bias = variables['params']['head']['bias'][best]
  np.testing.assert_allclose(
    features['evidence'].mean((1, 2)) + bias, np.max(logits, axis=-1), rtol=1e-4
  )


def test_imposed_routing_reproduces_and_changes_the_result(result):
  variables, logits, features = result
  model = _tiny()
  apply = jax.jit(lambda routing: model.apply(variables, IMAGES, routing=routing))
  routing = {name: x for name, x in features.items() if name.startswith('routing/')}
  again, _ = apply(routing)
  np.testing.assert_allclose(again, logits, rtol=1e-4, atol=1e-5)
  other = routing | {'routing/0/1': (routing['routing/0/1'] + 1) % 16}
  changed, features = apply(other)
  assert np.abs(changed - logits).max() > 1e-4
  np.testing.assert_array_equal(features['routing/0/1'], other['routing/0/1'])
  with pytest.raises(ValueError, match=r"routing has the keys \['routing/3/0'\]"):
    jax.eval_shape(lambda x: model.apply(variables, IMAGES, routing=x), {'routing/3/0': IMAGES})


def test_what_a_region_attends_to_is_drawn_where_it_is(result):
  model = _tiny()
  _, _, features = result
  name = 'stage 1: the regions that the framed region looks at'
  attended = model.attention_maps(features)[name]
  query = model.attention_queries(features)[name]
  assert attended.shape == query.shape == (2, 8, 8)
  for row in range(2):
    best = int(np.argmax(features['evidence'][row]))
    # A position of the last map is a region of the first: both are 4 x 4.
    expected = np.zeros((8, 8))
    expected[best // 4 * 2 : best // 4 * 2 + 2, best % 4 * 2 : best % 4 * 2 + 2] = 1
    np.testing.assert_array_equal(query[row], expected)
    expected = np.zeros((8, 8))
    for region in features['routing/0/1'][row, best].tolist():
      expected[region // 4 * 2 : region // 4 * 2 + 2, region % 4 * 2 : region % 4 * 2 + 2] = 1
    np.testing.assert_array_equal(attended[row], expected)
  assert model.attention_maps({'stage_0': features['stage_0']}) == {}


def test_no_classes_give_the_mean_of_the_last_map(result):
  variables, _, features = result
  params = {name: tree for name, tree in variables['params'].items() if name != 'head'}
  vector, _ = _run(_tiny(num_classes=0), variables=variables | {'params': params})
  norm, stats = variables['params']['norm'], variables['batch_stats']['norm']
  expected = (features['stage_1'].mean((1, 2)) - stats['mean']) / np.sqrt(stats['var'] + 1e-5)
  np.testing.assert_allclose(vector, expected * norm['scale'] + norm['bias'], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('padding', ['input', 'masked', 'qkv'])
def test_sizes_that_the_regions_do_not_divide_need_a_padding(padding):
  image = jax.ShapeDtypeStruct((1, 27, 38, 3), jnp.float32)
  with pytest.raises(ValueError, match=r'7 x 10 does not divide into 4 x 4 regions'):
    jax.eval_shape(_tiny().init, jax.random.key(0), image)
  model = _tiny(padding=padding)
  (logits, features), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
  assert logits.shape == (1, 5)
  assert features['stage_0'].shape == (1, 7, 10, 8)


def test_training_updates_statistics_and_frozen_norms_do_not(result):
  variables, _, _ = result
  for frozen in (False, True):
    model = _tiny(frozen_norm=frozen)
    train = jax.jit(lambda v, m=model: m.apply(v, IMAGES, train=True, mutable=['batch_stats'])[1])
    changed = jax.tree.map(
      lambda new, old: bool(np.any(new != old)),
      train(variables)['batch_stats'],
      variables['batch_stats'],
    )
    assert set(jax.tree.leaves(changed)) == {not frozen}


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32(result):
  variables, expected, features = result
  # Routing would choose other regions here and there.
  routing = {name: x for name, x in features.items() if name.startswith('routing/')}
  half = _tiny(dtype=jnp.bfloat16)
  logits, features = _run(half, variables=variables, routing=routing)
  assert features['stage_0'].dtype == jnp.bfloat16
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())


def test_rematerialisation_changes_no_gradient():
  options = biformer.Options(position_conv=False)
  attention = functools.partial(
    bi_level_routing.BiLevelRoutingAttention, 2, regions_per_side=2, top_k=2, lepe_side=0
  )
  stored = biformer.Stage((attention,), (0.5,), options)
  recomputed = biformer.Stage((attention,), (0.5,), dataclasses.replace(options, remat=True))
  x = jnp.asarray(np.random.RandomState(0).standard_normal((3, 4, 4, 4)), jnp.float32)
  variables = _variables(stored, x)

  def gradient(module):
    rngs = {'drop_path': jax.random.key(1)}
    loss = lambda v: jnp.sum(jnp.sin(module.apply(v, x, True, rngs=rngs)[0]))
    return jax.jit(jax.grad(loss))(variables)

  assert 'remat' in str(jax.make_jaxpr(recomputed.apply)(variables, x))
  for a, b in zip(
    jax.tree.leaves(gradient(stored)),
    jax.tree.leaves(gradient(recomputed)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('remat', [pytest.param(False, marks=pytest.mark.extended), True])
def test_a_loop_over_the_blocks_computes_the_same(remat):
  attention = functools.partial(
    bi_level_routing.BiLevelRoutingAttention, 2, regions_per_side=2, top_k=2, lepe_side=0
  )
  options = biformer.Options(position_conv=False)
  called = biformer.Stage((attention,) * 3, (0.0,) * 3, options)
  looped = called.clone(options=dataclasses.replace(options, scan_blocks=True, remat=remat))
  x = jnp.asarray(np.random.RandomState(0).standard_normal((2, 4, 4, 4)), jnp.float32)
  variables = _variables(called, x)

  def run(stage):
    def loss(variables):
      out, routing = stage.apply(variables, x)
      return jnp.sum(jnp.sin(out)), (out, routing)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)

  assert 'scan' in str(jax.make_jaxpr(looped.apply)(variables, x))
  ((_, (out, routing)), gradient), ((_, (loop_out, loop_routing)), loop_gradient) = (
    run(called),
    run(looped),
  )
  np.testing.assert_array_equal(routing, loop_routing)
  np.testing.assert_allclose(loop_out, out, rtol=1e-4, atol=1e-5)
  for a, b in zip(jax.tree.leaves(loop_gradient), jax.tree.leaves(gradient), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(b).max()))


def test_drop_path_grows_linearly_over_all_blocks():
  model = models.create_model('biformer_tiny', drop_path_rate=0.13)
  seen = {}

  def note(next_function, args, kwargs, context):
    if isinstance(context.module, biformer.Stage) and context.method_name == '__call__':
      seen[context.module.name] = context.module.drop_path_rates
    return next_function(*args, **kwargs)

  with nn.intercept_methods(note):
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    jax.eval_shape(model.init, jax.random.key(0), image)
  np.testing.assert_allclose(sum((seen[f'stage_{s}'] for s in range(4)), ()), np.arange(14) / 100)


@pytest.mark.parametrize('nchw', [False, True])
def test_initialisation_is_the_original_s(nchw):
  model = _tiny('biformer_stl_nchw' if nchw else 'biformer_tiny', widths=(96, 96), head_dim=32)
  options = model.options
  block = biformer.Block(options.stage_attentions(0)[0], 0.0, options)
  params = jax.jit(block.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 96)))['params']
  attention = params['attention']
  # Linear maps are 1 x 1 convolutions in NCHW, and start as torch's convolutions do.
  expected = 96**-0.5 / 3**0.5 if nchw else 0.02
  np.testing.assert_allclose(np.std(attention['qkv']['kernel']), expected, rtol=0.05)
  np.testing.assert_allclose(np.std(params['mlp']['fc1']['kernel']), expected, rtol=0.05)
  assert np.any(attention['qkv']['bias']) == nchw
  np.testing.assert_allclose(np.abs(attention['lepe']['kernel']).max(), 0.2, rtol=0.05)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'depths': (1, 1, 1)}, r'depths=\(1, 1, 1\) needs one entry for each of 2 stages'),
    ({'attentions': ('routed', 'local')}, r"'local' is not one of"),
    ({'padding': 'same'}, r"padding='same' is not one of none, input"),
    ({'routing': 'firm'}, r"routing='firm' is not one of hard"),
    ({'top_k': (0, 0)}, r'top_k=\(0, 0\) must be positive where attention is routed'),
    ({'head_dim': 3}, r'head_dim=3 does not divide the width 8 of a stage'),
    ({'global_heads': 3}, r'global_heads=3 does not divide the width 16'),
  ],
  ids=lambda x: str(x)[:40],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    _tiny(**fields)


@pytest.mark.parametrize(
  ('image', 'message'),
  [
    (
      jnp.zeros((2, 3, 32, 32)),
      r'images \[batch, height, width, 3\], not an array of shape \(2, 3',
    ),
    (jnp.zeros((2, 32, 32, 3), jnp.uint8), 'normalised floating-point images, not uint8'),
  ],
  ids=['channels first', 'integers'],
)
def test_images_of_another_kind_are_refused(image, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(_tiny().init, jax.random.key(0), image)
