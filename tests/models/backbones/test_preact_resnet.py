import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.models.backbones import preact_resnet

TINY = {'widths': (2, 3, 4, 5), 'depths': (1, 1, 2, 1), 'stem_width': 4, 'num_classes': 3}


def _image(*shape, seed=0):
  return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), jnp.float32)


@pytest.mark.extended
@pytest.mark.parametrize(('depth', 'count'), [(50, 23_500_352), (101, 42_492_480)])
def test_without_classes_it_is_mit_s_encoder_of_images(depth, count):
  model = models.create_model(f'resnetv2_{depth}', num_classes=0)
  image = jax.ShapeDtypeStruct((2, 240, 320, 3), jnp.float32)
  (vector, features), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(variables['params'])) == count
  assert vector.shape == (2, 2048)
  assert [features[f'stage_{s}'].shape[1:] for s in range(4)] == [
    (60, 80, 256),
    (30, 40, 512),
    (15, 20, 1024),
    (8, 10, 2048),
  ]


def test_a_block_is_at_first_its_shortcut_of_what_is_rectified():
  """By hand: W relu(x / sqrt(1 + 1e-5)) of every second pixel; without W the input itself."""
  x = _image(1, 5, 6, 4)
  block = preact_resnet.Bottleneck(2, 2, project=True)
  out, variables = jax.jit(block.init_with_output)(jax.random.key(0), x)
  kernel = np.asarray(variables['params']['shortcut']['kernel'])[0, 0]
  rectified = np.maximum(np.asarray(x, np.float64) / math.sqrt(1 + 1e-5), 0)
  np.testing.assert_allclose(out, rectified[:, ::2, ::2] @ kernel, rtol=1e-5, atol=1e-6)
  plain = preact_resnet.Bottleneck(1, 1, project=False)
  np.testing.assert_array_equal(jax.jit(plain.init_with_output)(jax.random.key(0), x)[0], x)


def test_it_answers_and_updates_its_statistics():
  model = models.create_model('resnetv2_50', **TINY)
  image = _image(2, 33, 40, 3)
  variables = jax.jit(model.init)(jax.random.key(0), image)
  (logits, features), updated = jax.jit(
    lambda v: model.apply(v, image, train=True, mutable=['batch_stats'])
  )(variables)
  assert logits.shape == (2, 3)
  moved = jax.tree.map(
    lambda new, old: bool(np.any(new != old)), updated['batch_stats'], variables['batch_stats']
  )
  assert moved['norm'] == {'mean': True, 'var': True}
  # The last map is what the mean is taken of.
  assert features['stage_3'].min() == 0
  head = variables['params']['head']
  expected = np.asarray(features['stage_3']).mean(axis=(1, 2)) @ head['kernel'] + head['bias']
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.extended
def test_a_loop_that_recomputes_changes_no_result_statistic_or_gradient():
  called = models.create_model('resnetv2_50', **{**TINY, 'depths': (1, 1, 3, 1)})
  scanned = called.clone(scan_blocks=True, remat=True)
  image = _image(2, 33, 33, 3)
  variables = jax.jit(scanned.init)(jax.random.key(1), image)
  # Else the blocks compute nothing.
  params = jax.tree.map(lambda x: x + 0.1 * _image(*x.shape, seed=x.size), variables['params'])

  def train(model, params):
    def loss(params):
      (logits, _), updated = model.apply(
        variables | {'params': params}, image, train=True, mutable=['batch_stats']
      )
      return jnp.sum(logits**2), (logits, updated)

    return jax.grad(loss, has_aux=True)(params)

  programs = [functools.partial(train, model) for model in (called, scanned)]
  chex.assert_trees_all_close(
    *(jax.jit(program)(params) for program in programs), rtol=1e-3, atol=1e-4
  )
  loops = [str(jax.make_jaxpr(p)(params)).count('scan[') for p in programs]
  assert loops == [0, 2]  # One forward, one backward, of the third stage alone.


def test_it_is_a_backbone():
  assert 'resnetv2_50+upernet' in models.list_models('resnetv2*+*')
  model = models.create_model('resnetv2_50+upernet', **{**TINY, 'num_classes': 7})
  assert model.backbone == models.create_model('resnetv2_50', **{**TINY, 'num_classes': 0})


def test_wrong_fields_and_images_are_named():
  with pytest.raises(ValueError, match=r'depths=\(1, 1\) needs one entry'):
    models.create_model('resnetv2_50', depths=(1, 1))
  with pytest.raises(ValueError, match='transpose NCHW'):
    models.create_model('resnetv2_50').init(jax.random.key(0), jnp.zeros((1, 3, 64, 64)))
