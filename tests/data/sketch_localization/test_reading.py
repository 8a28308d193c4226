"""Drawings of any program become the same strokes."""

import json

import numpy as np
from PIL import Image, ImageDraw
import pytest
from scipy import ndimage

from crossattn_jax.data.sketch_localization import rasters, reading

# An arrow in a frame of 255: what all pictures below show.
ARROW = [np.array([[0, 60], [255, 60]]), np.array([[180, 0], [255, 60], [180, 120]])]


def drawn(strokes, size=(300, 200), width=3, ink='black', ground='white', offset=(20, 30), scale=1):
  """A picture of strokes."""
  picture = Image.new('RGBA', size, ground)
  for stroke in strokes:
    points = [tuple(point) for point in (stroke * scale + offset).tolist()]
    ImageDraw.Draw(picture).line(points, fill=ink, width=width)
  return picture


def drawn_thinly(strokes):
  picture = Image.new('L', (256, 256))
  for stroke in strokes:
    ImageDraw.Draw(picture).line([tuple(x) for x in stroke.tolist()], fill=255)
  return np.asarray(picture) > 0


def apart(first, second):
  """How far the lines of each of two drawings are from those of the other, in the mean."""
  first, second = drawn_thinly(first), drawn_thinly(second)
  there = ndimage.distance_transform_edt(~second)[first].mean()
  return max(there, ndimage.distance_transform_edt(~first)[second].mean())


@pytest.mark.parametrize(
  'options',
  [
    {},
    {'ink': 'white', 'ground': 'black'},
    {'ink': (200, 30, 30, 255), 'ground': (0, 0, 0, 0)},
    {'ink': 'white', 'ground': (0, 0, 0, 0)},
    {'ink': (255, 220, 0, 255), 'ground': 'white'},
    {'ink': (120, 120, 120, 255), 'ground': (170, 170, 170, 255)},
    {'width': 1, 'size': (1400, 1000), 'scale': 4},
    {'width': 14},
    {'width': 1, 'size': (80, 60), 'scale': 0.25, 'offset': (5, 5)},
  ],
  ids=str,
)
def test_pictures_of_one_drawing_are_the_same_strokes(options):
  drawing = reading.from_pixels(np.asarray(drawn(ARROW, **options)))
  assert apart(drawing.strokes, ARROW) < 3.5
  points = np.concatenate(drawing.strokes)
  np.testing.assert_allclose([points.min(), points.max()], [0, 255], atol=1e-9)
  assert not drawing.doubt


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'webp'])
def test_image_files(suffix, tmp_path):
  path = tmp_path / f'arrow.{suffix}'
  drawn(ARROW, ink='white', ground='black').convert('RGB').save(path)
  drawing = reading.read(path)
  assert apart(drawing.strokes, ARROW) < 3.5
  assert 'light on dark' in drawing.notes


def test_an_area_becomes_its_outline():
  picture = Image.new('RGBA', (300, 300), 'white')
  ImageDraw.Draw(picture).rectangle((40, 40, 240, 160), fill='navy')
  drawing = reading.from_pixels(np.asarray(picture))
  frame = np.array([[0, 0], [255, 0], [255, 152], [0, 152], [0, 0]])
  assert apart(drawing.strokes, [frame]) < 2.5
  assert any('outlines' in note for note in drawing.notes)


def test_what_was_done_is_said():
  picture = drawn(ARROW, size=(600, 400), width=9, ink='white', ground=(0, 0, 0, 0))
  assert reading.from_pixels(np.asarray(picture)).notes == [
    'transparent, put on black',
    'light on dark',
    'cropped to the ink, 43% of it',
    'lines thinned, which were 9 pixels wide',
  ]


@pytest.mark.parametrize('ground', ['white', 'black', (9, 9, 9, 0)], ids=str)
def test_an_empty_drawing_is_refused(ground):
  with pytest.raises(ValueError, match='it is empty'):
    reading.from_pixels(np.asarray(Image.new('RGBA', (50, 40), ground)))


def test_a_photo_is_doubted():
  shades = np.random.RandomState(0).rand(8, 8, 3) * 255
  photo = Image.fromarray(shades.astype(np.uint8)).resize((200, 200), Image.Resampling.BICUBIC)
  drawing = reading.from_pixels(np.asarray(photo.convert('RGBA')))
  assert 'looks like a photo' in drawing.doubt


def test_svg_lines_curves_and_transforms(tmp_path):
  path = tmp_path / 'arrow.svg'
  path.write_text(
    """<svg xmlns="http://www.w3.org/2000/svg" width="100" height="100">
      <rect width="100%" height="100%" fill="white"/>
      <g transform="translate(300 7) rotate(90)"><g transform="scale(2, 2)">
        <path transform="matrix(1 0 0 1 0 0)" d="M 30 127.5 v -127.5" style="stroke: red"/>
        <polyline points="0,37.5 30,0 60,37.5"/></g></g>
      <path d="M0 0h900" display="none"/><path d="M0 0h900" style="fill:red;display:none"/>
    </svg>"""
  )
  assert apart(reading.read(path).strokes, ARROW) < 0.1


def test_a_curve_is_followed(tmp_path):
  path = tmp_path / 'circle.svg'
  path.write_text('<svg><path d="M -1 0 A 1 1 0 0 1 1 0 A 1 1 0 0 1 -1 0 z"/></svg>')
  (circle,) = reading.read(path).strokes
  radius = np.hypot(*(circle - 127.5).T)
  np.testing.assert_allclose(radius, 127.5, atol=0.2)
  assert np.abs(np.diff(circle, axis=0)).max() < 20
  np.testing.assert_array_equal(circle[0], circle[-1])


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('<svg><text>cat</text></svg>', 'turn text into paths'),
    ('<svg><g><image href="cat.png"/></g></svg>', 'it has <image>'),
    ('<svg><path d="M0 0h5"/><use href="#a"/></svg>', 'unlink clones'),
    ('<svg><path transform="turn(3)" d="M0 0h5"/></svg>', 'turn'),
    ('<svg><path transform="matrix(1 2)" d="M0 0h5"/></svg>', 'each with its numbers'),
    ('<svg><path transform="rotate(1 2)" d="M0 0h5"/></svg>', 'each with its numbers'),
    (f'<svg>{"<g>" * 3000}<path d="M0 0h5"/>{"</g>" * 3000}</svg>', 'recursion'),
    ('<svg><path d="L 3"/></svg>', 'its <path> cannot be read'),
    ('<svg><circle cx="1"/></svg>', 'its <circle> cannot be read'),
    ('<svg></svg>', 'it is empty'),
    ('<html></html>', 'outermost element is <html>'),
    ('M 0 0 h 5', 'it is no SVG'),
  ],
)
def test_what_svg_cannot_be_is_said(text, expected, tmp_path):
  path = tmp_path / 'cat.svg'
  path.write_text(text)
  with pytest.raises(ValueError, match=f'cannot read the drawing {path}: .*{expected}'):
    reading.read(path)


def test_strokes_of_quickdraw_and_stroke3(tmp_path):
  half = [[(stroke[:, 0] / 2).tolist(), (stroke[:, 1] / 2 + 9).tolist()] for stroke in ARROW]
  (tmp_path / 'arrow.json').write_text(json.dumps(half))
  raw = [[*stroke, [0] * len(stroke[0])] for stroke in half]
  (tmp_path / 'raw.json').write_text(json.dumps({'word': 'arrow', 'drawing': raw}))
  lines = [json.dumps({'drawing': drawing}) for drawing in ([[[0, 1], [0, 1]]], half)]
  (tmp_path / 'arrow.ndjson').write_text('\n'.join(lines) + '\n')
  steps = np.diff(np.concatenate([np.zeros((1, 2)), *ARROW]), axis=0)
  np.save(tmp_path / 'arrow.npy', np.c_[steps, [0, 1, 0, 0, 1]].astype(np.int16))
  for name in ('arrow.json', 'raw.json', 'arrow.ndjson:2', 'arrow.npy'):
    strokes = reading.read(f'{tmp_path}/{name}').strokes
    for stroke, expected in zip(strokes, ARROW, strict=True):
      np.testing.assert_allclose(stroke, expected, atol=1e-4, err_msg=name)
  assert 'drawing 1 of 2' in reading.read(tmp_path / 'arrow.ndjson').notes[-1]
  with pytest.raises(ValueError, match='there is no drawing 3; the file has 2'):
    reading.read(f'{tmp_path}/arrow.ndjson:3')


@pytest.mark.parametrize(
  ('drawing', 'expected'),
  [
    ([], 'no strokes'),
    ([[[], []]], 'a stroke 1 that is not'),
    ([[[3], [4]]], 'single point'),
    ([[[0, 1], [0, 1]], [[0, 1]]], 'a stroke 2 that is not'),
    ([[[0, 1], [0, 1, 2]]], 'a stroke 1 that is not'),
    ({'word': 'cat'}, 'no strokes'),
    ('cat', 'no strokes'),
    ([[[0, 1], [0, float('nan')]]], 'not finite'),
  ],
  ids=str,
)
def test_wrong_strokes_are_refused(drawing, expected):
  with pytest.raises(ValueError, match=expected):
    reading.from_quickdraw(drawing)


def test_a_dot_is_drawn():
  drawing = reading.from_quickdraw([[[0, 200], [0, 100]], [[150], [20]]])
  pixels = rasters.STYLES['release'].raster(drawing.strokes, 224)
  assert pixels[int(20 * 255 / 200), int(150 * 255 / 200)] == 255


def test_files_that_are_none(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'cat.png does not exist; expected a drawing: .*svg'):
    reading.read(tmp_path / 'cat.png')
  (tmp_path / 'cat.png').write_text('cat')
  with pytest.raises(ValueError, match=r'cannot read the drawing .*cat\.png'):
    reading.read(tmp_path / 'cat.png')
  np.save(tmp_path / 'cat.npy', np.zeros((5, 2)))
  with pytest.raises(ValueError, match=r'the shape \[5, 2\]; expected \[steps, 3\]'):
    reading.read(tmp_path / 'cat.npy')


def test_drawings_of_the_library_are_found_from_any_folder(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  cup, star = reading.find('crossattn_jax/samples/sketches/cup.png,star.png')
  assert reading.read(cup).strokes
  assert star == 'star.png'
  assert len(reading.find('crossattn_jax/samples/sketches')) > 1
