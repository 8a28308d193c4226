import io

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data import image_ops, pipeline


def encode(image: Image.Image, image_format: str, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, image_format, **options)
  return file.getvalue()


def test_every_mode_becomes_rgb_or_grey():
  color = Image.new('RGB', (5, 4), (200, 100, 50))
  grey = Image.new('L', (5, 4), 77)
  cases = [
    (encode(color, 'png'), (200, 100, 50)),
    (encode(color.quantize(4), 'png'), (200, 100, 50)),
    (encode(Image.new('RGBA', (5, 4), (200, 100, 50, 10)), 'png'), (200, 100, 50)),
    (encode(Image.new('CMYK', (5, 4), (55, 155, 205, 0)), 'tiff'), (200, 100, 50)),
    (encode(grey, 'png'), (77, 77, 77)),
    (encode(Image.fromarray(np.full((4, 5), 77 * 256 + 3, np.uint16)), 'png'), (77, 77, 77)),
    (encode(Image.new('1', (5, 4), 1), 'png'), (255, 255, 255)),
  ]
  for data, expected in cases:
    image = image_ops.decode(data, 3)
    assert (image.mode, image.size, image.getpixel((0, 0))) == ('RGB', (5, 4), expected)
  assert image_ops.decode(encode(grey, 'png'), 1).mode == 'L'


@pytest.mark.filterwarnings('ignore::UserWarning')  # Pillow's comments on damaged TIFF files.
@pytest.mark.parametrize('image_format', ['png', 'jpeg', 'gif', 'webp', 'tiff', 'bmp'])
def test_damaged_files_raise_one_kind_of_error(image_format):
  rng = np.random.default_rng(0)
  pixels = rng.integers(256, size=(16, 20, 3), dtype=np.uint8)
  data = encode(Image.fromarray(pixels), image_format)
  failures = 0
  for _ in range(100):
    damaged = bytearray(data)
    for position in rng.integers(len(data), size=4):
      damaged[position] = rng.integers(256)
    try:
      image_ops.decode(bytes(damaged[: rng.integers(len(data))]), 3)
    except pipeline.UnreadableError:
      failures += 1
  assert failures > 50


# Pillow's own resize of the whole image, then the crop that the recipe names: (width, height) of
# the image, size of the crop, size after resizing, left and top of the crop.
GEOMETRIES = [
  ((500, 375), (240, 240), 0.875, (365, 274), (62, 17)),  # int(274 * 500 / 375) = 365
  ((375, 500), (240, 240), 0.875, (274, 365), (17, 62)),
  ((500, 375), (224, 224), 0.875, (341, 256), (58, 16)),
  ((500, 375), (408, 408), 1.0, (544, 408), (68, 0)),
  ((240, 240), (240, 240), 0.875, (274, 274), (17, 17)),
  ((30, 400), (240, 240), 0.875, (274, 3653), (17, 1706)),  # (3653 - 240) / 2 rounds half to even
  ((500, 375), (160, 320), 0.875, (365, 273), (22, 56)),  # (273 - 160) / 2 = 56.5
  ((500, 375), (320, 160), 0.875, (486, 365), (163, 22)),
]


@pytest.mark.parametrize(('image_size', 'size', 'fraction', 'resized', 'corner'), GEOMETRIES)
def test_evaluation_crop_has_the_geometry_of_the_recipe(
  image_size, size, fraction, resized, corner
):
  pixels = np.random.default_rng(0).integers(256, size=(*image_size[::-1], 3), dtype=np.uint8)
  image = Image.fromarray(pixels)
  left, top = corner
  expected = image.resize(resized, Image.Resampling.BICUBIC)
  expected = expected.crop((left, top, left + size[1], top + size[0]))
  result = image_ops.evaluation_crop(image, size, fraction)
  assert result.size == (size[1], size[0])
  np.testing.assert_array_equal(np.asarray(result), np.asarray(expected))


def test_resize_shrinks_with_antialiasing():
  # A checkerboard of single pixels averages to grey; sampling without a wider filter would not.
  board = np.indices((64, 64)).sum(0) % 2 * 255
  small = image_ops.resize(Image.fromarray(board.astype(np.uint8)), (8, 8), 'bicubic')
  np.testing.assert_allclose(np.asarray(small), 127.5, atol=2)


def test_normalize_is_the_formula_in_float32_and_denormalize_its_inverse():
  pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
  image = Image.merge('RGB', [Image.fromarray(np.roll(pixels, k)) for k in range(3)])
  mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  result = image_ops.normalize(image, mean, std)
  assert result.dtype == np.float32
  expected = (np.asarray(image).astype(np.float64) / 255 - mean) / std
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(image_ops.denormalize(result, mean, std), np.asarray(image))


def test_files_that_are_no_images_are_refused_in_words():
  for data, message in ((b'hello', 'in no image format that Pillow knows'), (b'', 'empty')):
    with pytest.raises(pipeline.UnreadableError, match=f'the file is {message}$'):
      image_ops.decode(data, 3)
