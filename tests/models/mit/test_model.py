"""MIT and its ablations: what they return, options, gradients without scatter, bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.geometry import points
from crossattn_jax.layers import sparse_convolution as sparse

CLASSES, VIEWS, SUPERVOXELS = 3, 2, 4
POINTS = {'points_widths': (4,) * 8, 'points_depths': (1,) * 8, 'points_stem_width': 4}
IMAGES = {'image_widths': (2,) * 4, 'image_depths': (1,) * 4, 'image_stem_width': 2}
SMALL = {'num_classes': CLASSES, 'num_heads': 2, 'encoder_depth': 1}
FIELDS = {
  'mit_18a_r50': {
    **SMALL, **POINTS, **IMAGES,
    'num_views': VIEWS, 'decoder_depth': 2, 'decoder_heads': 2, 'decoder_mlp_ratio': 1.0,
  },
  'mit_points': SMALL | POINTS,
  'mit_images': {**SMALL, **IMAGES, 'width': 4},
}  # fmt: skip
OUTPUTS = {
  'mit_points': {
    'voxel_class_logits': (1, CLASSES),
    'voxel_cam_probabilities': (1, CLASSES),
    'cams': (1, SUPERVOXELS, CLASSES),
    'consistency': (1,),
  },
  'mit_images': {
    'view_class_logits': (1, CLASSES),
    'view_cam_logits': (1, CLASSES),
    'view_cams': (1, VIEWS, CLASSES),
  },
}
OUTPUTS['mit_18a_r50'] = {
  **OUTPUTS['mit_points'],
  **OUTPUTS['mit_images'],
  'cross_logits': (1, CLASSES),
  'token_similarity': (1,),
}


def build(name='mit_18a_r50', **changes):
  return models.create_model(name, **FIELDS[name] | changes)


@pytest.fixture(scope='module')
def scene():
  """What models take of a floor, of whose supervoxels the second is empty, and two photographs."""
  rng = np.random.default_rng(0)
  cells = rng.permutation(np.argwhere(np.ones((20, 20, 1))))[:40]  # At stride 16 there are four.
  levels = []
  for _, neighbours, link in points.levels(cells, 5):
    tables = [neighbours, link.children, 8 * link.parent + link.octant] if link else [neighbours]
    levels.append(sparse.Level(*(jnp.asarray(table)[None] for table in tables)))
  around = points.neighbours(cells, 5)
  windows = points.gather(rng.standard_normal((len(cells), 3)).astype(np.float32), around)
  ids = np.where(cells[:, 0] > 9, 2, 0)[None]
  position = np.array([[[5, 10, 0], [0, 0, 0], [15, 10, 0], [0, 0, 0]]], np.float32)
  images = rng.standard_normal((1, VIEWS, 32, 32, 3)).astype(np.float32)
  return jnp.asarray(windows)[None], levels, ids, np.array([3]), position, images


def shapes_of(model, scene, *more):
  structs = jax.eval_shape(model.init, jax.random.key(0), *scene)
  outputs, features = jax.eval_shape(model.apply, structs, *scene, *more)
  shapes = lambda tree: {name: x.shape for name, x in tree.items()}
  return shapes(outputs), shapes(features)


@pytest.mark.extended
@pytest.mark.parametrize('name', FIELDS)
def test_outputs_are_those_of_what_a_model_sees(scene, name):
  outputs, features = shapes_of(build(name), scene)
  assert outputs == OUTPUTS[name]
  attention = {name: shape for name, shape in features.items() if 'attention' in name}
  views, voxels = CLASSES + VIEWS, CLASSES + SUPERVOXELS
  expected = {'attention_0': (1, 2, views, voxels), 'attention_1': (1, 2, voxels, views)}
  assert attention == (expected if name == 'mit_18a_r50' else {})


@pytest.mark.slow
def test_registered_models_have_the_parameters_of_the_originals(scene):
  measured = {
    'mit_18a_r50': 39_866_164, 'mit_18a_r101': 58_858_292, 'mit_34c_r50': 62_229_044,
    'mit_34c_r101': 81_221_172, 'mit_points': 15_674_612, 'mit_images': 23_880_436,
  }  # fmt: skip
  assert set(models.list_models('mit_*')) == set(measured)
  views = np.zeros((1, 16, 32, 32, 3), np.float32)
  for name, count in measured.items():
    model = models.create_model(name)
    params = jax.eval_shape(model.init, jax.random.key(0), *scene[:5], views)['params']
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count, name


@pytest.fixture(scope='module')
def variables(scene):
  return jax.jit(build().init)(jax.random.key(0), *scene)


@pytest.mark.extended
def test_it_starts_as_the_original_does(variables):
  params = variables['params']
  assert not params['view_positions'].any()
  for name in ('class_tokens', 'class_positions'):
    assert 0.01 < params[name].std() < 0.04
  for kernel, fan_in in (
    (params['voxel_encoder']['block_0']['attention']['qkv']['kernel'], 4),
    (params['decoder']['block_0']['cross_attention']['key']['kernel'], 4),
    (params['images']['out']['kernel'], 8),
    (params['positions']['linear_0']['kernel'], 3),
    (params['head_views']['kernel'], 4),
    (params['head_views']['bias'], 4),
  ):
    assert 0.5 * fan_in**-0.5 < np.abs(kernel).max() < fan_in**-0.5


@pytest.mark.extended
def test_gradients_need_no_scatter_and_bfloat16_is_finite(scene, variables):
  model = build(dtype=jnp.bfloat16)

  def loss(params):
    outputs, updated = model.apply(
      {**variables, 'params': params},
      *scene,
      True,
      rngs={name: jax.random.key(0) for name in ('dropout', 'drop_path')},
      mutable=['batch_stats'],
    )
    return sum(jnp.sum(x) for x in outputs[0].values()), (outputs, updated)

  step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(variables['params'])
  assert 'scatter' not in step.as_text()
  (_, ((outputs, features), updated)), gradients = step.compile()(variables['params'])
  assert {x.dtype for x in outputs.values()} == {jnp.dtype('float32')}
  assert features['stage_7'].dtype == jnp.bfloat16
  for x in jax.tree.leaves((outputs, updated, gradients)):
    assert np.isfinite(x).all()
  # Nothing but what is constant under a softmax or a norm has no gradient.
  assert all(np.any(x) for x in jax.tree.leaves(gradients['decoder']['block_0']))


@pytest.mark.slow
def test_options_change_what_they_say(scene, variables):
  call = lambda model: jax.jit(model.apply)(variables, *scene)
  plain, features = call(build())
  # The empty supervoxel is seen by photographs, unless it is masked.
  masked, _ = call(build(mask_empty=True))
  assert np.abs(masked['cross_logits'] - plain['cross_logits']).max() > 1e-6
  np.testing.assert_array_equal(masked['cams'], plain['cams'])
  mean = plain['cams'][:, np.array([0, 2])].mean(axis=1)
  np.testing.assert_allclose(masked['voxel_cam_probabilities'], mean, rtol=1e-6)
  np.testing.assert_allclose(
    plain['voxel_cam_probabilities'], plain['cams'][:, :3].mean(axis=1), rtol=1e-6
  )
  np.testing.assert_allclose(plain['cams'].sum(axis=-1), 1, rtol=1e-6)
  # Of encoded tokens there are logits; of photographs the best counts.
  encoded, _ = call(build(cams_of='encoded', pool='max', first_query='voxels'))
  np.testing.assert_array_equal(encoded['view_cam_logits'], plain['view_cams'].max(axis=1))
  np.testing.assert_array_equal(encoded['voxel_cam_logits'], encoded['cams'][:, :3].max(axis=1))
  assert 'voxel_cam_probabilities' not in encoded
  centred, _ = call(build(centre_positions=True))
  assert np.abs(centred['voxel_class_logits'] - plain['voxel_class_logits']).max() > 1e-6
  np.testing.assert_array_equal(centred['view_class_logits'], plain['view_class_logits'])
  assert features['attention_0'].shape == (1, 2, CLASSES + VIEWS, CLASSES + SUPERVOXELS)


@pytest.mark.extended
def test_what_does_not_fit_is_refused(scene):
  images = np.zeros((1, 3, 32, 32, 3), np.float32)
  with pytest.raises(ValueError, match='got 3 images of a scene, num_views=2'):
    shapes_of(build(), (*scene[:5], images))
  for field in ('first_query', 'cams_of', 'pool'):
    with pytest.raises(ValueError, match=f"{field}='both' is not one of"):
      build(**{field: 'both'})
  with pytest.raises(ValueError, match='without supervoxels there is nothing to encode'):
    shapes_of(build('mit_points'), (*scene[:2], None, None, None, None))


@pytest.mark.extended
def test_ablations_leave_parts_out(scene):
  cells = scene[0].shape[1]
  model = build('mit_points', encoder_depth=0)
  outputs, _ = shapes_of(model, (*scene[:2], None, None, None, None))
  shapes = {'voxel_cam_probabilities': (1, CLASSES), 'cams': (1, cells, CLASSES)}
  assert outputs == shapes
  outputs, _ = shapes_of(build('mit_images', encoder_depth=0), (*(None,) * 5, scene[5]))
  assert set(outputs) == {'view_cam_logits', 'view_cams'}
  outputs, _ = shapes_of(build(cams_of='encoded'), scene)
  assert set(OUTPUTS['mit_18a_r50']) ^ set(outputs) == {
    'voxel_cam_probabilities', 'voxel_cam_logits',
  }  # fmt: skip
