import io

import numpy as np
from PIL import Image

from crossattn_jax.data.paired_detection import scenes
from crossattn_jax.data.scenes import shapes


def test_both_images_and_the_boxes_are_those_of_the_rendered_scene(datasets_dir):
  source = scenes.PairedScenes('shape_scenes/tiny', 'validation', datasets_dir)
  _, seed, number = source._examples[3]['id'].decode().split('_')
  scene, example = shapes.render_scene(int(seed), int(number), 64), source[3]
  for name, expected in (('rgb', scene.image), ('thermal', scene.thermal)):
    pixels = np.asarray(Image.open(io.BytesIO(example[name])), float)
    assert np.abs(pixels - expected).mean() < 5  # JPEG.
  expected = [
    (left, top, right, bottom) for top, left, bottom, right in (each.box for each in scene.objects)
  ]
  np.testing.assert_array_equal(source.annotations(3).boxes, expected)
