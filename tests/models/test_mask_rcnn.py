"""Mask R-CNN: sizes of the official configurations, training and detection of a tiny one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models, parallel
from crossattn_jax.geometry import assignment
from crossattn_jax.heads.detection import rpn, types
from crossattn_jax.tasks.detection import region_losses

# In millions, as the official configurations count.
PARAMETERS = {
  'crossformer_small': 50.161,
  'crossformer_base': 71.475,
  'crossformer_pp_small': 42.962,
  'crossformer_pp_base': 71.498,
  'biformer_small': 45.18,
  'biformer_base': 76.31,
}


@pytest.mark.extended
@pytest.mark.parametrize('name', PARAMETERS)
def test_parameters_are_those_of_the_official_configurations(name):
  fields = {'regions_per_side': (8,) * 4, 'padding': 'input'} if 'biformer' in name else {}
  module = models.create_model(f'{name}+mask_rcnn', **fields)
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  params = jax.eval_shape(module.init, jax.random.key(0), image)['params']
  count = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
  assert count == pytest.approx(PARAMETERS[name], abs=0.006)


def tiny(name='pyramid_tiny+mask_rcnn', **fields):
  """A model whose every part is small."""
  fields = {'depths': (1, 1, 1, 1), 'widths': (32,) * 4, 'mask_channels': 4, **fields}
  return models.create_model(
    name,
    num_classes=3,
    pyramid_channels=8,
    head_channels=16,
    mask_convs=1,
    candidates=30,
    training_candidates=40,
    max_proposals=20,
    sampled_regions=16,
    **fields,
  )


def batch_of(count, dtype=np.float32):
  """Images of 64 x 96 pixels, the second one padded, with up to three objects in four rows."""
  rng = np.random.default_rng(0)
  image = rng.standard_normal((count, 64, 96, 3)).astype(dtype)
  image_size = np.tile(np.array([64, 96], np.int32), (count, 1))
  image_size[1] = (48, 80)
  corner = rng.uniform(0, 20, (count, 4, 2))
  boxes = np.concatenate([corner, corner + rng.uniform(10, 28, corner.shape)], -1).astype(dtype)
  labels = rng.integers(0, 3, (count, 4)).astype(np.int32)
  labels[:, 3] = -1
  masks = rng.integers(0, 256, (count, 4, 64, 12)).astype(np.uint8)
  return image, image_size, types.Truths(boxes, labels, masks)


def losses_of(model, variables, image, image_size, truths):
  outputs, _ = model.apply(
    variables, image, image_size=image_size, truths=truths, key=jax.random.key(1)
  )
  grid = model.anchors().of_input(image.shape[1:3])
  found = region_losses.mask_rcnn_losses(outputs, truths, image_size, grid, jax.random.key(2))
  return sum(x for name, x in found.items() if name.endswith('_loss')), (found, outputs)


@pytest.fixture(scope='module')
def trained():
  """A model, its variables, and its compiled losses, outputs and gradients."""
  model = tiny()
  image, image_size, truths = batch_of(2)
  variables = jax.jit(model.init)(jax.random.key(0), image)

  @jax.jit
  def step(truths):
    def loss(params):
      return losses_of(model, {**variables, 'params': params}, image, image_size, truths)

    (_, (found, outputs)), gradient = jax.value_and_grad(loss, has_aux=True)(variables['params'])
    return found, outputs, gradient

  return step, truths


@pytest.mark.extended
def test_training_looks_at_a_sample_of_regions(trained):
  step, truths = trained
  found, outputs, gradient = step(truths)
  shapes = {
    'proposals': (2, 16, 4),
    'assigned': (2, 16),
    'class_logits': (2, 16, 4),
    'box_deltas': (2, 16, 3, 4),
    'mask_logits': (2, 4, 28, 28, 3),
  }
  assert {name: outputs[name].shape for name in shapes} == shapes
  # An object's own box is a region of it.
  assert np.all(outputs['assigned'][:, 0] >= 0)
  assert np.all(outputs['proposals'][1] <= np.array([80, 48, 80, 48]))
  assert {name for name, x in found.items() if not x > 0} <= {'region_accuracy'}
  norms = jax.tree.map(np.linalg.norm, gradient)
  del norms['backbone']
  assert all(x > 0 for x in jax.tree.leaves(norms)), norms


@pytest.mark.extended
def test_what_padding_holds_changes_nothing(trained):
  step, truths = trained
  other = truths.replace(
    boxes=np.where(truths.labels[..., None] < 0, 7, truths.boxes),
    masks=np.where(truths.labels[..., None, None] < 0, 255, truths.masks).astype(np.uint8),
  )
  jax.tree.map(np.testing.assert_array_equal, step(truths)[0], step(other)[0])


@pytest.mark.extended
def test_images_without_objects_are_background(trained):
  step, truths = trained
  found, outputs, gradient = step(truths.replace(labels=np.full_like(truths.labels, -1)))
  assert np.all(outputs['assigned'] == assignment.BACKGROUND)
  assert found['mask_loss'] == found['box_loss'] == found['proposal_loss'] == 0
  assert found['class_loss'] > 0
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))


@pytest.fixture(scope='module')
def shapes():
  """Of the variables of a tiny model."""
  return jax.eval_shape(tiny().init, jax.random.key(0), batch_of(2)[0])


def test_anchors_in_the_padding_make_no_proposals(monkeypatch):
  given = {}

  def propose(*args, is_candidate, **options):
    given['is_candidate'] = is_candidate
    return jnp.zeros((2, 20, 4)), jnp.zeros((2, 20))

  @jax.jit
  def candidates(image_size):
    model.init(jax.random.key(0), jnp.zeros((2, 64, 96, 3)), image_size=image_size)
    return given['is_candidate']

  monkeypatch.setattr(rpn, 'propose', propose)
  model, image_size = tiny(), np.array([[64, 96], [32, 64]])
  expected = model.anchors().of_input((64, 96)).valid(image_size)
  assert [bool(of_image.all()) for of_image in expected] == [True, False]
  np.testing.assert_array_equal(candidates(image_size), expected)


def test_masks_of_the_model_need_masks_of_the_data(shapes):
  model = tiny()
  image, image_size, truths = batch_of(2)
  with pytest.raises(ValueError, match=r'set config\.dataset\.masks=True'):
    jax.eval_shape(
      functools.partial(losses_of, model), shapes, image, image_size, truths.replace(masks=None)
    )
  with pytest.raises(ValueError, match='pass a key'):
    jax.eval_shape(functools.partial(model.apply, truths=truths), shapes, image)


def test_without_a_mask_head_it_is_faster_rcnn():
  model = tiny('pyramid_tiny+faster_rcnn', mask_channels=0)
  image, image_size, truths = batch_of(2)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  assert 'mask_head' not in variables['params']['region_head']
  assert not model.low_quality
  _, (found, _) = jax.eval_shape(
    functools.partial(losses_of, model), variables, image, image_size, truths.replace(masks=None)
  )
  assert 'mask_loss' not in found
  detect = functools.partial(model.apply, method='detect')
  assert jax.eval_shape(detect, variables, image).masks is None


@pytest.mark.extended
def test_what_is_found_in_an_image_does_not_depend_on_others():
  with jax.enable_x64(True):
    model = tiny(param_dtype='float64')
    image, image_size, _ = batch_of(2, np.float64)
    variables = jax.jit(model.init)(jax.random.key(0), image)
    # Else all classes are as likely.
    classifier = variables['params']['region_head']['box_head']['classifier']
    classifier['kernel'] = jax.random.normal(jax.random.key(1), classifier['kernel'].shape)
    detect = jax.jit(
      lambda image, size: model.apply(variables, image, size, method='detect', max_boxes=8)
    )
    found = detect(image, image_size)
    assert found.masks.shape == (2, 8, 28, 28)
    assert np.all(found.scores[:, :3] > 0.05)
    for i in range(2):
      alone = detect(image[i : i + 1], image_size[i : i + 1])
      for x, y in zip(jax.tree.leaves(alone), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(x[0], y[i], rtol=1e-9, atol=1e-9)


def test_in_bfloat16_what_the_heads_say_is_float32(shapes):
  model = tiny(dtype='bfloat16')
  image, image_size, truths = batch_of(2)
  loss, (_, outputs) = jax.eval_shape(
    functools.partial(losses_of, model), shapes, image, image_size, truths
  )
  floats = {str(x.dtype) for x in outputs.values()} - {'int32'}
  assert floats == {'float32'}
  assert loss.dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [(8, 1), (2, 4)], ids=str)
def test_eight_devices_draw_and_learn_what_one_does(sizes):
  with jax.enable_x64(True):
    model = tiny(param_dtype='float64')
    image, image_size, truths = batch_of(8, np.float64)
    variables = jax.jit(model.init)(jax.random.key(0), image)

    def step(params, batch):
      loss = lambda params: losses_of(model, {**variables, 'params': params}, *batch)
      (_, (found, outputs)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
      return found, outputs['assigned'], gradient

    batch = (image, image_size, truths)
    expected = jax.jit(step)(variables['params'], batch)
    mesh = parallel.create_mesh(*sizes)
    with jax.set_mesh(mesh):
      several = jax.jit(step)(variables['params'], parallel.global_batch(batch, mesh))
    np.testing.assert_array_equal(expected[1], several[1])
    for x, y in zip(jax.tree.leaves(several), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-10)
