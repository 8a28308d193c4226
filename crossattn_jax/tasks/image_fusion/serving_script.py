"""Fuses a visible and an infrared image with the exported model in this folder.

  python load_and_run.py VISIBLE INFRARED FUSED.png

Images of any size up to that of the exported program. Colours are those of the visible image. Needs
nothing but `pip install jax flatbuffers safetensors pillow`.
"""

import pathlib
import sys

from decoding import read_or_exit
from loading import load
import numpy as np
from PIL import Image


def read(path, steps):
  """Returns an image file as uint8 RGB [height, width, 3]."""
  return np.asarray(read_or_exit(path, steps['mode'], **steps['decoding']))


def to_luma(image, steps):
  """Returns the luma of RGB levels, [height, width]."""
  weighted = image.astype(np.int32) @ np.asarray(steps['weights'], np.int32)
  return (weighted + steps['add']) >> steps['shift']


def recolor(fused, image, own):
  """Returns fused levels with the chrominance of an image, uint8 RGB."""

  def to_bytes(values):
    return np.clip(np.rint(values), 0, 255)

  red = to_bytes(0.713 * (image[..., 0] - own.astype(float)) + 128) - 128
  blue = to_bytes(0.564 * (image[..., 2] - own.astype(float)) + 128) - 128
  colors = [fused + 1.403 * red, fused - 0.714 * red - 0.344 * blue, fused + 1.773 * blue]
  return to_bytes(np.stack(colors, axis=-1)).astype(np.uint8)


def main(visible_path, infrared_path, fused_path):
  """Writes the fused image."""
  spec, model = load(pathlib.Path(__file__).parent)
  visible, infrared = (read(path, spec['preprocessing']) for path in (visible_path, infrared_path))
  size = visible.shape[:2]
  if infrared.shape[:2] != size:
    sys.exit(f'{visible_path} and {infrared_path} differ in size: {size}, {infrared.shape[:2]}')
  height, width = spec['inputs']['visible']['shape'][1:3]
  if size[0] > height or size[1] > width:
    sys.exit(f'the exported model takes images of up to {height} x {width} pixels, not {size}')
  levels = [to_luma(image, spec['preprocessing']['luma']) for image in (visible, infrared)]
  margins = [(0, height - size[0]), (0, width - size[1])]
  inputs = [np.pad(x.astype(np.float32), margins)[None, ..., None] for x in levels]
  names = {'visible': inputs[0], 'infrared': inputs[1], 'size': np.array([size], np.int32)}
  fused = np.asarray(model(names)['fused'])[0, : size[0], : size[1], 0]
  fused = np.clip(np.rint(fused) if spec['rounding'] == 'round' else fused, 0, 255).astype(np.uint8)
  grey = (visible == visible[..., :1]).all()
  Image.fromarray(fused if grey else recolor(fused, visible, levels[0])).save(fused_path)


if __name__ == '__main__':
  if len(sys.argv) != 4:
    sys.exit(__doc__)
  main(*sys.argv[1:])
