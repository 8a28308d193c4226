"""Labels the pixels of images with the exported model in this folder.

  python load_and_run.py IMAGE...

Writes IMAGE_labels.png (labels as the data set has them) and IMAGE_colors.png beside each. Needs
nothing but `pip install jax flatbuffers safetensors pillow`,
or `onnxruntime pillow` for an ONNX program.
"""

import pathlib
import sys

from decoding import read_or_exit
from loading import load
import numpy as np
from PIL import Image


def preprocess(path, steps):
  """Returns an image file as the model wants it, float32 [h, w, channels], and its (w, h)."""
  image = read_or_exit(path, steps['mode'], **steps['decoding'])
  size = image.size
  height, width = steps['resize']['size']
  image = image.resize((width, height), Image.Resampling[steps['resize']['interpolation'].upper()])
  pixels = np.asarray(image, np.float32)
  if steps['channels'] == 'bgr':
    pixels = pixels[..., ::-1]
  return (pixels - np.float32(steps['mean'])) / np.float32(steps['std']), size


def main(paths):
  """Writes labels and colours of each image, and prints how much of it each class covers."""
  spec, model = load(pathlib.Path(__file__).parent)
  for path in map(pathlib.Path, paths):
    pixels, size = preprocess(path, spec['preprocessing'])
    classes = np.asarray(model({'image': pixels[None]})['logits'][0].argmax(-1)).astype(np.uint8)
    classes = np.asarray(Image.fromarray(classes).resize(size, Image.Resampling.NEAREST))
    for name, table in (('labels', spec['labels']), ('colors', spec['palette'])):
      table = np.asarray(table, np.min_scalar_type(np.max(table)))
      written = Image.fromarray(table[classes])
      written.save(path.with_name(f'{path.stem}_{name}.png'))
    shares = np.bincount(classes.ravel(), minlength=len(spec['classes'])) / classes.size
    best = [index for index in np.argsort(-shares)[:5] if shares[index]]
    print(path, *(f'{spec["classes"][index]} {shares[index]:.1%}' for index in best), sep='  ')


if __name__ == '__main__':
  if len(sys.argv) < 2:
    sys.exit(__doc__)
  main(sys.argv[1:])
