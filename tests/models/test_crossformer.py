import functools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.attention import long_short_distance
from crossattn_jax.models import crossformer

PARAMETERS = {
  'crossformer_tiny': 27_776_794,
  'crossformer_small': 30_657_394,
  'crossformer_base': 51_971_554,
  'crossformer_large': 91_971_184,
  'crossformer_pp_small': 23_325_340,
  'crossformer_pp_base': 51_994_594,
  'crossformer_pp_large': 92_001_904,
  'crossformer_pp_huge': 95_962_944,
}
IMAGES = jnp.asarray(np.random.RandomState(7).standard_normal((2, 32, 32, 3)), jnp.float32)


def _tiny(**fields):
  """Two stages for 32 x 32 images: maps of 8 x 8 and 4 x 4, the first one padded."""
  fields = {
    'widths': (16, 32),
    'depths': (2, 1),
    'head_dim': 8,
    'group_sizes': (3, 4),
    'intervals': (2, 1),
    'num_classes': 5,
  } | fields
  return models.create_model('crossformer_small', **fields)


def _variables(model, *inputs):
  """Variables large enough that every part of the model matters."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  rng = np.random.RandomState(0)
  draw = lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype)
  return jax.tree.map(draw, shapes)


@pytest.fixture(scope='module')
def result():
  """The tiny model's variables, logits and features of IMAGES."""
  model = _tiny()
  variables = _variables(model, IMAGES)
  return variables, *jax.jit(model.apply)(variables, IMAGES)


@pytest.mark.parametrize(
  'name',
  [
    name
    if name in ('crossformer_tiny', 'crossformer_pp_small')
    else pytest.param(name, marks=pytest.mark.extended)
    for name in PARAMETERS
  ],
)
def test_parameter_counts_are_the_original_s(name):
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  variables = jax.eval_shape(models.create_model(name).init, jax.random.key(0), image)
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))
  assert count == PARAMETERS[name]


@pytest.mark.parametrize('lda', long_short_distance.LONG_DISTANCES)
def test_backbones_of_dense_predictors_take_any_multiple_of_32(lda):
  model = models.create_model('crossformer_pp_small', backbone=True, lda=lda)
  image = jax.ShapeDtypeStruct((1, 96, 224, 3), jnp.float32)
  (maps, features), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
  assert [x.shape[1:3] for x in maps] == [(24, 56), (12, 28), (6, 14), (3, 7)]
  assert [x.shape[-1] for x in maps] == list(model.widths)
  assert [features[f'stage_{s}'].shape for s in range(4)] == [x.shape for x in maps]
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))
  assert count == 22_811_316


def test_the_size_of_one_image_does_not_change_the_result_of_the_next():
  # The official code's blocks remember small maps.
  model = _tiny(backbone=True, depths=(1, 2))
  large = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), large)
  traced = lambda image: str(jax.make_jaxpr(model.apply)(variables, image))
  before = traced(large)
  traced(jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32))
  assert traced(large) == before


def test_features_are_maps_weights_and_the_evidence(result):
  _, logits, features = result
  shapes = {name: x.shape for name, x in features.items()}
  assert shapes == {
    'stage_0': (2, 8, 8, 16),
    'stage_1': (2, 4, 4, 32),
    'attention/0/short': (2, 9, 9, 9),
    'attention/0/long': (2, 16, 9, 9),
    'attention/1/short': (2, 1, 16, 16),
    'evidence': (2, 4, 4),
  }
  assert logits.shape == (2, 5)


def test_evidence_adds_up_to_the_largest_logit(result):
  variables, logits, features = result
  best = np.argmax(logits, axis=-1)
  bias = variables['params']['head']['bias'][best]
  np.testing.assert_allclose(
    features['evidence'].mean((1, 2)) + bias, np.max(logits, axis=-1), rtol=1e-4
  )


def test_attention_is_drawn_in_the_group_of_the_position_that_says_most(result):
  _, _, features = result
  model = _tiny()
  maps, queries = model.attention_maps(features), model.attention_queries(features)
  name = 'stage {}, {} distance: where the framed place looks'.format
  names = [name(1, 'short'), name(1, 'long'), name(2, 'short')]
  assert list(maps) == list(queries) == names
  for row in range(2):
    best = int(np.argmax(features['evidence'][row]))
    # A position of the last map stands for two rows and columns of the first; its centre looks.
    y, x = best // 4 * 2 + 1, best % 4 * 2 + 1
    for title, weights in maps.items():
      np.testing.assert_allclose(weights[row].sum(), 1, rtol=1e-5)
      assert queries[title][row].sum() == 1
    assert queries[name(1, 'long')][row, y, x] == 1
    short, long = (np.argwhere(maps[name(1, kind)][row] > 0) for kind in ('short', 'long'))
    np.testing.assert_array_equal(short // 3, np.broadcast_to([y // 3, x // 3], short.shape))
    np.testing.assert_array_equal(long % 2, np.broadcast_to([y % 2, x % 2], long.shape))
    np.testing.assert_array_equal(long // 6, np.broadcast_to([y // 6, x // 6], long.shape))
  assert model.attention_maps({'stage_0': features['stage_0']}) == {}


def test_no_classes_give_the_mean_of_the_last_map():
  model = _tiny(num_classes=0)
  vector, features = jax.eval_shape(model.init_with_output, jax.random.key(0), IMAGES)[0]
  assert vector.shape == (2, 32)
  assert 'evidence' not in features


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32(result):
  variables, expected, _ = result
  logits, features = jax.jit(_tiny(dtype=jnp.bfloat16).apply)(variables, IMAGES)
  assert features['stage_0'].dtype == jnp.bfloat16
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, expected, atol=0.1 * np.abs(expected).max())


def _stage(depth, **fields):
  attentions = tuple(
    functools.partial(
      long_short_distance.LongShortDistanceAttention,
      2,
      kind=long_short_distance.KINDS[i % 2],
      group_size=2,
      interval=2,
    )
    for i in range(depth)
  )
  fields = {'cooling': (False,) * depth, 'drop_path_rates': (0.0,) * depth, 'mlp_ratio': 1} | fields
  return crossformer.Stage(attentions, **fields)


def test_a_loop_over_pairs_of_blocks_computes_the_same():
  called = _stage(6)
  looped = called.clone(options=crossformer.Options(scan_blocks=True))
  x = jnp.asarray(np.random.RandomState(0).standard_normal((2, 6, 4, 16)), jnp.float32)
  variables = _variables(called, x)
  assert 'length=2' in str(jax.make_jaxpr(looped.apply)(variables, x))
  out, weights = jax.jit(called.apply)(variables, x)
  loop_out, loop_weights = jax.jit(looped.apply)(variables, x)
  np.testing.assert_allclose(loop_out, out, rtol=1e-4, atol=1e-5)
  for kind in ('short', 'long'):
    np.testing.assert_allclose(loop_weights[kind], weights[kind], rtol=1e-4, atol=1e-5)


@pytest.mark.extended
@pytest.mark.parametrize('scan_blocks', [False, True])
@pytest.mark.parametrize('remat', [False, True])
def test_neither_a_loop_nor_rematerialisation_changes_a_gradient(scan_blocks, remat):
  plain = _stage(6)
  x = jnp.asarray(np.random.RandomState(0).standard_normal((2, 6, 4, 16)), jnp.float32)
  variables = _variables(plain, x)

  def run(stage):
    loss = lambda variables: jnp.sum(jnp.sin(stage.apply(variables, x)[0]))
    return jax.jit(jax.grad(loss))(variables)

  changed = plain.clone(options=crossformer.Options(scan_blocks=scan_blocks, remat=remat))
  if remat:
    assert 'remat' in str(jax.make_jaxpr(changed.apply)(variables, x))
  for a, b in zip(jax.tree.leaves(run(changed)), jax.tree.leaves(run(plain)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(b).max()))


def test_a_loop_draws_no_two_blocks_alike():
  x = jnp.ones((64, 2, 2, 16))
  stage = _stage(6, drop_path_rates=(0.5,) * 6, options=crossformer.Options(scan_blocks=True))
  variables = _variables(stage, x)
  apply = jax.jit(lambda key: stage.apply(variables, x, True, rngs={'drop_path': key})[0])
  out = apply(jax.random.key(0))
  # Each of twelve branches is in or out: equal examples have many different results.
  assert len(np.unique(np.asarray(out[:, 0, 0, 0]).round(4))) > 32


def test_every_third_block_but_the_last_is_cooled_and_drop_path_grows():
  model = models.create_model('crossformer_pp_huge', drop_path_rate=0.31)
  seen = {}

  def note(next_function, args, kwargs, context):
    if isinstance(context.module, crossformer.Stage) and context.method_name == '__call__':
      seen[context.module.name] = context.module
    return next_function(*args, **kwargs)

  with nn.intercept_methods(note):
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    jax.eval_shape(model.init, jax.random.key(0), image)
  cooled = [np.flatnonzero(seen[f'stage_{s}'].cooling).tolist() for s in range(4)]
  assert cooled == [[2], [2], [2, 5, 8, 11, 14], []]
  rates = sum((seen[f'stage_{s}'].drop_path_rates for s in range(4)), ())
  np.testing.assert_allclose(rates, np.arange(32) / 100)


def test_initialisation_is_the_original_s():
  model = crossformer.Block(
    functools.partial(long_short_distance.LongShortDistanceAttention, 3), cooling=True
  )
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 96)))['params']
  np.testing.assert_allclose(np.std(params['attention']['qkv']['kernel']), 0.02, rtol=0.05)
  np.testing.assert_allclose(np.std(params['mlp']['fc2']['kernel']), 0.02, rtol=0.05)
  assert not np.any(params['attention']['qkv']['bias'])
  np.testing.assert_allclose(np.abs(params['cooling']['kernel']).max(), 1 / 3, rtol=0.05)
  position = params['attention']['position_bias']
  np.testing.assert_allclose(np.std(position['linear_1']['kernel']), 0.02, rtol=0.4)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'depths': (1, 1, 1)}, r'depths=\(1, 1, 1\) needs one entry for each of 2 stages'),
    ({'lda': 'local'}, r"lda='local' is not one of region, global"),
    ({'group_rule': 'square'}, r"group_rule='square' is not one of constant"),
    ({'head_dim': 5}, r'head_dim=5 does not divide the width 16'),
  ],
  ids=lambda x: str(x)[:40],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    _tiny(**fields)


@pytest.mark.parametrize(
  ('image', 'message'),
  [
    (jnp.zeros((2, 3, 32, 32)), r'images \[batch, height, width, 3\], not an array of shape'),
    (jnp.zeros((2, 32, 32, 3), jnp.uint8), 'normalised floating-point images, not uint8'),
    (jnp.zeros((2, 36, 32, 3)), 'a map of 9 x 8 cannot be halved'),
  ],
  ids=['channels first', 'integers', 'odd map'],
)
def test_images_of_another_kind_are_refused(image, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(_tiny().init, jax.random.key(0), image)
