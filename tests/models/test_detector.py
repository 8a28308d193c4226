"""Detectors on pyramid backbones."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models, parallel
from crossattn_jax.heads.detection import types
from crossattn_jax.layers import conv_norm
from crossattn_jax.models import detector
from crossattn_jax.tasks.detection import losses

# As the specification of each measured them, or as the official configurations count, in millions.
PARAMETERS = {
  'crossformer_small': 40.824958,
  'crossformer_base': 62.139118,
  'crossformer_pp_small': 33.044904,
  'crossformer_pp_base': 62.162158,
  'biformer_small': 35.257716,
}
QUICK = ['crossformer_small']


@pytest.mark.parametrize(
  'name',
  [pytest.param(x, marks=[] if x in QUICK else [pytest.mark.extended]) for x in PARAMETERS],
)
def test_retinanet_has_the_parameters_of_the_official_configurations(name):
  fields = {'regions_per_side': (16,) * 4, 'padding': 'input'} if 'biformer' in name else {}
  module = models.create_model(f'{name}+retinanet', **fields)
  image = jax.ShapeDtypeStruct((1, 256, 320, 3), jnp.float32)
  params = jax.eval_shape(module.init, jax.random.key(0), image)['params']
  count = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
  assert count == pytest.approx(PARAMETERS[name], abs=5e-7)


class Maps(nn.Module):
  """Four convolutions with batch norms."""

  @nn.compact
  def __call__(self, x, train=False):
    features = {}
    for s in range(4):
      x = conv_norm.ConvNorm(4, 3, stride=2 if s else 4)(x, train)
      features[f'stage_{s}'] = x
    return x, features


@pytest.mark.parametrize('frozen', [pytest.param(False, marks=pytest.mark.extended), True])
def test_frozen_norms_use_their_running_statistics_in_training_and_their_scales_train(frozen):
  model = detector.RetinaNet(
    Maps(), num_classes=2, pyramid_channels=4, frozen_norm=frozen, head_channels=4, head_convs=1
  )
  image = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
  variables = jax.jit(model.init)(jax.random.key(1), image)

  @jax.jit
  def train(params):
    run = {**variables, 'params': params}
    (outputs, _), updated = model.apply(run, image, True, mutable=['batch_stats'])
    return outputs['logits'].sum(), (outputs['logits'], updated)

  grads, (logits, updated) = jax.grad(train, has_aux=True)(variables['params'])
  expected, _ = jax.jit(model.apply)(variables, image)
  statistics = jax.tree.leaves(updated), jax.tree.leaves(variables['batch_stats'])
  assert all(np.array_equal(*pair) == frozen for pair in zip(*statistics, strict=True))
  assert (np.abs(logits - expected['logits']).max() < 1e-6) == frozen
  assert np.abs(grads['backbone']['ConvNorm_3']['norm']['scale']).max() > 0


def small(**fields):
  return detector.RetinaNet(
    Maps(), num_classes=3, pyramid_channels=8, head_channels=8, head_convs=1, **fields
  )


def test_outputs_are_those_of_the_anchors_and_features_are_named_by_stride():
  image = jax.ShapeDtypeStruct((2, 96, 160, 3), jnp.bfloat16)
  model = small(dtype=jnp.bfloat16)
  outputs, features = jax.eval_shape(
    lambda image: model.init_with_output(jax.random.key(0), image)[0], image
  )
  count = sum(model.anchors().of_input((96, 160)).counts)
  assert count == 9 * (12 * 20 + 6 * 10 + 3 * 5 + 2 * 3 + 1 * 2)
  shapes = {name: (x.shape, x.dtype) for name, x in outputs.items()}
  assert shapes == {
    'logits': ((2, count, 3), jnp.float32),
    'deltas': ((2, count, 4), jnp.float32),
  }
  assert {f'pyramid_{level}' for level in range(3, 8)} <= set(features)
  assert features['pyramid_7'].shape == (2, 1, 2, 8)
  assert features['pyramid_3'].dtype == jnp.bfloat16


def test_an_input_whose_maps_are_not_those_of_the_anchors_is_refused():
  class Floor(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
      x, features = Maps()(x, train)
      return x, {**features, 'stage_3': features['stage_3'][:, :-1]}

  model = detector.RetinaNet(Floor(), pyramid_channels=4, head_channels=4)
  with pytest.raises(ValueError, match=r'images of 70 x 64 pixels .* multiples of 32'):
    jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 70, 64, 3), 'float32'))


@pytest.mark.extended
def test_detections_lie_in_the_image_and_not_in_its_padding():
  model, image = small(), jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
  variables = jax.jit(model.init)(jax.random.key(1), image)

  @jax.jit
  def detect(variables, image, image_size):
    options = {'score_threshold': 0.005, 'max_boxes': 7}
    return model.apply(variables, image, image_size, method='detect', **options)

  found = detect(variables, image, jnp.array([[64, 64], [40, 20]]))
  assert found.boxes.shape == (2, 7, 4)
  assert found.labels.shape == found.scores.shape == (2, 7)
  assert found.masks is None
  assert (found.labels >= 0).all()
  assert (found.boxes >= 0).all()
  assert (found.boxes[1] <= jnp.array([20, 40, 20, 40])).all()
  assert found.boxes[0].max() > 40


@pytest.mark.slow
def test_loss_and_gradients_on_eight_devices_equal_those_of_one():
  rng = np.random.RandomState(0)
  image = rng.standard_normal((8, 64, 64, 3)).astype(np.float32)
  low = rng.uniform(0, 30, (8, 5, 2))
  boxes = np.concatenate([low, low + rng.uniform(8, 30, (8, 5, 2))], axis=-1).astype(np.float32)
  truths = types.Truths(jnp.asarray(boxes), jnp.asarray(rng.randint(-1, 3, (8, 5))))
  sizes = jnp.asarray(rng.randint(33, 64, (8, 2)))
  model = small()
  variables = jax.jit(model.init)(jax.random.key(1), image)

  def loss(params, image, truths, sizes):
    run = {**variables, 'params': params}
    (outputs, _), _ = model.apply(run, image, True, image_size=sizes, mutable=['batch_stats'])
    grid = model.anchors().of_input(image.shape[1:3])
    return sum(losses.retinanet_losses(outputs, truths, sizes, grid).values())

  results = []
  for devices in (1, 8):
    mesh = parallel.create_mesh(devices=jax.devices()[:devices])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(('data', 'fsdp')))
    with jax.set_mesh(mesh):
      batch = jax.device_put((image, truths, sizes), split)
      results.append(jax.jit(jax.value_and_grad(loss))(variables['params'], *batch))
  for one, many in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(one, many, rtol=2e-4, atol=1e-6)
