import functools

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax import kernels, parallel
from crossattn_jax.geometry import suppression

OPTIONS = {'iou_threshold': 0.3, 'max_boxes': 20, 'score_threshold': 0.2}


def arguments(batch=8, count=60):
  rng = np.random.RandomState(0)
  low = rng.uniform(0, 40, (batch, count, 2))
  boxes = np.concatenate([low, low + rng.uniform(5, 30, (batch, count, 2))], axis=-1)
  scores = rng.uniform(size=(batch, count)).round(2)  # Some are equal.
  return tuple(jnp.asarray(x) for x in (boxes, scores, rng.randint(0, 3, (batch, count))))


def test_each_image_keeps_on_its_device_what_it_keeps_alone():
  definition = functools.partial(suppression.non_maximum_suppression, **OPTIONS)
  alone = jax.jit(lambda boxes, scores, labels: definition(boxes, scores, labels=labels))
  expected = [alone(*image) for image in zip(*arguments(), strict=True)]
  with jax.set_mesh(parallel.create_mesh()):
    found = jax.jit(lambda *x: kernels.non_maximum_suppression(*x, **OPTIONS))(*arguments())
  np.testing.assert_array_equal(found, expected)


def test_devices_do_not_wait_for_each_other():
  suppress = jax.jit(lambda *x: kernels.non_maximum_suppression(*x, **OPTIONS))
  mesh = parallel.create_mesh()
  batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(('data', 'fsdp')))
  with jax.set_mesh(mesh):
    compiled = suppress.lower(*jax.device_put(arguments(), batch)).compile()
  for word in ('all-reduce', 'all-gather', 'collective-permute', 'all-to-all'):
    assert word not in compiled.as_text()
