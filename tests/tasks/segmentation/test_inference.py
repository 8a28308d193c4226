import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.layers import resize
from crossattn_jax.tasks.segmentation import inference

IMAGES = jnp.asarray(np.random.RandomState(0).standard_normal((2, 40, 71, 3)), jnp.float32)
TILE = (25, 25)


def _network(images):
  """Its results depend on the whole tile."""
  return images[:, ::4, ::4] * images.mean((1, 2), keepdims=True) + images.max()


def _tile_by_tile(image, tile):
  """The definition, on one image without padding around it."""
  height, width, bands = image.shape
  padded = np.zeros((max(height, tile[0]), max(width, tile[1]), bands), np.float32)
  padded[:height, :width] = image
  total, count = np.zeros_like(padded), np.zeros((*padded.shape[:2], 1))
  stride = inference.tile_stride(tile[0])
  for y in inference.tile_starts(height, tile[0], stride):
    for x in inference.tile_starts(width, tile[1], stride):
      cut = padded[None, y : y + tile[0], x : x + tile[1]]
      logits = resize.resize(_network(jnp.asarray(cut)), tile, 'bilinear', align_corners=True)
      total[y : y + tile[0], x : x + tile[1]] += logits[0]
      count[y : y + tile[0], x : x + tile[1]] += 1
  return (total / count)[:height, :width]


def test_tiles_stand_where_the_original_puts_them():
  stride = inference.tile_stride(769)
  assert stride == 513
  assert inference.tile_stride(513) == 343  # ceil(342.00000000000006)
  assert inference.tile_starts(1024, 769, stride) == [0, 255]
  assert inference.tile_starts(2048, 769, stride) == [0, 513, 1026, 1279]
  assert inference.tile_starts(500, 769, stride) == [0]


@pytest.mark.parametrize('size', [(40, 71), (31, 25), (20, 60)])
def test_one_program_gives_images_of_any_size_their_own_result(size):
  run = jax.jit(functools.partial(inference.sliding_window, _network, tile=TILE))
  image = np.asarray(IMAGES[0, : size[0], : size[1]])
  canvas = np.zeros((1, 40, 71, 3), np.float32)
  canvas[0, : size[0], : size[1]] = image
  scores = run(canvas, sizes=jnp.asarray([size]))
  np.testing.assert_allclose(scores[0, : size[0], : size[1]], _tile_by_tile(image, TILE), atol=1e-5)


def test_images_of_a_batch_do_not_mix():
  network = lambda x: x[:, ::4, ::4] * x.mean((1, 2), keepdims=True)
  run = jax.jit(functools.partial(inference.sliding_window, network, tile=TILE))
  both = run(IMAGES)
  for i in range(2):
    alone = run(IMAGES[i : i + 1])
    np.testing.assert_allclose(both[i], alone[0], atol=1e-6)


def test_scaled_sizes_round_half_to_even():
  assert inference.zoomed_size((33, 50), 0.75) == (25, 38)
  assert inference.zoomed_size((34, 50), 1.25) == (42, 62)


def test_mirror_images_make_a_symmetric_prediction():
  run = jax.jit(lambda x: inference.multi_scale(_network, x, scales=(0.75, 1.0), flip=True))
  scores, mirrored = run(IMAGES), run(IMAGES[:, :, ::-1])
  np.testing.assert_allclose(scores[:, :, ::-1], mirrored, atol=1e-5)


def test_averaged_probabilities_sum_to_one():
  run = functools.partial(
    inference.multi_scale, _network, scales=(1.0, 1.5), probabilities=True, align_corners=False
  )
  scores = jax.jit(run)(IMAGES)
  np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-5)
