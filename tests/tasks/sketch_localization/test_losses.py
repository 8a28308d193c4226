"""Losses of all levels equal the recorded ones, matched in one loop, whatever the padding."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import parallel
from crossattn_jax.heads.detection import types
from crossattn_jax.parity import cases
from crossattn_jax.tasks.sketch_localization import losses

REFERENCE = pathlib.Path(__file__).parents[2] / 'reference/sketch_localizer'
WEIGHTS = {'class_loss': 2.0, 'box_loss': 5.0, 'giou_loss': 2.0}


def corners(center_size, size=(1, 1)):
  center, sides = np.split(np.asarray(center_size), 2, axis=-1)
  both = np.concatenate([center - sides / 2, center + sides / 2], axis=-1)
  return both * np.tile(size[::-1], 2)


@pytest.fixture(scope='module')
def recorded():
  """Outputs of a batch of three with three levels, its truths, and what the original says of it."""
  case = cases.read_case(REFERENCE / 'set_criterion.json')
  arrays = {name: np.asarray(x, np.float64) for name, x in case.inputs.items()}
  sigmoid = {name: 1 / (1 + np.exp(-arrays[name])) for name in ('boxes_raw', 'tgt_raw')}
  outputs = {
    'logits': arrays['logits'].swapaxes(0, 1),
    'boxes': sigmoid['boxes_raw'].swapaxes(0, 1),
  }
  counts = case.stored_inputs['tgt_count']
  # With more padding than was recorded.
  labels = np.where(np.arange(5) < counts[:, None], 0, -1).astype(np.int32)
  boxes = np.pad(corners(sigmoid['tgt_raw'], (60, 80)), [(0, 0), (0, 2), (0, 0)])
  expected = {name: np.squeeze(x.values) for name, x in case.recorded.items()}
  return outputs, types.Truths(boxes, labels), expected


@jax.jit
def found(outputs, truths):
  """The losses of images of 60 x 80 pixels, and the query of each object."""
  size = jnp.broadcast_to(jnp.array([60, 80]), (len(truths.labels), 2))
  of_batch = losses.localizer_losses(outputs, truths, size, WEIGHTS)
  return of_batch, losses.match(outputs, *losses.targets(truths, size))


def test_losses_are_the_recorded_ones_times_their_weights(recorded):
  outputs, truths, expected = recorded
  with jax.enable_x64(True):
    reported, queries = found(outputs, truths)
  parts = {name: value for name, value in reported.items() if name.endswith('_loss')}
  total = sum(map(float, parts.values()))
  assert total == pytest.approx(float(expected['out/total']), rel=1e-10)
  for name, original in (('class_loss', 'ce'), ('box_loss', 'bbox'), ('giou_loss', 'giou')):
    recorded_loss = WEIGHTS[name] * expected[f'out/loss_{original}']
    np.testing.assert_allclose(parts[name], recorded_loss, rtol=1e-10)
  for name in losses.ERRORS:
    np.testing.assert_allclose(reported[name], expected[f'out/{name}'], rtol=1e-6)
  order = expected['out/query_of_target'].swapaxes(0, 1)
  np.testing.assert_array_equal(queries[..., :3], order)


def test_no_loss_depends_on_padding_or_on_the_order_of_objects(recorded):
  outputs, truths, _ = recorded
  boxes = np.where(truths.labels[..., None] < 0, 7.0, truths.boxes)
  other = types.Truths(boxes[:, ::-1], truths.labels[:, ::-1])
  with jax.enable_x64(True):
    (one, queries), (reverse, of_reverse) = (found(outputs, x) for x in (truths, other))
  for name, value in one.items():
    np.testing.assert_allclose(reverse[name], value, rtol=1e-10)
  np.testing.assert_array_equal(of_reverse[..., ::-1], queries)


@pytest.mark.extended
def test_eight_devices_match_and_learn_what_one_does():
  rng = np.random.default_rng(0)
  outputs = {
    'logits': rng.normal(size=(8, 3, 12, 2)),
    'boxes': rng.uniform(0.2, 0.6, (8, 3, 12, 4)),
    'ious': rng.normal(size=(8, 3, 12)),
  }
  low = rng.uniform(0, 30, (8, 5, 2))
  # Images have none to five objects.
  labels = np.where(np.arange(5) < rng.integers(0, 6, (8, 1)), 0, -1)
  truths = types.Truths(np.concatenate([low, low + rng.uniform(5, 30, low.shape)], -1), labels)
  sizes = rng.integers(60, 80, (8, 2))
  weights = WEIGHTS | {'iou_loss': 2.0, 'margin_loss': 1.0, 'pair_margin_loss': 1.0}

  def loss(outputs, truths, sizes):
    reported = losses.localizer_losses(outputs, truths, sizes, weights)
    queries = losses.match(outputs, *losses.targets(truths, sizes))
    return sum(x for name, x in reported.items() if name.endswith('_loss')), (reported, queries)

  results = []
  with jax.enable_x64(True):
    for devices in (1, 8):
      mesh = parallel.create_mesh(devices=jax.devices()[:devices])
      with jax.set_mesh(mesh):
        arguments = parallel.global_batch((outputs, truths, sizes), mesh)
        results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(*arguments))
  one, eight = results
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-14), one, eight)
  (_, (reported, queries)), gradients = one
  assert len(reported) == 9
  assert ((queries >= 0) == (labels >= 0)[:, None]).all()
  # Only matched queries learn boxes.
  learnt = np.abs(gradients['boxes']).sum(-1) > 0
  np.testing.assert_array_equal(learnt.sum(-1), (queries >= 0).sum(-1))
