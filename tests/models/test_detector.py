"""Detectors on pyramid backbones."""

from flax import linen as nn
import jax
import numpy as np
import pytest

from crossattn_jax.layers import conv_norm
from crossattn_jax.models import detector


class Maps(nn.Module):
  """Four convolutions with batch norms."""

  @nn.compact
  def __call__(self, x, train=False):
    features = {}
    for s in range(4):
      x = conv_norm.ConvNorm(4, 3, stride=2 if s else 4)(x, train)
      features[f'stage_{s}'] = x
    return x, features


@pytest.mark.parametrize('frozen', [False, True])
def test_frozen_norms_use_their_running_statistics_in_training_and_their_scales_train(frozen):
  model = detector.RetinaNet(
    Maps(), num_classes=2, pyramid_channels=4, frozen_norm=frozen, head_channels=4, head_convs=1
  )
  image = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
  variables = model.init(jax.random.key(1), image)

  @jax.jit
  def train(params):
    run = {**variables, 'params': params}
    (outputs, _), updated = model.apply(run, image, True, mutable=['batch_stats'])
    return outputs['logits'].sum(), (outputs['logits'], updated)

  grads, (logits, updated) = jax.grad(train, has_aux=True)(variables['params'])
  expected, _ = model.apply(variables, image)
  statistics = jax.tree.leaves(updated), jax.tree.leaves(variables['batch_stats'])
  assert all(np.array_equal(*pair) == frozen for pair in zip(*statistics, strict=True))
  assert (np.abs(logits - expected['logits']).max() < 1e-6) == frozen
  assert np.abs(grads['backbone']['ConvNorm_3']['norm']['scale']).max() > 0
