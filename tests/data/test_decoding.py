import io
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data import decoding, image_ops, pipeline
from crossattn_jax.data.classification import batches

LEVELS = np.linspace(0, 65_535, 64).astype(np.uint16).reshape(8, 8)


def encode(pixels, image_format, **options):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, image_format, **options)
  return file.getvalue()


def pgm(pixels, highest=65_535):
  return f'P5\n8 8\n{highest}\n'.encode() + pixels.astype('>u2').tobytes()


def png_of_16_bit_colors(pixels):
  """Pillow reads them, and does not write them."""
  rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
  header = struct.pack('>IIBBBBB', *pixels.shape[1::-1], 16, 2, 0, 0, 0)
  chunks = [(b'IHDR', header), (b'IDAT', zlib.compress(rows)), (b'IEND', b'')]
  return b'\x89PNG\r\n\x1a\n' + b''.join(
    struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    for kind, data in chunks
  )


def photo(orientation, image_format='png'):
  """A white top left corner in a black image, as the camera's chip saw it."""
  exif = Image.Exif()
  exif[0x0112] = orientation
  pixels = np.zeros((4, 6), np.uint8)
  pixels[:2, :3] = 255
  return encode(pixels, image_format, exif=exif)


def test_a_frame_of_16_bits_decodes_equally_from_every_format():
  color = np.stack([LEVELS] * 3, axis=-1)
  files = [encode(LEVELS, 'png'), encode(LEVELS, 'tiff'), pgm(LEVELS), png_of_16_bit_colors(color)]
  for data in files:
    for upright in (False, True):
      image = image_ops.decode(data, 1, upright=upright)
      np.testing.assert_array_equal(np.asarray(image), LEVELS >> 8)
  np.testing.assert_array_equal(image_ops.decode(pgm(LEVELS >> 4, 4095), 1), LEVELS >> 8)


@pytest.mark.parametrize('dtype', [np.uint16, np.int32, np.float32])
def test_levels_say_what_is_black_and_white(dtype):
  image = image_ops.decode(encode(LEVELS.astype(dtype), 'tiff'), 1, levels=(1000, 50_000))
  expected = np.clip((LEVELS.astype(float) - 1000) / 49_000, 0, 1) * 255
  np.testing.assert_array_equal(np.asarray(image), np.rint(expected))


def test_8_bits_stay_what_they_are_whatever_the_levels():
  grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
  image = image_ops.decode(encode(grey, 'png'), 1, levels=(1000, 50_000))
  np.testing.assert_array_equal(np.asarray(image), grey)


@pytest.mark.parametrize('dtype', [np.int32, np.float32])
def test_32_bits_without_levels_are_refused(dtype):
  with pytest.raises(pipeline.UnreadableError, match=r'32-bit .*set dataset\.decoding\.levels='):
    image_ops.decode(encode(LEVELS.astype(dtype), 'tiff'), 1)


def test_levels_that_are_not_finite_are_refused():
  with pytest.raises(pipeline.UnreadableError, match='not finite'):
    image_ops.decode(encode(np.full((4, 4), np.nan, np.float32), 'tiff'), 1, levels=(0, 1))


@pytest.mark.parametrize(
  ('orientation', 'size', 'corner'), [(1, (6, 4), (0, 0)), (3, (6, 4), (5, 3)), (6, (4, 6), (3, 0))]
)
def test_photos_are_turned_upright_where_asked(orientation, size, corner):
  data = photo(orientation)
  raw, upright = image_ops.decode(data, 1), image_ops.decode(data, 1, upright=True)
  assert (raw.size, raw.getpixel((0, 0))) == ((6, 4), 255)
  assert (upright.size, upright.getpixel(corner)) == (size, 255)
  assert image_ops.size_in_header(io.BytesIO(data), upright=True) == size[::-1]
  assert image_ops.size_in_header(io.BytesIO(data)) == (4, 6)


@pytest.mark.parametrize('upright', [False, True])
def test_tiff_is_turned_by_pillow_in_any_case(upright):
  data = photo(6, 'tiff')
  assert image_ops.decode(data, 1, upright=upright).size == (4, 6)
  assert image_ops.size_in_header(io.BytesIO(data), upright) == (6, 4)


@pytest.mark.parametrize(('upright', 'turned'), [(None, True), (True, True), (False, False)])
@pytest.mark.parametrize('name', ['image_folder', 'image_table'])
def test_photos_of_ones_own_are_upright_unless_told_otherwise(tmp_path, name, upright, turned):
  for label in ('a', 'b'):
    (tmp_path / 'train' / label).mkdir(parents=True)
    (tmp_path / 'train' / label / '0.png').write_bytes(photo(6))
  (tmp_path / 'train.csv').write_text('file,labels\ntrain/a/0.png,a\n')
  config = batches.default_config()
  config.update(name=name, data_dir=str(tmp_path))
  config.decoding.upright = upright
  image, _ = batches.Examples(config, 'train').decode(0)
  assert image.size == ((4, 6) if turned else (6, 4))


def test_a_huge_image_names_the_limit_and_is_read_when_it_is_raised(monkeypatch):
  data = encode(np.zeros((300, 400), np.uint8), 'png')
  with pytest.raises(pipeline.UnreadableError, match=r'400 x 300 .*decoding\.max_pixels=1000'):
    image_ops.decode(data, 1, max_pixels=1000)
  # As if the image had 20000 x 20000 pixels, beyond what Pillow itself opens.
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 500)
  monkeypatch.setattr(decoding, 'MAX_PIXELS', 1000)
  with pytest.raises(pipeline.UnreadableError, match=r'dataset\.decoding\.max_pixels=1000'):
    image_ops.decode(data, 1, max_pixels=1000)
  assert image_ops.size_in_header(io.BytesIO(data)) == (1, 1)
  decoding.allow(120_000)
  assert image_ops.size_in_header(io.BytesIO(data)) == (300, 400)
  assert image_ops.decode(data, 1, max_pixels=120_000).size == (400, 300)


@pytest.mark.parametrize('levels', [(5, 5), (1, 0), (1, 2, 3)])
def test_levels_without_a_range_are_refused(levels):
  config = batches.default_config()
  config.decoding.levels = levels
  with pytest.raises(ValueError, match=r'dataset\.decoding\.levels must be two levels'):
    batches.Examples.check(config)


@pytest.mark.parametrize(
  ('modes', 'expected'), [(('1', 'L', 'LA', 'I;16'), 'L'), (('P', 'RGB', 'RGBA'), 'RGB')]
)
def test_without_a_mode_grey_files_stay_grey(modes, expected):
  for mode in modes:
    file = io.BytesIO()
    Image.new(mode, (4, 3)).save(file, 'png')
    image = image_ops.decode(file.getvalue(), None)
    assert image.mode == expected
    np.testing.assert_array_equal(image.convert('RGB'), image_ops.decode(file.getvalue(), 3))
