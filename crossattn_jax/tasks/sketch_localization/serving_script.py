"""Finds what sketches show with the exported model in this folder.

  python load_and_run.py IMAGE SKETCH...

A sketch is a picture, an SVG, or strokes of QuickDraw: simplified ones as .json, or stroke-3 as
.npy. All sketches are of one object. Writes IMAGE_objects.png and IMAGE_objects.json (a result file
of COCO) beside the image. Needs nothing but `pip install jax flatbuffers safetensors pillow`, and
for SVG `fonttools`.
"""

import json
import pathlib
import sys

from decoding import read_or_exit
from loading import load
import numpy as np
import overlay
from PIL import Image, ImageDraw
from resizing import fit
import strokes
from thinning import strokes_of

# The longer side of a drawing of QuickDraw.
EXTENT = 255


def normalize(pixels, steps):
  """Returns RGB levels [h, w, 3] as the model wants them, float32."""
  pixels = np.asarray(pixels, np.float32)
  if steps['channels'] == 'bgr':
    pixels = pixels[..., ::-1]
  return (pixels - np.float32(steps['mean'])) / np.float32(steps['std'])


def preprocess(path, steps):
  """Returns an image file, and as the model wants it: float32 [h, w, 3], (height, width)."""
  image = read_or_exit(path, steps['mode'], **steps['decoding'])
  resize, canvas = steps['resize'], steps['pad_to']
  box = resize['long_side'], resize['short_side']
  size = fit(image.size[::-1], box, resize['size'], resize['multiple'])
  filtered = Image.Resampling[resize['interpolation'].upper()]
  pixels = normalize(image.resize(size[::-1], filtered), steps)
  padding = [(0, side - length) for side, length in zip(canvas, size, strict=True)]
  return image, np.pad(pixels, [*padding, (0, 0)]), np.array(size, np.int32)


def read_sketch(path):
  """Returns the strokes of a sketch, [points, 2] each."""
  try:
    if path.suffix == '.npy':
      drawing = strokes.from_stroke3(np.load(path, allow_pickle=False))
    elif path.suffix == '.json':
      drawing = json.loads(path.read_text())
      drawing = drawing['drawing'] if isinstance(drawing, dict) else drawing
      drawing = strokes.from_simplified([stroke[:2] for stroke in drawing])
    elif path.suffix.lower() == '.svg':
      from svg import read as lines_of

      drawing = lines_of(path.read_bytes())
    else:
      drawing, _, doubt = strokes_of(np.asarray(read_or_exit(path, 'RGBA', upright=True)))
      if doubt:
        print(f'warning: {path}: {doubt}', file=sys.stderr)
  except ModuleNotFoundError as error:
    sys.exit(f'error: {path} needs {error.name}: pip install fonttools')
  except (ValueError, KeyError, TypeError, OSError) as error:
    sys.exit(f'error: cannot read the drawing {path}: {error}')
  return strokes.fit(strokes.with_dots(drawing), EXTENT)


def draw(drawing, style):
  """Returns strokes as the model wants them, uint8 [size, size, 3]."""
  size = style['size']
  if style['rescale']:
    drawing = strokes.fit(drawing, size, style['padding'])
  image = Image.new('L', (size, size), 255)
  pen = ImageDraw.Draw(image)
  for stroke in drawing:
    pen.line([tuple(point) for point in stroke.astype(int).tolist()], 0, style['line_width'])
  pixels = np.asarray(image)
  return np.repeat((255 - pixels if style['invert'] else pixels)[..., None], 3, axis=-1)


def main(path, *sketches):
  """Writes what the sketches show over the image and as JSON, and prints what is drawn."""
  spec, model = load(pathlib.Path(__file__).parent)
  steps, style = spec['preprocessing'], spec['preprocessing']['sketches']
  if style['count'] % len(sketches):
    sys.exit(f'error: the model takes {style["count"]} sketches, or a part that divides them')
  drawn = [normalize(draw(read_sketch(pathlib.Path(x)), style), steps) for x in sketches]
  # In the mean, sketches that are all repeated as often count as they do once.
  drawn = np.stack(drawn * (style['count'] // len(sketches)))
  path = pathlib.Path(path)
  image, pixels, size = preprocess(path, steps)
  found = model({'image': pixels[None], 'image_size': size[None], 'sketches': drawn[None]})
  found = {name: np.asarray(values[0]) for name, values in found.items()}
  found = {name: values[found['labels'] >= 0] for name, values in found.items()}
  boxes = found['boxes'] * (np.array(image.size * 2) / np.tile(size[::-1], 2))
  entries = [
    {
      'image_id': int(path.stem) if path.stem.isdecimal() else 1,
      'category_id': 1,
      'bbox': [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
      'score': float(score),
    }
    for box, score in zip(boxes, found['scores'], strict=True)
  ]
  path.with_name(f'{path.stem}_objects.json').write_text(json.dumps(entries) + '\n')

  shown = found['scores'] >= spec['shown_score']
  names = [f'{score:.2f}' for score in found['scores'][shown]]
  picture, factor = overlay.resized(image)
  palette = np.tile(overlay.colors(1), (len(names), 1))
  picture = overlay.draw(picture, boxes[shown] * factor, names, palette)
  picture.save(path.with_name(f'{path.stem}_objects.png'))
  print(path, *names, sep='  ')


if __name__ == '__main__':
  if len(sys.argv) < 3:
    sys.exit(__doc__)
  main(*sys.argv[1:])
