"""Classifies images with the exported model in this folder: python load_and_run.py IMAGE...

Needs nothing but `pip install jax flatbuffers safetensors pillow`,
or `onnxruntime pillow` for an ONNX program.
"""

import pathlib
import sys

from decoding import read_or_exit
from loading import load
import numpy as np
from PIL import Image


def preprocess(path, steps):
  """Returns an image file as the model wants it, float32 [height, width, channels]."""
  image = read_or_exit(path, steps['mode'], **steps['decoding'])
  height, width = steps['resize']['size']
  if steps['resize']['keep_proportions']:
    width, height = (
      max(width, int(height * image.width / image.height)),
      max(height, int(width * image.height / image.width)),
    )
  image = image.resize((width, height), Image.Resampling[steps['resize']['interpolation'].upper()])
  height, width = steps['crop']['size']
  left, top = round((image.width - width) / 2), round((image.height - height) / 2)
  image = image.crop((left, top, left + width, top + height))
  pixels = np.asarray(image, np.float32).reshape(height, width, -1) / np.float32(255)
  return (pixels - np.float32(steps['mean'])) / np.float32(steps['std'])


def main(paths):
  """Prints the five best classes of each image."""
  spec, model = load(pathlib.Path(__file__).parent)
  images = np.stack([preprocess(path, spec['preprocessing']) for path in paths])
  logits = np.asarray(model({'image': images})['logits'])
  scores = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
  if spec['scores'] == 'sigmoid':
    scores = np.exp(-np.logaddexp(0, -logits))
  for path, row in zip(paths, scores, strict=True):
    best = np.argsort(-row)[:5]
    print(path, *(f'{spec["classes"][index]} {row[index]:.1%}' for index in best), sep='  ')


if __name__ == '__main__':
  if len(sys.argv) < 2:
    sys.exit(__doc__)
  main(sys.argv[1:])
