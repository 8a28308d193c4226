"""Finds objects with the exported model in this folder.

  python load_and_run.py IMAGE...

Writes IMAGE_objects.png and IMAGE_objects.json (a result file of COCO) beside each. Needs nothing
but `pip install jax flatbuffers safetensors pillow`.
"""

import json
import pathlib
import sys

from decoding import read_or_exit
from loading import load
from mask_pasting import paste_masks
import numpy as np
import overlay
from PIL import Image
from resizing import fit


def preprocess(path, steps):
  """Returns an image file, and as the model wants it: float32 [h, w, channels], (height, width)."""
  image = read_or_exit(path, steps['mode'], **steps['decoding'])
  resize, canvas = steps['resize'], steps['pad_to']
  box = resize['long_side'], resize['short_side']
  size = fit(image.size[::-1], box, resize['size'], resize['multiple'])
  filtered = Image.Resampling[resize['interpolation'].upper()]
  pixels = np.asarray(image.resize(size[::-1], filtered), np.float32)
  if steps['channels'] == 'bgr':
    pixels = pixels[..., ::-1]
  pixels = (pixels - np.float32(steps['mean'])) / np.float32(steps['std'])
  padding = [(0, side - length) for side, length in zip(canvas, size, strict=True)]
  return image, np.pad(pixels, [*padding, (0, 0)]), np.array(size, np.int32)


def run_lengths(mask):
  """A mask [h, w] as COCO's run lengths, column by column, the first ones outside of it."""
  flat = np.concatenate([[False], mask.T.ravel(), [not mask[-1, -1]]])
  ends = np.flatnonzero(flat[1:] != flat[:-1])
  return {'size': list(mask.shape), 'counts': np.diff(ends, prepend=0).tolist()}


def main(paths):
  """Writes the objects of each image over it and as JSON, and prints what is shown."""
  spec, model = load(pathlib.Path(__file__).parent)
  colors = overlay.colors(len(spec['classes']))
  for number, path in enumerate(map(pathlib.Path, paths), start=1):
    image, pixels, size = preprocess(path, spec['preprocessing'])
    found = model({'image': pixels[None], 'image_size': size[None]})
    found = {name: np.asarray(values[0]) for name, values in found.items()}
    found = {name: values[found['labels'] >= 0] for name, values in found.items()}
    boxes = found['boxes'] * (np.array(image.size * 2) / np.tile(size[::-1], 2))
    entries = [
      {
        'image_id': int(path.stem) if path.stem.isdecimal() else number,
        'category_id': spec['category_ids'][label],
        'bbox': [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
        'score': float(score),
      }
      for label, box, score in zip(found['labels'], boxes, found['scores'], strict=True)
    ]
    for index, entry in enumerate(entries if 'masks' in found else ()):
      rows = slice(index, index + 1)
      (mask,) = paste_masks(found['masks'][rows], boxes[rows], image.size[::-1])
      entry['segmentation'] = run_lengths(mask)
    path.with_name(f'{path.stem}_objects.json').write_text(json.dumps(entries) + '\n')

    shown = found['scores'] >= spec['shown_score']
    labels, scores, boxes = found['labels'][shown], found['scores'][shown], boxes[shown]
    names = [f'{spec["classes"][i]} {x:.2f}' for i, x in zip(labels, scores, strict=True)]
    picture, factor = overlay.resized(image)
    masks = None
    if 'masks' in found:
      masks = paste_masks(found['masks'][shown], boxes * factor, picture.size[::-1])
    picture = overlay.draw(picture, boxes * factor, names, colors[labels], masks)
    picture.save(path.with_name(f'{path.stem}_objects.png'))
    print(path, *names, sep='  ')


if __name__ == '__main__':
  if len(sys.argv) < 2:
    sys.exit(__doc__)
  main(sys.argv[1:])
