import numpy as np

from crossattn_jax.data.image_fusion import colors


def test_luma_of_grey_is_itself_and_colours_survive_their_own_luma():
  grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
  np.testing.assert_array_equal(colors.luma(np.repeat(grey[..., None], 3, axis=-1)), grey)
  assert colors.is_grey(np.repeat(grey[..., None], 3, axis=-1))
  rng = np.random.default_rng(0)
  image = rng.integers(60, 200, (9, 7, 3)).astype(np.uint8)
  assert not colors.is_grey(image)
  expected = np.rint(image @ [0.299, 0.587, 0.114])
  assert np.abs(colors.luma(image) - expected).max() <= 1
  back = colors.recolor(colors.luma(image), image).astype(int)
  assert np.abs(back - image).max() <= 2
