import functools

import chex
import jax
import jax.numpy as jnp
import pytest

from crossattn_jax import models
from crossattn_jax.layers import conv_norm
from crossattn_jax.models.backbones import resnet


def _shapes(**fields):
  model = models.create_model('resnet50_deep_stem', num_classes=0, **fields)
  image = jax.ShapeDtypeStruct((2, 97, 129, 3), jnp.float32)
  (_, features), _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), image)
  return [features[f'stage_{s}'].shape[1:] for s in range(4)]


def test_the_classifiers_have_the_published_sizes():
  # ResNet-101 of the CSAIL repository: the dilated backbone's 42,623,936 and 1000 classes.
  model = models.create_model('resnet101_deep_stem')
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), image)['params']
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert count == 42_623_936 + 2048 * 1000 + 1000


def test_the_output_stride_bounds_the_maps():
  assert _shapes() == [(25, 33, 256), (13, 17, 512), (7, 9, 1024), (4, 5, 2048)]
  assert _shapes(output_stride=16)[2:] == [(7, 9, 1024), (7, 9, 2048)]
  assert _shapes(output_stride=8)[1:] == [(13, 17, 512), (13, 17, 1024), (13, 17, 2048)]
  assert _shapes(output_stride=4)[3] == (25, 33, 2048)


def test_only_a_stage_that_changes_the_shape_projects_its_input():
  x = jax.ShapeDtypeStruct((1, 8, 8, 16), jnp.float32)
  for width, stride in ((4, 1), (4, 2), (6, 1)):
    stage = resnet.Stage(2, width, stride, 1, (1,), conv_norm.ConvNorm)
    params = jax.eval_shape(stage.init, jax.random.key(0), x)['params']
    assert ('shortcut' in params['block_0']) == ((width, stride) != (4, 1))


def test_wrong_fields_and_images_are_named():
  with pytest.raises(ValueError, match='output_stride=2 is not one of'):
    models.create_model('resnet50_deep_stem', output_stride=2)
  with pytest.raises(ValueError, match=r'depths=\(1, 1\) needs one entry'):
    models.create_model('resnet50_deep_stem', depths=(1, 1))
  with pytest.raises(ValueError, match='transpose NCHW'):
    models.create_model('resnet50_deep_stem').init(jax.random.key(0), jnp.zeros((1, 3, 64, 64)))


@pytest.mark.extended
@pytest.mark.parametrize('remat', [False, True])
def test_a_loop_over_the_blocks_changes_no_result_statistic_or_gradient(remat):
  called = models.create_model(
    'resnet50_deep_stem',
    depths=(1, 1, 3, 3),
    widths=(4, 4, 4, 4),
    stem_widths=(4, 4, 4),
    num_classes=3,
    output_stride=8,
    # The dilations of the last stage differ: its blocks are called.
    multi_grid=(1, 2, 4),
  )
  scanned = called.clone(scan_blocks=True, remat=remat)
  image = jax.random.normal(jax.random.key(0), (2, 33, 33, 3))
  variables = jax.jit(scanned.init)(jax.random.key(1), image)

  def train(model, params):
    def loss(params):
      (logits, _), updated = model.apply(
        variables | {'params': params}, image, train=True, mutable=['batch_stats']
      )
      return jnp.sum(logits**2), (logits, updated)

    return jax.grad(loss, has_aux=True)(params)

  programs = [functools.partial(train, model) for model in (called, scanned)]
  chex.assert_trees_all_close(
    *(jax.jit(program)(variables['params']) for program in programs), rtol=1e-4, atol=1e-5
  )
  loops = [str(jax.make_jaxpr(p)(variables['params'])).count('scan[') for p in programs]
  # One forward, one backward, of the third stage alone.
  assert loops == [0, 2]
  chex.assert_trees_all_close(
    *(jax.jit(model.apply)(variables, image) for model in (called, scanned)), rtol=1e-4, atol=1e-5
  )
