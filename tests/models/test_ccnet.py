import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models

PARAMETERS = {
  'ccnet_resnet101': 71_287_911,
  'ccnet_resnet50': 52_295_783,
  'ccnet3d_resnet50': 52_295_783,
  'pspnet_resnet101': 70_437_350,
  'deeplabv3_resnet101': 63_226_854,
}
IMAGES = jnp.asarray(np.random.RandomState(3).standard_normal((2, 33, 49, 3)), jnp.float32)
TINY = {
  'depths': (1, 1, 1, 1),
  'widths': (4, 4, 8, 16),
  'stem_widths': (4, 4, 8),
  'head_channels': 16,
  'num_classes': 5,
}


def _tiny(name='ccnet_resnet50', **fields):
  return models.create_model(name, **(TINY | fields))


def _shapes(model, image):
  image = jax.ShapeDtypeStruct(image, jnp.float32)
  return jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), image)


def _variables(model, image=IMAGES):
  """As initialised, but for the gate, which starts at 0."""
  variables = jax.jit(model.init)(jax.random.key(0), image)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.ones_like(x) if path[-1].key == 'gate' else x, variables
  )


@pytest.mark.parametrize('name', PARAMETERS)
def test_parameter_count_is_exact(name):
  shape = (1, 1, 65, 65, 3) if '3d' in name else (1, 65, 65, 3)
  _, variables = _shapes(models.create_model(name), shape)
  assert sum(x.size for x in jax.tree.leaves(variables['params'])) == PARAMETERS[name]


def test_another_number_of_classes_changes_the_classifiers_only():
  _, variables = _shapes(models.create_model('ccnet_resnet50', num_classes=150), (1, 65, 65, 3))
  assert sum(x.size for x in jax.tree.leaves(variables['params'])) == 52_430_189


@pytest.mark.parametrize(
  ('size', 'rows', 'columns'), [((769, 769), 97, 97), ((1024, 2048), 129, 257), ((98, 144), 13, 19)]
)
def test_maps_have_the_size_of_the_official_network(size, rows, columns):
  (logits, features), _ = _shapes(_tiny(), (1, *size, 3))
  assert logits.shape == features['auxiliary_logits'].shape == (1, rows, columns, 5)


@pytest.mark.parametrize('recurrence', [0, 1, 3])
def test_recurrence_changes_no_parameter_but_those_of_attention(recurrence):
  _, variables = _shapes(_tiny(recurrence=recurrence), IMAGES.shape)
  assert ('attention' in variables['params']['head']) == (recurrence > 0)


def test_two_applications_see_the_whole_image():
  model = _tiny()
  variables = _variables(model)
  _, features = jax.jit(model.apply)(variables, IMAGES)
  one, two = model.attention_maps(features).values()
  rows, columns = one.shape[1:]
  np.testing.assert_allclose(one.sum((1, 2)), 1, rtol=1e-5)
  np.testing.assert_allclose(two.sum((1, 2)), 1, rtol=1e-5)
  cross = np.zeros((rows, columns), bool)
  cross[rows // 2], cross[:, columns // 2] = True, True
  assert (one > 0).all(where=cross)
  assert (one == 0).all(where=~cross)
  assert (two > 0).all()
  for query in model.attention_queries(features).values():
    assert query.shape == one.shape
    assert (query[:, rows // 2, columns // 2] == 1).all()
  first = {**features, 'place': jnp.array([[0.01, 0.01], [0.99, 0.99]])}
  one, _ = model.attention_maps(first).values()
  for looks, row, column in ((one[0], 0, 0), (one[1], -1, -1)):
    assert (looks[row] > 0).all()
    assert (looks[:, column] > 0).all()
    assert jnp.count_nonzero(looks) == rows + columns - 1


@pytest.mark.extended
def test_a_video_of_one_frame_is_an_image_and_more_frames_see_each_other():
  variables = _variables(_tiny())
  expected, _ = jax.jit(_tiny().apply)(variables, IMAGES)
  logits, _ = jax.jit(_tiny().apply)(variables, IMAGES[:, None])
  np.testing.assert_allclose(logits[:, 0], expected, atol=1e-5)
  video = IMAGES[None]
  before, _ = jax.jit(_tiny().apply)(variables, video)
  after, _ = jax.jit(_tiny().apply)(variables, video.at[0, 1].multiply(-1))
  assert jnp.abs(before[0, 0] - after[0, 0]).max() > 1e-6


@pytest.mark.extended
@pytest.mark.parametrize('name', ['pspnet_resnet50', 'deeplabv3_resnet50'])
def test_the_sibling_networks_learn_with_statistics_of_the_batch(name):
  model = _tiny(name)
  (logits, _), variables = jax.jit(
    lambda x: model.init_with_output(
      {'params': jax.random.key(0), 'dropout': jax.random.key(1)}, x, train=True
    )
  )(IMAGES)
  assert logits.shape == (2, 5, 7, 5)
  assert jnp.isfinite(logits).all()
  assert 'pooling' in variables['params']['head']


def test_the_embedding_for_the_category_consistent_loss_is_optional():
  (_, features), variables = _shapes(_tiny(embedding=16), IMAGES.shape)
  assert features['embedding'].shape == (2, 5, 7, 16)
  _, plain = _shapes(_tiny(), IMAGES.shape)
  assert set(variables['params']['head']) - set(plain['params']['head']) == {'embedding'}


def test_wrong_fields_and_images_are_named():
  with pytest.raises(ValueError, match="context='rca' is not one of rcca, psp, aspp"):
    _tiny(context='rca')
  with pytest.raises(ValueError, match="needs context='rcca', not 'psp'"):
    _tiny(context='psp', embedding=16)
  with pytest.raises(ValueError, match='CCNet expects images'):
    _shapes(_tiny(), (1, 3, 33, 33))
