"""Finds objects in an RGB and a thermal image with the exported model in this folder.

  python load_and_run.py RGB THERMAL

Writes RGB_objects.png, both images with their objects, and RGB_objects.json (a result file of COCO)
beside the first one. Needs nothing but `pip install jax flatbuffers safetensors pillow`.
"""

import json
import pathlib
import sys

from decoding import read_or_exit
from loading import load
import numpy as np
import overlay
from PIL import Image
from placement import Letterbox


def read(path, steps):
  """Returns an image file as uint8 RGB [height, width, 3]."""
  return np.asarray(read_or_exit(path, steps['mode'], **steps['decoding']))


def preprocess(image, placed, steps):
  """Returns an image as the model wants it, float32 [height, width, 3]."""
  pixels = placed.image(image, area=True).astype(np.float32)
  if steps['channels'] == 'bgr':
    pixels = pixels[..., ::-1]
  return (pixels - np.float32(steps['mean'])) / np.float32(steps['std'])


def main(rgb_path, thermal_path):
  """Writes the objects of the pair over it and as JSON, and prints what is shown."""
  spec, model = load(pathlib.Path(__file__).parent)
  steps = spec['preprocessing']
  rgb, thermal = (read(path, steps) for path in (rgb_path, thermal_path))
  if rgb.shape != thermal.shape:
    sys.exit(f'{rgb_path} and {thermal_path} differ in size: {rgb.shape[:2]}, {thermal.shape[:2]}')
  placed = Letterbox(rgb.shape[:2], tuple(steps['pad_to']))
  images = {'rgb': rgb, 'thermal': thermal}
  found = model({name: preprocess(x, placed, steps)[None] for name, x in images.items()})
  found = {name: np.asarray(values[0]) for name, values in found.items()}
  found = {name: values[found['labels'] >= 0] for name, values in found.items()}
  boxes = (found['boxes'] - np.tile(placed.offset[::-1], 2)) / placed.scale
  boxes = np.clip(boxes, 0, np.tile(rgb.shape[1::-1], 2))
  path = pathlib.Path(rgb_path)
  entries = [
    {
      'image_id': int(path.stem) if path.stem.isdecimal() else 1,
      'category_id': spec['category_ids'][label],
      'bbox': [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
      'score': float(score),
    }
    for label, box, score in zip(found['labels'], boxes, found['scores'], strict=True)
  ]
  path.with_name(f'{path.stem}_objects.json').write_text(json.dumps(entries) + '\n')

  shown = found['scores'] >= spec['shown_score']
  labels, scores, boxes = found['labels'][shown], found['scores'][shown], boxes[shown]
  names = [f'{spec["classes"][i]} {x:.2f}' for i, x in zip(labels, scores, strict=True)]
  colors = overlay.colors(len(spec['classes']))[labels]
  pictures = []
  for image in images.values():
    picture, factor = overlay.resized(Image.fromarray(image))
    pictures.append(np.asarray(overlay.draw(picture, boxes * factor, names, colors)))
  picture = Image.fromarray(np.concatenate(pictures, axis=1))
  picture.save(path.with_name(f'{path.stem}_objects.png'))
  print(rgb_path, *names, sep='  ')


if __name__ == '__main__':
  if len(sys.argv) != 3:
    sys.exit(__doc__)
  main(*sys.argv[1:])
