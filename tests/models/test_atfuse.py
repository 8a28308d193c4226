import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models

SMALL = {'width': 8, 'num_heads': 2, 'image_size': (16, 16)}


def _count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _template(**fields):
  model = models.create_model('atfuse', **fields)
  image = jax.ShapeDtypeStruct((1, 16, 16, 1), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image, image)


def _images(shape, dtype=np.float32):
  rng = np.random.default_rng(0)
  return [rng.uniform(0, 255, (2, *shape, 1)).astype(dtype) for _ in range(2)]


@pytest.fixture(scope='module')
def variables():
  """Weights that reach every pixel: the initial ones are too small to show."""
  model = models.create_model('atfuse', **SMALL)
  shapes = jax.eval_shape(model.init, jax.random.key(0), *_images((16, 16)))
  rng = np.random.default_rng(1)

  def draw(path, leaf):
    if path[-1].key == 'var':
      return np.full(leaf.shape, 2000.0)
    return rng.standard_normal(leaf.shape) * (0.3 if leaf.ndim > 1 else 0.5)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def test_the_live_parameters_are_those_of_the_paper_s_code():
  assert _count(_template()['params']) == 262_939
  parts = _template()['params']
  assert _count(parts['stem_visible']) == 704
  assert _count(parts['patch_embedding_visible']) == 4_800
  assert {_count(parts[name]) for name in ('discrepancy', 'common_0', 'common_1')} == {41_600}
  assert _count(parts['decoder']) == 120_032
  assert [_count(parts[f'reconstruction_{i}']) for i in (0, 1)] == [6_944, 155]


def test_with_the_unused_ones_they_are_all_that_the_code_creates():
  variables = _template(unused_parameters=True)
  unused = {key: leaf for key, leaf in variables['unused'].items() if '.running_' not in key}
  assert _count(variables['params']) + _count(unused) == 1_050_555


def test_images_in_larger_arrays_are_fused_as_if_alone(variables):
  """Of an odd size and of another one in one batch; in float64."""
  with jax.enable_x64(True):
    model = models.create_model('atfuse', **SMALL)
    apply = jax.jit(lambda size, *images: model.apply(variables, *images, size=size)[0])
    sizes = ((13, 10), (16, 19))
    arrays = [np.full((2, 24, 28, 1), 200.0) for _ in range(2)]
    expected = []
    for row, (height, width) in enumerate(sizes):
      images = [image[row : row + 1] for image in _images((height, width), np.float64)]
      for array, image in zip(arrays, images, strict=True):
        array[row, :height, :width] = image[0]
      expected.append(model.apply(variables, *images)[0][0])
    fused = apply(np.array(sizes, np.int32), *arrays)
    for row, (height, width) in enumerate(sizes):
      assert np.ptp(expected[row]) > 1
      np.testing.assert_allclose(fused[row, :height, :width], expected[row], atol=1e-9)
      assert not np.any(fused[row, height:])
      assert not np.any(fused[row, :, width:])


def test_features_and_attention_maps_have_the_documented_shapes():
  model = models.create_model('atfuse', **SMALL)
  fused, features = jax.eval_shape(model.init_with_output, jax.random.key(0), *_images((13, 18)))[0]
  assert fused.shape == (2, 13, 18, 1)
  names = ('visible', 'infrared', 'discrepancy', 'common_0', 'common_1')
  assert {features[name].shape for name in names} == {(2, 8, 10, 8)}
  maps = model.attention_maps(features)
  assert len(maps) == 3
  assert {shown.shape for shown in maps.values()} == {(2, 8, 10)}
  softmax = models.create_model('atfuse', attention='softmax', **SMALL)
  _, features = jax.eval_shape(softmax.init_with_output, jax.random.key(0), *_images((8, 8)))[0]
  assert softmax.attention_maps(features) == {}


def test_bfloat16_computes_features_and_not_levels():
  model = models.create_model('atfuse', dtype='bfloat16', **SMALL)
  (fused, features), variables = jax.eval_shape(
    model.init_with_output, jax.random.key(0), *_images((16, 16))
  )
  assert features['common_1'].dtype == jnp.bfloat16
  assert fused.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def test_wrong_inputs_are_refused_by_name():
  model = models.create_model('atfuse', **SMALL)
  visible, infrared = _images((16, 16))

  def run(*args, **kwargs):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **kwargs))

  with pytest.raises(ValueError, match=r'visible images \[batch, height, width, 1\]'):
    run(np.repeat(visible, 3, axis=-1), infrared)
  with pytest.raises(ValueError, match=r'levels in 0\.\.255, not uint8'):
    run(visible, infrared.astype(np.uint8))
  with pytest.raises(ValueError, match='must show the same pixels'):
    run(visible, infrared[:, 1:])
  with pytest.raises(ValueError, match=r'multiples of 4, not \(15, 16\)'):
    run(visible[:, 1:], infrared[:, 1:], size=np.full((2, 2), 8, np.int32))
  with pytest.raises(ValueError, match='train without size'):
    run(visible, infrared, train=True, size=np.full((2, 2), 8, np.int32))
  with pytest.raises(ValueError, match='width=6 must be a multiple of 4'):
    models.create_model('atfuse', width=6, num_heads=2)
