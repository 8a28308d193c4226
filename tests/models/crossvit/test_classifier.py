import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.layers import resize

PARAMETERS = {
  ('crossvit_tiny_224', 'crossvit_tiny_240'): 7_014_800,
  ('crossvit_small_224', 'crossvit_small_240'): 26_856_272,
  ('crossvit_base_224', 'crossvit_base_240'): 105_025_232,
  ('crossvit_9_224', 'crossvit_9_240'): 8_553_296,
  ('crossvit_15_224', 'crossvit_15_240'): 27_528_464,
  ('crossvit_18_224', 'crossvit_18_240'): 43_271_408,
  ('crossvit_9_dagger_224', 'crossvit_9_dagger_240'): 8_776_592,
  ('crossvit_15_dagger_224', 'crossvit_15_dagger_240'): 28_209_008,
  ('crossvit_18_dagger_224', 'crossvit_18_dagger_240'): 44_266_976,
  ('crossvit_15_dagger_384', 'crossvit_15_dagger_408'): 28_500_080,
  ('crossvit_18_dagger_384', 'crossvit_18_dagger_408'): 44_606_560,
  ('crossvit_18_dagger_480', 'crossvit_18_dagger_504'): 44_887_904,
  ('crossvit_18_t2t_224', 'crossvit_18_t2t_240'): 43_548_604,
  ('crossvit_18_performer_224', 'crossvit_18_performer_240'): 43_557_564,
}
FUSIONS = ['cross_attention', 'all_attention', 'class_token', 'pairwise', 'none']
IMAGES = jax.random.normal(jax.random.key(7), (2, 8, 8, 3))


def _tiny(**fields):
  """A model of 8 x 8 images that compiles in seconds."""
  fields = {
    'image_size': (8, 8),
    'branch_image_sizes': ((8, 8), (8, 8)),
    'patch_sizes': (2, 4),
    'widths': (8, 12),
    'depths': ((1, 1, 0),),
    'num_heads': (2, 2),
    'num_classes': 5,
  } | fields
  return models.create_model('crossvit_tiny_240', **fields)


def _variables(model, image=IMAGES):
  """Variables large enough that every part of the model matters."""
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  leaves, tree = jax.tree.flatten(variables)
  rng = np.random.RandomState(0)
  return tree.unflatten([jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype) for x in leaves])


def _run(model, image=IMAGES, variables=None):
  variables = _variables(model, image) if variables is None else variables
  return jax.jit(model.apply)(variables, image)


@pytest.mark.parametrize('names', PARAMETERS, ids=lambda names: names[1])
def test_parameter_counts_are_the_original_s(names):
  official, timm = (models.create_model(name) for name in names)
  assert official == timm
  image = jax.ShapeDtypeStruct((1, *timm.image_size, 3), jnp.float32)
  variables = jax.eval_shape(timm.init, jax.random.key(0), image)
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))
  assert count == PARAMETERS[names]


def test_every_registered_name_is_counted():
  counted = {name for names in PARAMETERS for name in names}
  assert set(models.list_models('crossvit*')) == counted


def test_branch_sizes_and_grids_of_the_published_sizes():
  sides = {
    name: models.create_model(name).branch_sizes() for name in models.list_models('crossvit*')
  }
  assert sides['crossvit_tiny_240'] == ((240, 240), (224, 224))
  assert sides['crossvit_18_dagger_408'] == ((408, 408), (384, 384))
  assert sides['crossvit_18_dagger_504'] == ((504, 504), (480, 480))
  model = models.create_model('crossvit_tiny_240', image_size=(240, 120))
  assert model.branch_sizes() == ((240, 120), (224, 112))
  assert model.grids() == ((20, 10), (14, 7))


@pytest.mark.parametrize('fusion', FUSIONS)
def test_logits_are_the_mean_of_the_branches_and_features_have_their_shapes(fusion):
  logits, features = _run(_tiny(fusion=fusion, depths=((1, 1, 0),) * 2))
  np.testing.assert_allclose(logits, (features['logits/0'] + features['logits/1']) / 2, rtol=1e-6)
  shapes = {name: x.shape for name, x in features.items()}
  expected = {
    'logits/0': (2, 5),
    'logits/1': (2, 5),
    'tokens/0': (2, 17, 8),
    'tokens/1': (2, 5, 12),
  }
  if fusion == 'cross_attention':
    for k in range(2):
      # The class token of branch 0 looks at the patches of branch 1 and the other way round.
      expected |= {
        f'cross_attention/{k}/0': (2, 2, 5),
        f'cross_attention/{k}/1': (2, 2, 17),
      }
      np.testing.assert_allclose(features[f'cross_attention/{k}/0'].sum(-1), 1, rtol=1e-6)
  assert shapes == expected


@pytest.mark.parametrize('fusion', FUSIONS)
def test_only_fusion_makes_a_branch_see_the_other_one(fusion):
  model = _tiny(fusion=fusion)
  variables = _variables(model)
  _, features = _run(model, variables=variables)
  params = variables['params']
  changed = variables | {
    'params': params | {'embedding_1': jax.tree.map(lambda x: x + 1, params['embedding_1'])}
  }
  _, other = _run(model, variables=changed)
  difference = np.abs(features['logits/0'] - other['logits/0']).max()
  assert (difference == 0) == (fusion == 'none')


def test_three_branches_form_a_ring():
  model = _tiny(
    branch_image_sizes=((8, 8), (8, 8), (6, 6)),
    patch_sizes=(2, 4, 3),
    widths=(8, 12, 16),
    depths=((1, 2, 1, 0),),
    num_heads=(2, 3, 4),
    mlp_ratios=(4, 4, 4),
    drop_path_rate=0.1,
  )
  logits, features = _run(model)
  assert logits.shape == (2, 5)
  weights = [features[f'cross_attention/0/{d}'].shape for d in range(3)]
  assert weights == [(2, 3, 5), (2, 4, 5), (2, 2, 17)]


def test_rectangular_images_keep_their_grid():
  model = _tiny(image_size=(8, 4), branch_image_sizes=((8, 4), (8, 4)))
  logits, features = _run(model, IMAGES[:, :, :4])
  assert model.grids() == ((4, 2), (2, 1))
  assert features['tokens/0'].shape == (2, 9, 8)
  assert logits.shape == (2, 5)


@pytest.mark.parametrize('size', [(11, 6), (8, 5)], ids=str)
def test_any_input_size_is_resized_to_the_branches(size):
  model = _tiny(fusion='none', depths=((1, 1, 0),))
  variables = _variables(model)
  image = jax.random.normal(jax.random.key(1), (1, *size, 3))
  logits, _ = _run(model, image, variables)
  expected, _ = _run(model, resize.resize(image, (8, 8)), variables)
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_center_crop_cuts_out_the_middle_where_the_image_is_large_enough():
  model = _tiny(branch_image_sizes=((8, 8), (4, 4)), resize='center_crop', fusion='none')
  variables = _variables(model)
  border = jnp.ones((8, 8), bool).at[2:6, 2:6].set(False)[None, :, :, None]
  _, features = _run(model, IMAGES, variables)
  _, changed = _run(model, jnp.where(border, IMAGES + 1, IMAGES), variables)
  assert np.abs(features['logits/0'] - changed['logits/0']).max() > 1e-3
  np.testing.assert_array_equal(features['logits/1'], changed['logits/1'])
  small, _ = _run(model, IMAGES[:, :, :5], variables)  # too narrow for branch 0, not for branch 1
  assert small.shape == (2, 5)


def test_average_pooling_leaves_the_class_token_out():
  model = _tiny(global_pool='avg', num_classes=0)
  vectors, features = _run(model)
  expected = [np.mean(features[f'tokens/{d}'][:, 1:], axis=1) for d in range(2)]
  np.testing.assert_allclose(vectors, np.concatenate(expected, axis=-1), rtol=1e-5, atol=1e-6)


def test_no_classes_give_the_class_tokens_side_by_side():
  vectors, features = _run(_tiny(num_classes=0))
  expected = [features[f'tokens/{d}'][:, 0] for d in range(2)]
  np.testing.assert_array_equal(vectors, np.concatenate(expected, axis=-1))


def test_second_cross_attention_block_sees_the_patches_only_on_request():
  quirk, reuse = (_tiny(depths=((1, 1, 2),), reuse_patches=reuse) for reuse in (False, True))
  variables = _variables(quirk)
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, _variables(reuse))
  quirk_logits, _ = _run(quirk, variables=variables)
  reuse_logits, _ = _run(reuse, variables=variables)
  assert np.abs(quirk_logits - reuse_logits).max() > 1e-4
  # With one token to attend to, what the second block's query says is of no consequence.
  attention = variables['params']['encoder_0']['fusion']['cross_attention_0_1']['attention']
  attention['query']['kernel'] = attention['query']['kernel'] + 1
  np.testing.assert_allclose(_run(quirk, variables=variables)[0], quirk_logits, atol=1e-6)
  assert np.abs(_run(reuse, variables=variables)[0] - reuse_logits).max() > 1e-5


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32():
  model = _tiny()
  variables = _variables(model)
  logits, features = _run(model.clone(dtype=jnp.bfloat16), variables=variables)
  expected, _ = _run(model, variables=variables)
  assert features['tokens/0'].dtype == jnp.bfloat16
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, expected, atol=0.1 * np.abs(expected).max())


def test_a_loop_over_blocks_changes_neither_parameters_nor_logits():
  called = _tiny(depths=((1, 3, 0),) * 2, drop_path_rate=0.5)
  scanned = called.clone(scan_blocks=True)
  variables = _variables(scanned, IMAGES)
  chex.assert_trees_all_equal_shapes(variables, _variables(called, IMAGES))
  assert str(jax.make_jaxpr(scanned.apply)(variables, IMAGES)).count('scan[') == 2
  chex.assert_trees_all_close(
    jax.jit(called.apply)(variables, IMAGES),
    jax.jit(scanned.apply)(variables, IMAGES),
    rtol=1e-4,
    atol=1e-5,
  )


@pytest.mark.extended
def test_a_loop_over_blocks_trains_with_drop_path():
  scanned = _tiny(depths=((1, 3, 0),) * 2, drop_path_rate=0.5, scan_blocks=True)
  variables = _variables(scanned, IMAGES)

  def logits(seed, model=scanned):
    rngs = {'drop_path': jax.random.key(seed), 'dropout': jax.random.key(0)}
    return jax.jit(lambda v: model.apply(v, IMAGES, True, rngs=rngs)[0])(variables)

  assert not np.array_equal(logits(0), logits(1))
  np.testing.assert_allclose(logits(0), logits(0, scanned.clone(remat=True)), rtol=1e-4, atol=1e-6)


def test_initialisation_is_the_original_s():
  model = _tiny(widths=(96, 192), num_heads=(3, 3), depths=((1, 1, 0),), num_classes=100)
  params = jax.jit(model.init)(jax.random.key(0), IMAGES)['params']
  encoder = params['encoder_0']
  for array in (
    params['embedding_0']['position_embedding'],
    encoder['branch_1']['block_0']['attention']['qkv']['kernel'],
    encoder['fusion']['cross_attention_0']['attention']['key']['kernel'],
    encoder['fusion']['projection_0']['linear']['kernel'],
    params['head_0']['kernel'],
  ):
    np.testing.assert_allclose(np.std(array), 0.02, rtol=0.05)
  assert not np.any(params['head_0']['bias'])
  assert np.all(params['norm_0']['scale'] == 1)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'widths': (8, 12, 16)}, r'patch_sizes=\(2, 4\) needs one entry for each of 3 branches'),
    ({'num_heads': (3, 2)}, r'num_heads=\(3, 2\) does not divide widths=\(8, 12\)'),
    ({'depths': ((1, 2),)}, r'depths needs per encoder .* 2 branches .* not \(1, 2\)'),
    ({'depths': ((0, 2, 0),)}, r'at least one block for each of 2 branches'),
    ({'fusion': 'sum'}, r"fusion='sum' is not one of cross_attention, all_attention"),
    ({'patch_embedding': 'conv'}, 'defined for patch sizes'),
    ({'image_size': 8}, r'image_size=8 must be \(height, width\)'),
    ({'branch_image_sizes': ((8, 8), (3, 3))}, r'an image of \(3, 3\) holds no patch of 4 x 4'),
  ],
  ids=lambda x: str(x)[:40],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(_tiny(**fields).init, jax.random.key(0), IMAGES)


def test_cut_patches_are_refused_where_the_embedding_overlaps():
  with pytest.raises(ValueError, match=r'images of \(233, 233\); \(224, 224\) would do'):
    models.create_model('crossvit_9_dagger_240', image_size=(252, 252), branch_scales=(1, 0.925))


@pytest.mark.parametrize(
  ('image', 'message'),
  [
    (jnp.zeros((2, 3, 8, 8)), r'images \[batch, height, width, 3\], not an array of shape \(2, 3'),
    (jnp.zeros((8, 8, 3)), r'not an array of shape \(8, 8, 3\)'),
    (jnp.zeros((2, 8, 8, 3), jnp.uint8), 'normalised floating-point images, not uint8'),
  ],
  ids=['channels first', 'no batch', 'integers'],
)
def test_images_of_another_kind_are_refused(image, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(_tiny().init, jax.random.key(0), image)
