"""The whole sketch localizer, small; its numbers are the recorded cases'."""

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models, parallel

# Two stages, of maps of 8 x 8 and 4 x 4 cells, and two levels, of which sketches refine the second.
TINY = {
  'width': 32,
  'depths': (1, 1),
  'num_heads': (1, 2),
  'det_stages': (1,),
  'window': 2,
  'mlp_ratio': 1,
  'num_queries': 5,
  'channels': 32,
  'num_layers': 1,
  'decoder_heads': 2,
  'num_points': 2,
  'decoder_hidden': 8,
  'fusion_heads': 2,
  'fusion_hidden': 8,
  'first_level': 1,
  'sketch_depths': (1,),
  'sketch_widths': (8,),
}


STILL = {'drop_rate': 0.0, 'fusion_drop_rate': 0.0, 'drop_path_rate': 0.0}


def create(**fields):
  return models.create_model('sketch_localizer_tiny', **{**TINY, **fields})


def inputs(batch=2, sketches=2, dtype=np.float32):
  """Images, the last of which are padded, and sketches."""
  rng = np.random.default_rng(0)
  sizes = np.full((batch, 2), 32)
  sizes[batch // 2 :] = 22, 27
  image, drawn = (
    rng.standard_normal(s) for s in ((batch, 32, 32, 3), (batch, sketches, 16, 16, 3))
  )
  return image.astype(dtype), drawn.astype(dtype), sizes


def template(model, *arrays):
  return jax.eval_shape(model.init, jax.random.key(0), *arrays[:2])


def variables_of(model, dtype=np.float32):
  """Drawn here: as random numbers of jax they take longer to compile than the model."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: (rng.uniform(-0.2, 0.2, x.shape) + (x.ndim == 1)).astype(dtype),
    template(model, *inputs()),
  )


def run(model, variables, image, sketches, sizes, **kwargs):
  return model.apply(variables, image, sketches, image_size=sizes, **kwargs)


def gradient(model, variables, *arrays, **kwargs):
  """Of the sum of what a training step sees, by parameter, and the new statistics."""
  rng = np.random.default_rng(2)

  def loss(params, *arrays):
    (outputs, _), updated = run(
      model, {**variables, 'params': params}, *arrays, train=True, mutable=['batch_stats'], **kwargs
    )
    weights = {name: rng.standard_normal(x.shape) for name, x in outputs.items()}
    return sum(jnp.sum(x * weights[name]) for name, x in outputs.items()), updated

  return jax.jit(jax.grad(loss, has_aux=True))(variables['params'], *arrays)


def test_all_levels_are_said_in_shapes_that_start_with_the_batch():
  model = create(iou_head=True, cross_scale_fusion=True, sketch_fusion='trainable')
  (outputs, features), _ = jax.eval_shape(
    lambda *x: model.init_with_output(jax.random.key(0), *x), *inputs(3)[:2]
  )
  assert {name: x.shape for name, x in outputs.items()} == {
    'logits': (3, 2, 5, 2), 'boxes': (3, 2, 5, 4), 'ious': (3, 2, 5),
  }  # fmt: skip
  assert {name: x.shape for name, x in features.items()} == {
    'stage_0': (3, 8, 8, 32),
    'stage_1': (3, 4, 4, 64),
    'merged': (3, 2, 2, 32),
    'map_0': (3, 4, 4, 32),
    'map_1': (3, 2, 2, 32),
    'attention_0': (3, 64, 16),
    'attention_1': (3, 16, 16),
    'queries': (3, 2, 5, 32),
  }


def test_objects_are_of_class_1_at_the_last_level():
  logits = np.full((1, 2, 3, 2), -9.0)
  logits[0, 1, :, 1] = 2, -1, 0
  logits[0, 1, 2, 0] = 1  # Says nothing,
  logits[0, 0] = 5  # nor does the first level.
  boxes = np.tile([0.5, 0.5, 0.5, 1.0], (1, 2, 3, 1))
  outputs = {'logits': jnp.asarray(logits), 'boxes': jnp.asarray(boxes)}
  size, scores = jnp.array([[20, 40]]), jax.nn.sigmoid(jnp.array([2.0, 0, -1]))

  found = create().decode(outputs, size, score_threshold=0.4)
  np.testing.assert_array_equal(found.labels, [[0, 0, -1]])
  np.testing.assert_allclose(found.scores, [[scores[0], scores[1], 0]])
  np.testing.assert_allclose(found.boxes[0, 0], [10, 0, 30, 20])
  # The second best pair of the authors' three is of class 0: an object less.
  found = create().decode(outputs, size, max_boxes=3, official=True)
  np.testing.assert_array_equal(found.labels, [[0, -1, 0]])
  np.testing.assert_allclose(found.scores, [[scores[0], 0, scores[1]]])


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'sketch_fusion': 'max'}, "sketch_fusion='max' is not one of mean, trainable"),
    ({'num_heads': (1,)}, r'num_heads=\(1,\) needs one entry for each of 2 stages'),
    ({'sketch_widths': (8, 8)}, r'sketch_widths=\(8, 8\) needs one entry for each of 1 stages'),
    ({'width': 48}, 'width=48 is no multiple of 32'),
    ({'channels': 40}, 'channels=40 is no multiple of 32'),
    ({'num_classes': 1}, 'num_classes=1: class 1 is what the sketch shows'),
    ({'det_stages': (2,)}, r'det_stages=\(2,\): the stages are 0 to 1'),
    ({'fusion_heads': 3}, 'num_heads=3 does not divide the width 32'),
  ],
)
def test_wrong_options_are_refused_by_name(fields, message):
  with pytest.raises(ValueError, match=message):
    template(create(**fields), *inputs())


def test_wrong_inputs_are_refused_by_name():
  image, sketches, _ = inputs()
  for wrong, message in (
    (
      (image, sketches[:, 0]),
      r'sketches \[batch, sketches, height, width, 3\], not .* sketch\[:, N',
    ),
    ((image, sketches[:1]), r'sketches \(1, 2, 16, 16, 3\) of photos \(2, 32, 32, 3\)'),
    ((image, sketches[:, :, :15]), 'sketches of 15 x 16 pixels: take .* multiples of 4'),
    ((image, sketches.astype(np.uint8)), 'normalised floating-point images, not uint8'),
    ((image[..., :1], sketches), r'images \[batch, height, width, 3\]'),
  ):
    with pytest.raises(ValueError, match=message):
      template(create(), *wrong)


@pytest.mark.extended
def test_a_program_for_any_batch_is_exported():
  (batch,) = export.symbolic_shape('batch')
  arrays = [
    jax.ShapeDtypeStruct((batch, *x.shape[1:]), jnp.asarray(x).dtype) for x in inputs(sketches=3)
  ]
  model = create(sketch_fusion='trainable')
  find = jax.jit(lambda variables, *x: model.apply(variables, *x, method='detect'))
  program = export.export(find)(template(model, *inputs()), *arrays)
  assert [x.shape for x in program.out_avals] == [(batch, 5, 4), (batch, 5), (batch, 5)]


@pytest.mark.extended
def test_bfloat16_computes_what_float32_does_but_for_rounding():
  model = create(iou_head=True)
  variables, arrays = variables_of(model), inputs()
  exact, _ = jax.jit(lambda *x: run(model, variables, *x))(*arrays)
  half = create(iou_head=True, dtype='bfloat16')
  rounded, features = jax.jit(lambda *x: run(half, variables, *x))(*arrays)
  for name, x in rounded.items():
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, exact[name], atol=0.1)
  assert {features[name].dtype for name in ('stage_0', 'stage_1', 'merged', 'queries')} == {
    jnp.dtype(jnp.bfloat16)
  }


@pytest.mark.slow
def test_eight_devices_differentiate_as_one():
  with jax.enable_x64(True):
    model = create(**STILL)
    variables, arrays = variables_of(model, np.float64), inputs(8, 1, np.float64)
    expected = gradient(model, variables, *arrays)
    mesh = parallel.create_mesh(data=2, fsdp=2, tensor=2)
    split = jax.NamedSharding(mesh, jax.P(('data', 'fsdp')))
    shardings = parallel.tree_shardings(variables, mesh, fsdp_min_size=64)
    with jax.set_mesh(mesh):
      actual = gradient(model, jax.device_put(variables, shardings), *jax.device_put(arrays, split))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), actual, expected
  )
