"""What the recorded cases (tests/parity) do not show: options, small maps, errors."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models, parallel
from crossattn_jax.layers import resize
from crossattn_jax.models.icafusion import fusion


def _maps(*shape):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2)]


def _fusion(**fields):
  return fusion.TransformerFusion(**{'grid': (4, 5), 'num_heads': 2, 'mlp_ratio': 1} | fields)


def test_parameters_of_a_level_of_the_large_model_are_as_published():
  maps = [jax.ShapeDtypeStruct((1, 20, 24, 256), jnp.float32)] * 2
  init = fusion.TransformerFusion(grid=(20, 20)).init
  params = jax.eval_shape(init, jax.random.key(0), *maps)['params']
  unused = 8 * 256**2 + 11 * 256
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2_442_508 - unused
  whole = fusion.TransformerFusion(grid=(20, 20), unused_parameters=True).init
  kept = jax.eval_shape(whole, jax.random.key(0), *maps)['unused']
  assert sum(leaf.size for leaf in jax.tree.leaves(kept)) == unused


def test_a_pixel_of_the_grid_is_the_mean_of_average_and_maximum_at_first():
  x = _maps(1, 8, 10, 3)[0]
  for mix in fusion.POOL_MIXES:
    out, _ = fusion.SpatialShrinking((4, 5), mix).init_with_output(jax.random.key(0), x)
    window = np.asarray(x)[0, 2:4, 4:6]
    expected = (window.mean((0, 1)) + window.max((0, 1))) / 2
    np.testing.assert_allclose(out[0, 1, 2], expected, rtol=1e-5)


def test_a_convex_mix_stays_between_average_and_maximum():
  x = _maps(1, 8, 10, 3)[0]
  shrink = fusion.SpatialShrinking((4, 5), 'convex')
  low, middle, high = (
    shrink.apply({'params': {'logit': jnp.array(logit)}}, x) for logit in (50.0, 0.4, -50.0)
  )
  assert ((low <= middle) & (middle <= high)).all()


@pytest.mark.extended
@pytest.mark.parametrize('size', [(3, 4), (3, 9), (4, 5)], ids=str)
def test_maps_no_larger_than_the_grid_have_fewer_tokens(size):
  maps = _maps(1, *size, 8)
  module = _fusion()
  fused, variables = module.init_with_output(jax.random.key(0), *maps)
  assert fused.shape == (1, *size, 8)
  params = variables['params']
  assert params['positions_rgb'].shape == (20, 8)
  params = params | {'positions_rgb': jnp.arange(160.0).reshape(20, 8)}
  assert not np.allclose(fused, module.apply({**variables, 'params': params}, *maps))


@pytest.mark.extended
def test_tokens_grow_by_the_method_of_the_mode():
  rgb, thermal = _maps(1, 8, 10, 4)
  tokens = jnp.arange(20.0).reshape(1, 4, 5, 1)
  np.testing.assert_array_equal(
    fusion._grow(tokens, (8, 10), 'nearest'), tokens.repeat(2, 1).repeat(2, 2)
  )
  np.testing.assert_array_equal(
    fusion._grow(tokens, (8, 10), 'bilinear'), resize.resize(tokens, (8, 10), 'bilinear')
  )
  official = _fusion(drop_rate=0.0, attention_drop_rate=0.0)
  variables = official.init(jax.random.key(0), rgb, thermal)

  def train(module):
    return module.apply(variables, rgb, thermal, train=True, mutable='batch_stats')[0]

  same = official.clone(train_upsampling='bilinear')
  assert not np.allclose(train(official), train(same))
  np.testing.assert_array_equal(
    official.apply(variables, rgb, thermal), same.apply(variables, rgb, thermal)
  )


class TwoStreams(nn.Module):
  """Two backbones of any kind, fused at strides 8, 16 and 32."""

  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, rgb, thermal, train=False):
    fields = {'widths': (8, 16, 16, 16), 'depths': (1, 1, 1, 1), 'head_dim': 8, 'dtype': self.dtype}
    streams = [
      models.create_model('pyramid_tiny', num_classes=0, **fields).copy(name=name)(image, train)[1]
      for name, image in (('rgb', rgb), ('thermal', thermal))
    ]
    return [
      _fusion(loops=2, dtype=self.dtype, name=f'fusion_{s}')(
        *(stream[f'stage_{s}'] for stream in streams), train
      )
      for s in (1, 2, 3)
    ]


@pytest.mark.slow
@jax.enable_x64(True)
def test_any_two_pyramids_are_fused_on_eight_devices_as_on_one():
  def double(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64), tree)

  maps = double(_maps(8, 64, 96, 3))
  model = TwoStreams()
  variables = double(jax.jit(model.init)(jax.random.key(0), *maps))

  def loss(params, maps):
    fused = model.apply({**variables, 'params': params}, *maps)
    return sum(jnp.square(x).mean() for x in fused)

  alone = jax.jit(jax.value_and_grad(loss))(variables['params'], maps)
  mesh = parallel.create_mesh(data=4, tensor=2)
  with jax.set_mesh(mesh):
    split = jax.device_put(maps, parallel.batch_sharding(mesh))
    together = jax.jit(jax.value_and_grad(loss))(variables['params'], split)
  assert alone[0].dtype == jnp.float64
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-14), alone, together
  )
  low = TwoStreams(dtype=jnp.bfloat16).apply(variables, *maps)
  assert [x.dtype for x in low] == [jnp.bfloat16] * 3
  assert [x.shape for x in low] == [(8, 8, 12, 16), (8, 4, 6, 16), (8, 2, 3, 16)]
  for x, expected in zip(low, model.apply(variables, *maps), strict=True):
    np.testing.assert_allclose(x.astype(jnp.float32), expected, atol=0.1)


def test_the_sum_is_the_mean_and_the_authors_on_request():
  rgb, thermal = _maps(1, 2, 3, 16)
  mean = fusion.SumFusion().apply({}, rgb, thermal)
  np.testing.assert_allclose(mean, (rgb + thermal) / 2, rtol=1e-6)
  official = fusion.SumFusion('channels').apply({}, rgb, thermal)
  np.testing.assert_allclose(official, 16 * rgb - 15 * thermal, rtol=1e-6)


def test_unknown_choices_are_refused():
  maps = _maps(1, 4, 5, 8)
  with pytest.raises(ValueError, match="upsampling='cubic' is not one of nearest, bilinear"):
    _fusion(upsampling='cubic').init(jax.random.key(0), *maps)
  with pytest.raises(ValueError, match="mix='mean' is not one of free, convex"):
    _fusion(pool_mix='mean').init(jax.random.key(0), *maps)
