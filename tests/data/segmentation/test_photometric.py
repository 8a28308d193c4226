import numpy as np

from crossattn_jax.data.segmentation import photometric


def test_distortion_keeps_grey_grey_and_changes_about_fifteen_of_sixteen_images():
  rng = np.random.default_rng(0)
  image = rng.integers(40, 200, (8, 8, 3), dtype=np.uint8)
  results = [photometric.distort(image, np.random.default_rng(seed)) for seed in range(300)]
  changed = np.mean([not np.array_equal(result, image) for result in results])
  assert abs(changed - 15 / 16) < 0.05
  grey = np.repeat(image[..., :1], 3, axis=-1)
  for seed in range(20):
    result = photometric.distort(grey, np.random.default_rng(seed))
    assert np.ptp(result.astype(int), axis=-1).max() <= 1
