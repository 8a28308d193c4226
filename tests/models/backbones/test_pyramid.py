"""The plain pyramid with swappable attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.attention import map_attention


def _tiny(**fields):
  return models.create_model(
    'pyramid_tiny',
    widths=(16, 32, 32, 32),
    depths=(1, 2, 1, 1),
    head_dim=16,
    num_classes=5,
    **fields,
  )


@pytest.mark.parametrize('attention', map_attention.list_attentions())
def test_every_attention_makes_a_classifier_with_pyramid_features(attention):
  model = _tiny(attention=attention)
  image = jnp.zeros((2, 96, 64, 3))
  (logits, features), _ = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), image))
  assert logits.shape == (2, 5)
  shapes = [features[f'stage_{s}'].shape for s in range(4)]
  assert shapes == [(2, 24, 16, 16), (2, 12, 8, 32), (2, 6, 4, 32), (2, 3, 2, 32)]


def test_models_differ_in_their_attention_only():
  def paths(attention):
    model = _tiny(attention=attention)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    names = {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
    return {name: shape for name, shape in names.items() if attention not in name}

  one = paths('global')
  assert one
  assert all(paths(attention) == one for attention in map_attention.list_attentions())


@pytest.mark.extended
def test_bfloat16_and_rematerialisation_give_finite_gradients():
  model = models.create_model(
    'pyramid_tiny',
    attention='long_short_distance',
    widths=(16, 32),
    depths=(1, 2),
    head_dim=16,
    num_classes=5,
    dtype='bfloat16',
    remat=True,
    drop_path_rate=0.2,
  )
  image = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
  variables = jax.jit(model.init)(jax.random.key(1), image)

  def loss(params):
    (logits, features), _ = model.apply(
      {**variables, 'params': params},
      image,
      train=True,
      rngs={'drop_path': jax.random.key(2)},
      mutable=['batch_stats'],
    )
    assert features['stage_0'].dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    return jnp.square(logits).sum()

  for grad in jax.tree.leaves(jax.jit(jax.grad(loss))(variables['params'])):
    assert np.isfinite(grad).all()


def test_wrong_fields_are_refused_by_name():
  with pytest.raises(ValueError, match="unknown attention 'globe'; did you mean 'global'"):
    _tiny(attention='globe')
  with pytest.raises(ValueError, match='head_dim=24 does not divide the width 64'):
    models.create_model('pyramid_small', head_dim=24)
  with pytest.raises(ValueError, match=r'widths=\(64, 128\) and depths='):
    models.create_model('pyramid_small', widths=(64, 128))
