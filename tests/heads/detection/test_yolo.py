import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.heads.detection import anchors, yolo

GRID = anchors.SizedAnchors((8, 16), (((4, 2), (6, 6)), ((20, 8), (30, 40)))).of_input((16, 32))
MAPS = [np.ones((2, *size, 4), np.float32) for size in GRID.map_sizes]


def test_a_box_is_up_to_a_cell_from_its_own_and_up_to_four_times_its_anchor():
  logits = np.zeros((1, 20, 4))
  logits[0, 9] = [math.log(3), -math.log(3), 50, -50]  # Level 0, row 1, column 0; 6 x 6.
  logits[0, 18] = [50, -50, 0, math.log(3)]  # Level 1, column 1; 20 x 8.
  boxes = np.asarray(jax.jit(lambda x: yolo.decode_boxes(x, GRID))(logits.astype(np.float32)))[0]
  np.testing.assert_allclose(boxes[9], [4 + 4, 12 - 4, 4 * 6, 0], atol=1e-5)
  np.testing.assert_allclose(boxes[18], [24 + 16, 8 - 16, 20, 8 * 1.5**2], rtol=1e-6)
  np.testing.assert_array_equal(boxes[2], [12, 4, 4, 2])  # Untouched: the anchor.


def test_an_untrained_head_with_a_prior_expects_few_objects():
  head = yolo.YoloHead(3, 2, prior_strides=(8, 16), dtype=jnp.bfloat16)
  params = jax.jit(head.init)(jax.random.key(0), MAPS)['params']
  plain = jax.jit(yolo.YoloHead(3, 2).init)(jax.random.key(0), MAPS)['params']
  for level, stride in enumerate((8, 16)):
    added = params[f'level_{level}']['bias'] - plain[f'level_{level}']['bias']
    objectness, classes = math.log(8 / (640 / stride) ** 2), math.log(0.6 / 2.01)
    np.testing.assert_allclose(added, [0, 0, 0, 0, objectness, *[classes] * 3] * 2, rtol=1e-5)
  params['level_0']['kernel'] *= 0
  params['level_0']['bias'] = jnp.arange(16.0)
  outputs = head.apply({'params': params}, MAPS)
  assert {name: x.shape for name, x in outputs.items()} == {
    'box_logits': (2, 20, 4),
    'objectness': (2, 20),
    'logits': (2, 20, 3),
  }
  assert {x.dtype for x in outputs.values()} == {jnp.dtype('float32')}
  # Channels are those of an anchor, then of the next one.
  np.testing.assert_array_equal(outputs['box_logits'][1, :2], [[0, 1, 2, 3], [8, 9, 10, 11]])
  np.testing.assert_array_equal(outputs['objectness'][1, :2], [4, 12])
  np.testing.assert_array_equal(outputs['logits'][1, :2], [[5, 6, 7], [13, 14, 15]])


@pytest.fixture(scope='module')
def scene():
  rng = np.random.RandomState(0)
  low = rng.uniform(0, 40, (2, 60, 2))
  boxes = np.concatenate([low, low + rng.uniform(5, 30, (2, 60, 2))], axis=-1)
  objectness, classes = rng.uniform(size=(2, 60)), rng.uniform(size=(2, 60, 3))
  objectness[1] *= 0.1  # Nothing is sure enough.
  return [x.astype(np.float32) for x in (boxes, objectness, classes)]


@pytest.mark.parametrize(
  ('multi_label', 'agnostic', 'max_boxes'),
  [(True, False, 50), (False, True, 5)],
)
def test_objects_are_those_of_the_definition(scene, greedy, multi_label, agnostic, max_boxes):
  options = {'multi_label': multi_label, 'agnostic': agnostic, 'max_boxes': max_boxes}
  find = functools.partial(yolo.find_objects, score_threshold=0.3, iou_threshold=0.4, **options)
  found = jax.device_get(jax.jit(find)(*scene))
  boxes, objectness, classes = (x[0] for x in scene)
  scores = objectness[:, None] * classes
  candidates = [
    (scores[row, label], 0 if agnostic else label, boxes[row], label)
    for row in range(60)
    for label in (range(3) if multi_label else [scores[row].argmax()])
    if scores[row, label] > 0.3
  ]
  expected = greedy(candidates, 0.4)[:max_boxes]
  n = len(expected)
  assert n == 5 if max_boxes == 5 else 10 < n < 50
  np.testing.assert_allclose(found.scores[0, :n], [x[0] for x in expected], rtol=1e-6)
  np.testing.assert_array_equal(found.labels[0, :n], [x[3] for x in expected])
  np.testing.assert_array_equal(found.boxes[0, :n], [x[2] for x in expected])
  assert (found.labels[0, n:] == -1).all()
  assert (found.labels[1] == -1).all()
  assert not found.scores[1].any()


def test_the_best_candidates_alone_compete(scene):
  _, objectness, classes = scene
  find = functools.partial(yolo.find_objects, iou_threshold=1.0, max_boxes=40, max_candidates=7)
  found = jax.device_get(jax.jit(find)(*scene))
  assert ((found.labels >= 0).sum(axis=1) == 7).all()
  scores = np.sort((objectness[..., None] * classes).reshape(2, -1))[:, ::-1]
  np.testing.assert_allclose(found.scores[:, :7], scores[:, :7], rtol=1e-6)


def test_a_box_that_the_head_is_sure_of_is_found():
  outputs = {
    'box_logits': np.zeros((1, 20, 4), np.float32),
    'objectness': np.full((1, 20), -9, np.float32),
    'logits': np.full((1, 20, 3), -9, np.float32),
  }
  outputs['objectness'][0, 18], outputs['logits'][0, 18, 1] = 9, 9
  decode = jax.jit(lambda x: yolo.decode_yolo(x, GRID, max_boxes=2, score_threshold=0.25))
  found = decode(outputs)
  np.testing.assert_array_equal(found.labels, [[1, -1]])
  np.testing.assert_allclose(found.boxes[0, 0], [24 - 10, 8 - 4, 24 + 10, 8 + 4])
