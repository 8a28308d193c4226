import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models, parallel

ALPHA = 0.5
SMALL = {
  'region_dim': 6,
  'num_regions': 5,
  'word_dim': 8,
  'max_words': 7,
  'width': 8,
  'num_heads': 2,
  'mlp_dim': 12,
  'conv_channels': 5,
  'cross_conv_channels': 4,
  'alpha': ALPHA,
}
BERT = {'text_layers': 1, 'vocab_size': 20, 'text_heads': 2, 'text_mlp_dim': 12, 'max_positions': 9}
IMAGES, TEXTS = 4, 5


def _count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _inputs(model, images=IMAGES, texts=TEXTS):
  """Images of fewer and fewer regions, and sentences of fewer and fewer words."""
  rng = np.random.default_rng(0)
  shape = (texts, model.max_words)
  words = rng.integers(0, model.vocab_size, shape)
  if not model.text_layers:
    words = rng.standard_normal((*shape, model.word_dim)).astype(np.float32)
  regions = rng.standard_normal((images, model.num_regions, model.region_dim))
  return {
    'regions': jnp.asarray(regions, jnp.float32),
    'region_mask': jnp.arange(model.num_regions) < model.num_regions - jnp.arange(images)[:, None],
    'words': jnp.asarray(words),
    'word_mask': jnp.arange(model.max_words) < model.max_words - jnp.arange(texts)[:, None],
  }


def _template(name, **fields):
  model = models.create_model(name, **fields)
  return jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), _inputs(model, images=2, texts=3))
  )


@pytest.fixture(scope='module')
def model():
  return models.create_model('mmca', **SMALL)


def _variables(model):
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), _inputs(model)))
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: np.float32(0.4 * rng.standard_normal(x.shape)), shapes)


@pytest.fixture(scope='module')
def variables(model):
  return _variables(model)


@functools.partial(jax.jit, static_argnums=0, static_argnames=('train', 'chunk'))
def _apply(model, variables, inputs, **kwargs):
  return model.apply(variables, inputs, **kwargs)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _gradient(model, variables, inputs, chunk=None):
  """Of the hardest negatives' scores less those of the pairs; and the scores."""

  def loss(variables):
    scores, features = model.apply(variables, inputs, chunk=chunk)
    hardest = jnp.max(scores - 9 * jnp.eye(*scores.shape), axis=1)
    return jnp.sum(hardest) - jnp.trace(scores), (scores, features)

  return jax.grad(loss, has_aux=True)(variables)


def _in_float64(tree):
  return jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, tree)


def test_parameters_are_those_of_the_specification():
  _, variables = _template('mmca')
  assert {name: _count(tree) for name, tree in variables['params'].items()} == {
    'region_projection': 524_544,
    'word_projection': 196_864,
    'image_unit_0': 1_315_072,
    'text_cnn': 2_754_304,
    'cross_unit_0': 1_315_072,
    'cross_cnn': 1_181_440,
  }
  assert _count(variables) == 7_287_296


@pytest.mark.parametrize(
  ('name', 'count'),
  [
    ('mmca_bert_base', 7_287_296 + 109_482_240),
    ('saem', 4_593_920),
    ('saem_bert_base', 4_593_920 + 109_482_240),
    ('mmca_small', 222_848),
  ],
)
def test_variants_are_put_together_of_the_same_parts(name, count):
  (scores, features), variables = _template(name)
  assert scores.shape == (2, 3)
  assert _count(variables) == count
  names = {'image_embedding', 'text_embedding', 'self_scores', 'cross_scores'}
  assert set(features) == names - ({'cross_scores'} if name.startswith('saem') else set())


def test_a_score_is_the_sum_of_both_modules_similarities(model, variables):
  scores, features = _apply(model, variables, _inputs(model))
  images, texts = features['image_embedding'], features['text_embedding']
  np.testing.assert_allclose(np.linalg.norm(images, axis=-1), 1, rtol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(texts, axis=-1), 1, rtol=1e-5)
  np.testing.assert_allclose(features['self_scores'], images @ texts.T, atol=1e-6)
  expected = features['self_scores'] + ALPHA * features['cross_scores']
  np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_scores_do_not_depend_on_the_chunk(model, variables):
  """Chunks of two do not divide the five sentences."""
  inputs = _inputs(model)
  expected, actual = (_apply(model, variables, inputs, chunk=chunk) for chunk in (None, 2))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), actual, expected)


@pytest.mark.extended
def test_gradients_do_not_depend_on_the_chunk_and_are_finite_without_regions(model, variables):
  with jax.enable_x64(True):
    variables, inputs = _in_float64((variables, _inputs(model)))
    inputs['region_mask'] = inputs['region_mask'].at[1].set(False)
    expected, actual = (_gradient(model, variables, inputs, chunk) for chunk in (None, 2))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), actual, expected)


def test_images_without_any_region_have_no_embedding(model, variables):
  inputs = _inputs(model) | {'region_mask': jnp.zeros((IMAGES, model.num_regions), bool)}
  scores, features = _apply(model, variables, inputs)
  assert not np.any(features['image_embedding'])
  assert not np.any(scores)


def test_each_pair_is_scored_by_itself(model, variables):
  """What else is in the batch, and what pads it, has no part."""
  inputs = _inputs(model)
  scores, _ = _apply(model, variables, inputs)
  image, text = 2, 3
  regions, words = model.num_regions - image, model.max_words - text
  alone, _ = _apply(
    model,
    variables,
    {
      'regions': inputs['regions'][image : image + 1, :regions],
      'words': inputs['words'][text : text + 1, :words],
    },
  )
  np.testing.assert_allclose(alone[0, 0], scores[image, text], atol=1e-6)


def test_padding_takes_part_where_it_should_not_be_masked(model, variables):
  inputs = _inputs(model)
  masked, _ = _apply(model, variables, inputs)
  unmasked, _ = _apply(model.clone(mask_padding=False), variables, inputs)
  # The first sentence has no padding.
  np.testing.assert_allclose(unmasked[:, 0], masked[:, 0], atol=1e-6)
  assert np.all(np.abs(unmasked[:, 1:] - masked[:, 1:]) > 1e-4)


BRANCHES = [
  ('cnn', 'mean'),
  pytest.param('gru', 'gru', marks=pytest.mark.extended),
  pytest.param('linear', 'attention', marks=pytest.mark.extended),
]


@pytest.mark.parametrize(('image_branch', 'text_branch'), BRANCHES)
def test_branches_that_saem_compares_with_ignore_padding_and_train_all_parameters(
  image_branch, text_branch
):
  model = models.create_model(
    'saem',
    image_branch=image_branch,
    text_branch=text_branch,
    mask_padding=True,
    region_conv_channels=4,
    gru_dim=6,
    **SMALL,
  )
  inputs, variables = _inputs(model), _variables(model)
  parts = {'cnn': 'image_cnn', 'gru': 'image_gru', 'linear': 'region_projection'}
  texts = {'mean': set(), 'gru': {'text_gru'}, 'attention': {'text_unit_0'}}
  expected = {parts[image_branch], 'text_projection', *texts[text_branch]}
  assert set(variables['params']) == expected

  gradient, (scores, features) = _gradient(model, variables, inputs)
  assert scores.shape == (IMAGES, TEXTS)
  for name in ('image_embedding', 'text_embedding'):
    np.testing.assert_allclose(np.linalg.norm(features[name], axis=-1), 1, rtol=1e-5)
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    # A constant that is added to all keys cancels.
    if 'key/bias' not in jax.tree_util.keystr(path, simple=True, separator='/'):
      assert np.any(leaf), jax.tree_util.keystr(path)

  longer = {
    name: jnp.pad(x, ((0, 0), (0, 2), *((0, 0),) * (x.ndim - 2))) for name, x in inputs.items()
  }
  for name, mask in (('regions', 'region_mask'), ('words', 'word_mask')):
    longer[name] = jnp.where(longer[mask][..., None], longer[name], 7.0)
  again, _ = _apply(model, variables, longer)
  np.testing.assert_allclose(again, scores, atol=1e-6)


def test_the_cross_attention_module_takes_what_the_image_branch_makes_of_regions():
  fields = {**SMALL, 'cross_input': 'self'}
  _, variables = _template('mmca', image_branch='gru', **fields)
  assert {'image_gru', 'region_projection', 'cross_unit_0'} < set(variables['params'])
  with pytest.raises(
    ValueError, match="leaves nothing of its regions: set cross_input='projected'"
  ):
    models.create_model('mmca', image_branch='cnn', **fields)


def test_attention_maps_are_shares_of_the_regions_and_words_of_a_pair(model, variables):
  inputs = _inputs(model, images=3, texts=3)

  @jax.jit
  def attention_maps(variables, inputs):
    bound = model.bind(variables)
    images = bound.encode_images(inputs['regions'], inputs['region_mask'])
    texts = bound.encode_texts(inputs['words'], inputs['word_mask'])
    return bound.cross_attention_maps(images, texts)

  maps = attention_maps(variables, inputs)
  tokens = model.num_regions + model.max_words
  assert maps.shape == (3, model.num_heads, tokens, tokens)
  np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)
  takes_part = np.concatenate([inputs['region_mask'], inputs['word_mask']], axis=1)
  np.testing.assert_array_equal((maps > 0).all(axis=(1, 2)), takes_part)


@pytest.mark.parametrize('frozen', [True, pytest.param(False, marks=pytest.mark.extended)])
def test_a_frozen_text_encoder_gets_no_gradient_and_never_drops(frozen):
  model = models.create_model(
    'saem', drop_rate=0.5, freeze_text_encoder=frozen, mask_padding=True, **SMALL, **BERT
  )
  inputs = _inputs(model)
  words = inputs['words'], inputs['word_mask']

  @jax.jit
  def run(variables):
    gradient, (scores, _) = _gradient(model, variables, inputs)
    features, dropped = (
      model.apply(
        variables, *words, train, rngs={'dropout': jax.random.key(0)}, method='encode_words'
      )
      for train in (False, True)
    )
    computed, _ = model.apply(variables, inputs | {'words': features})
    return gradient['params']['bert'], features, dropped, scores, computed

  gradient, features, dropped, scores, computed = run(_variables(model))
  assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient)) != frozen
  assert ('pooler' in gradient) == frozen
  assert np.all(dropped == features) == frozen
  # Features that were computed before are taken as they are.
  np.testing.assert_allclose(computed, scores, atol=1e-6)


def test_every_pair_drops_on_its_own_and_every_chunk(model, variables):
  """The same image and sentence four times."""
  inputs = {name: jnp.repeat(x[:1], 4, axis=0) for name, x in _inputs(model).items()}
  dropping = model.clone(drop_rate=0.5)
  rngs = {'dropout': jax.random.key(1)}
  _, features = _apply(dropping, variables, inputs, train=True, chunk=2, rngs=rngs)
  assert len(np.unique(features['cross_scores'])) == 16


@pytest.mark.extended
@pytest.mark.parametrize('axes', [{'data': 8}, {'data': 2, 'fsdp': 2, 'tensor': 2}], ids=str)
def test_eight_devices_score_and_differentiate_as_one(model, variables, axes):
  """Hardest negatives are found on other devices too."""
  inputs = _inputs(model, images=8, texts=8)
  expected = _gradient(model, variables, inputs, 4)
  mesh = parallel.create_mesh(**axes)
  batch = jax.NamedSharding(mesh, jax.P(('data', 'fsdp')))
  with jax.set_mesh(mesh):
    actual = _gradient(model, variables, jax.device_put(inputs, batch), 4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, expected)


def test_bfloat16_computes_units_and_neither_embeddings_nor_scores():
  (scores, features), variables = _template('mmca', dtype='bfloat16', **SMALL)
  assert {x.dtype for x in (scores, *features.values())} == {jnp.dtype('float32')}
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def test_wrong_inputs_and_options_are_refused_by_name(model):
  inputs = _inputs(model)

  def run(chunk=None, **changes):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), inputs | changes, chunk=chunk))

  with pytest.raises(ValueError, match=r'region features \[images, regions, 6\], not \(4, 5, 7\)'):
    run(regions=jnp.zeros((4, 5, 7)))
  with pytest.raises(ValueError, match=r'region_mask must be bool of shape \(4, 5\)'):
    run(region_mask=jnp.ones((4, 5)))
  with pytest.raises(ValueError, match=r"not int32 of shape \(5, 7\).*'mmca_bert_base' takes ids"):
    run(words=jnp.zeros((5, 7), jnp.int32))
  with pytest.raises(ValueError, match='2 slots have no room for windows of 3, the largest of'):
    run(words=jnp.zeros((5, 2, 8)), word_mask=jnp.ones((5, 2), bool))
  with pytest.raises(ValueError, match='chunk=0: at least one sentence'):
    run(chunk=0)
  with pytest.raises(ValueError, match="cross_input='regions' is not one of projected, self"):
    models.create_model('mmca', cross_input='regions')
  with pytest.raises(ValueError, match="text_branch='rnn' is not one of cnn, gru, attention, mean"):
    models.create_model('mmca', text_branch='rnn')
  with pytest.raises(ValueError, match=r"image_units=0: .*image_branch='linear' has none"):
    models.create_model('mmca', image_units=0)
  with pytest.raises(ValueError, match='without it, set cross_attention=False'):
    models.create_model('mmca', cross_units=0)
