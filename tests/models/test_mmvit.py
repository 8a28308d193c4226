import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.layers import resize
from crossattn_jax.models import mmvit

# Of the recorded cases, and of benchmarks/torch_mmvit.py.
PARAMETERS = {
  'mmvit_base': 78_580_552,
  'mmvit_small': 27_346_216,
  'mmvit_tiny': 14_669_080,
  'mmvit_base_audio': 77_829_359,
}
IMAGES = jnp.asarray(np.random.RandomState(7).standard_normal((2, 16, 16, 3)), jnp.float32)


def _tiny(name='mmvit_tiny', **fields):
  """Two stages for 16 x 16 images: grids of 4 x 4 and 2 x 2, then 2 x 2 and 1 x 1."""
  fields = {
    'image_size': (16, 16),
    'embed_dim': 8,
    'depths': (1, 1),
    'cross_stages': (0, 1),
    'num_classes': 5,
  } | fields
  return models.create_model(name, **fields)


def _variables(model, image=IMAGES):
  """Variables large enough that every part of the model matters."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)
  rng = np.random.RandomState(0)
  draw = lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype)
  return jax.tree.map(draw, shapes)


def _run(model, image=IMAGES, variables=None, **kwargs):
  variables = _variables(model, image) if variables is None else variables
  return jax.jit(lambda v, x: model.apply(v, x, **kwargs))(variables, image)


@pytest.mark.parametrize(
  'name',
  [
    # Those of the other two are checked tensor by tensor in tests/parity/test_mmvit.py.
    'mmvit_tiny',
    *(
      pytest.param(name, marks=pytest.mark.extended) for name in PARAMETERS if name != 'mmvit_tiny'
    ),
  ],
)
def test_parameter_counts_are_the_specified_ones(name):
  model = models.create_model(name)
  image = jax.ShapeDtypeStruct((1, *model.image_size, model.num_channels), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))
  assert count == PARAMETERS[name]


def test_grids_and_widths_are_those_of_the_specification():
  model = models.create_model('mmvit_base', depths=(1, 1, 1, 1))
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  _, features = jax.eval_shape(model.init_with_output, jax.random.key(0), image)[0]
  for s, (fine, coarse) in enumerate([(56, 28), (28, 14), (14, 7), (7, 4)]):
    assert features[f'stage_{s}'].shape == (1, fine, fine, 96 * 2**s)
    assert features[f'cross/{s}/0'].shape == (1, 1 + fine**2, 96 * 2**s)
    assert features[f'cross/{s}/1'].shape == (1, coarse**2, 96 * 2**s)
    keys = min(14, fine)
    assert features[f'class_attention/{s}/0'].shape == (1, 2**s, keys, keys)
  assert features['feature'].shape == (1, 768)


def test_the_class_token_s_attention_is_shown_for_both_views_of_the_last_two_stages():
  model = _tiny(image_size=(64, 48), depths=(1, 1, 1), cross_stages=(0, 1, 2))
  image = jax.ShapeDtypeStruct((2, 64, 48, 3), jnp.float32)
  _, features = jax.eval_shape(model.init_with_output, jax.random.key(0), image)[0]
  maps = jax.eval_shape(model.attention_maps, features)
  assert {name: x.shape for name, x in maps.items()} == {
    'stage 2: where the summary looks in the fine view': (2, 4, 3),
    'stage 2: where the summary looks in the coarse view': (2, 4, 3),
    'stage 3: where the summary looks in the fine view': (2, 4, 3),
    'stage 3: where the summary looks in the coarse view': (2, 2, 2),
  }


@pytest.mark.parametrize('positions', ['joint', 'separable'])
def test_positions_are_interpolated_for_other_sizes(positions):
  module = mmvit.PositionEmbedding((4, 3), positions, class_token=True)
  x = jnp.zeros((1, 6, 5, 2))
  variables = _variables(module, x)
  tokens = module.apply(variables, x)
  params = variables['params']
  if positions == 'joint':
    table = params['positions'][1:].reshape(4, 3, 2)
    expected, first = resize.resize(table, (6, 5), 'bicubic'), params['positions'][:1]
  else:
    rows = resize.resize_matrix(4, 6, 'bilinear') @ np.asarray(params['rows'])
    columns = resize.resize_matrix(3, 5, 'bilinear') @ np.asarray(params['columns'])
    expected, first = rows[:, None] + columns, params['class_position']
  np.testing.assert_allclose(tokens[0, 1:].reshape(6, 5, 2), expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(tokens[:, 0], params['class_token'] + first, rtol=1e-6)


def test_any_size_is_taken():
  variables = jax.eval_shape(_tiny().init, jax.random.key(0), IMAGES)
  image = jax.ShapeDtypeStruct((3, 22, 13, 3), jnp.float32)
  logits, features = jax.eval_shape(_tiny().apply, variables, image)
  assert logits.shape == (3, 5)
  assert features['stage_0'].shape == (3, 6, 4, 8)


@pytest.mark.parametrize(
  ('fields', 'present', 'absent'),
  [
    ({'global_pool': 'avg'}, 'cross/1/1', 'class_attention/1/0'),
    ({'cross_stages': (1,)}, 'cross/1/1', 'cross/0/0'),
    ({'cross_pool': False}, 'class_attention/0/1', None),
    (
      {'patch_sizes': (7,), 'patch_strides': (4,), 'kv_strides': (4,), 'cross_stages': ()},
      'self/1/0',
      'self/1/1',
    ),
    ({'num_classes': 0}, 'feature', None),
    ({'depths': (0, 2)}, 'self/0/0', None),
  ],
  ids=lambda x: str(x)[:40],
)
def test_options_change_what_there_is(fields, present, absent):
  out, features = jax.eval_shape(_tiny(**fields).init_with_output, jax.random.key(0), IMAGES)[0]
  assert out.shape == (2, fields.get('num_classes', 5) or 16)
  assert present in features
  assert absent not in features


def test_zero_initialised_fusion_leaves_the_views_alone():
  module = mmvit.CrossViewBlock(1, (1, 1), 0.0, True, mmvit.Options())
  views = tuple(
    jnp.asarray(np.random.RandomState(v).standard_normal((2, n, 4)), jnp.float32)
    for v, n in enumerate((5, 1))
  )
  start = jax.jit(lambda: module.init_with_output(jax.random.key(0), views, ((2, 2), (1, 1))))
  out, _ = start()[0]
  for before, after in zip(views, out, strict=True):
    np.testing.assert_array_equal(before, after)


@pytest.mark.extended
def test_bfloat16_computes_in_bfloat16_and_answers_in_float32():
  variables = _variables(_tiny())
  expected, _ = _run(_tiny(), variables=variables)
  logits, features = _run(_tiny(dtype=jnp.bfloat16), variables=variables)
  assert features['stage_0'].dtype == jnp.bfloat16
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.extended
@pytest.mark.parametrize('remat', [False, True])
def test_a_loop_over_the_blocks_and_rematerialisation_change_nothing(remat):
  grids, options = ((2, 2), (1, 1)), mmvit.Options()
  called = mmvit.Stage(1, (1, 1), (0.0,) * 2, options)
  looped = called.clone(options=mmvit.Options(scan_blocks=True, remat=remat))
  views = tuple(
    jnp.asarray(np.random.RandomState(v).standard_normal((2, n, 4)), jnp.float32)
    for v, n in enumerate((5, 1))
  )
  shapes = jax.eval_shape(lambda: called.init(jax.random.key(0), views, grids))
  rng = np.random.RandomState(0)
  variables = jax.tree.map(
    lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), shapes
  )

  def run(stage):
    loss = lambda v: sum(jnp.sum(jnp.sin(x)) for x in stage.apply(v, views, grids))
    return jax.jit(jax.value_and_grad(loss))(variables)

  jaxpr = str(jax.make_jaxpr(lambda v: looped.apply(v, views, grids))(variables))
  assert 'scan' in jaxpr
  assert ('remat' in jaxpr or 'checkpoint' in jaxpr) == remat
  (loss, gradient), (loop_loss, loop_gradient) = run(called), run(looped)
  np.testing.assert_allclose(loop_loss, loss, rtol=1e-5)
  for a, b in zip(jax.tree.leaves(loop_gradient), jax.tree.leaves(gradient), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(b).max()))


def test_drop_path_grows_over_the_blocks_within_the_views():
  model = models.create_model('mmvit_base', depths=(1, 1, 2, 1), drop_path_rate=0.07)
  seen = {}

  def note(next_function, args, kwargs, context):
    if context.method_name == '__call__' and hasattr(context.module, 'drop_path_rate'):
      seen['/'.join(context.module.path)] = context.module.drop_path_rate
    return next_function(*args, **kwargs)

  with nn.intercept_methods(note):
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    jax.eval_shape(model.init, jax.random.key(0), image)
  names = ['stage_0/block_0', 'scale_0', 'stage_1/block_0', 'scale_1']
  names += [*(f'stage_2/block_{i}' for i in range(2)), 'scale_2', 'stage_3/block_0']
  np.testing.assert_allclose([seen[f'{name}/view_1'] for name in names], np.arange(8) / 100)
  crossing = [seen[f'cross_{s}'] for s in range(4)]
  np.testing.assert_allclose(crossing, [0, 0.02, 0.05, 0.07])


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'kv_strides': (4,)}, r'kv_strides=\(4,\) needs one entry for each of 2 views'),
    ({'patch_sizes': (8, 15)}, r'patch_sizes=\(8, 15\) must be odd'),
    ({'positions': 'learnt'}, "positions='learnt' is not one of joint, separable"),
    ({'global_pool': 'max'}, "global_pool='max' is not one of token, avg"),
    ({'cross_stages': (0, 2)}, r'cross_stages=\(0, 2\) names a stage that is not among the 2'),
    ({'num_heads': 3}, 'num_heads=3 does not divide embed_dim=8'),
  ],
  ids=lambda x: str(x)[:40],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    _tiny(**fields)


@pytest.mark.parametrize(
  ('image', 'message'),
  [
    (jnp.zeros((2, 3, 16, 16)), r'images \[batch, height, width, 3\], not an array of shape \(2'),
    (jnp.zeros((2, 16, 16, 3), jnp.uint8), 'normalised floating-point images, not uint8'),
  ],
  ids=['channels first', 'integers'],
)
def test_images_of_another_kind_are_refused(image, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(_tiny().init, jax.random.key(0), image)
