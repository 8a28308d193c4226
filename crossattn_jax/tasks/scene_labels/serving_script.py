"""Says what a scene holds with the exported model in this folder.

  python load_and_run.py SCENE.npz PHOTOGRAPH...

SCENE.npz has `points` in metres with z upwards, `colors`, and `supervoxels`, a number for each
point (`crossattn_jax.geometry.supervoxels.grow` makes them). Photographs are of the same scene, in
the order in which they were taken. Writes SCENE_classes.json beside the scene, the classes that it
holds, and SCENE_classes.ply, its points in the colours of those that are found there. Needs nothing
but `pip install jax flatbuffers safetensors pillow plyfile`.
"""

import json
import pathlib
import sys

from decoding import read_or_exit
from loading import load
import numpy as np
from PIL import Image
import point_files
import points


def read_scene(path, spec):
  """Returns the points of a file, with supervoxels where the model looks at these."""
  try:
    scene = point_files.read(path)
  except (ValueError, OSError) as error:
    sys.exit(f'error: cannot read {path}: {error}')
  if scene.supervoxels is None and 'supervoxel' in spec['inputs']:
    sys.exit(f'error: {path} has no array `supervoxels`, a number for each point')
  return scene


def points_of(scene, voxels, spec):
  """Returns what the model takes of the points of a scene."""
  shapes = {name: x['shape'][1:] for name, x in spec['inputs'].items()}
  ids = scene.supervoxels[voxels.first]
  position = points.means(voxels.cells, ids).astype(np.float32)
  pyramid = points.Pyramid.build(voxels.cells, spec['preprocessing']['num_levels'])
  try:
    return {
      **points.tables(pyramid, scene.colors[voxels.first], shapes),
      **points.pad({'supervoxel': ids.astype(np.int32), 'position': position}, shapes),
      'num_tokens': np.int32(len(position)),
    }
  except ValueError as error:
    sys.exit(
      f'error: the scene is larger than this model takes: {error}; cut it, or export with larger '
      '--config.dataset.buckets or --config.dataset.max_supervoxels'
    )


def photographs(paths, spec):
  """Returns photographs as the model wants them: float32 [views, height, width, 3]."""
  views, height, width, _ = spec['inputs']['images']['shape'][1:]
  if len(paths) != views:
    sys.exit(f'error: the model looks at {views} photographs of a scene, not at {len(paths)}')
  steps, found = spec['preprocessing']['photographs'], []
  for path in paths:
    image = read_or_exit(path, 'RGB', upright=True)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32)
    if steps['channels'] == 'bgr':
      pixels = pixels[..., ::-1]
    found.append((pixels - np.float32(steps['mean'])) / np.float32(steps['std']))
  return np.stack(found)


def labels_of(cams, is_held, threshold):
  """Returns the class of each supervoxel, -1 for none: one of those that the scene holds."""
  scores = cams * is_held
  labels = np.where(scores.max(axis=1) < threshold, -1, scores.argmax(axis=1))
  for label in np.flatnonzero(is_held):  # Each is somewhere.
    labels[scores[:, label].argmax()] = label
  return labels


def main(path, *images):
  """Writes what a scene holds and where, and prints it."""
  spec, model = load(pathlib.Path(__file__).parent)
  path, inputs = pathlib.Path(path), {}
  scene = read_scene(path, spec)
  voxels = points.voxelize(scene.points, np.array(spec['preprocessing']['transform']))
  if 'windows' in spec['inputs']:
    inputs = points_of(scene, voxels, spec)
  if 'images' in spec['inputs']:
    inputs['images'] = photographs(images, spec)
  said = model({name: np.asarray(x)[None] for name, x in inputs.items()})
  said = {name: np.asarray(x[0]) for name, x in said.items()}
  probabilities = said['probabilities']
  found = {
    spec['classes'][index]: round(float(probabilities[index]), 4)
    for index in np.argsort(-probabilities, kind='stable')
    if probabilities[index] >= 0.5
  }
  path.with_name(f'{path.stem}_classes.json').write_text(json.dumps(found) + '\n')
  if 'cams' in said:
    cams = said['cams'][: inputs['num_tokens']]
    labels = labels_of(cams, probabilities >= 0.5, spec['threshold'])
    labels = labels[scene.supervoxels[voxels.first]][voxels.inverse].astype(np.int32)
    colored = scene._replace(colors=np.array(spec['palette'], np.uint8)[labels], labels=labels)
    point_files.write_ply(path.with_name(f'{path.stem}_classes.ply'), colored)
  print(path, *(f'{name} {probability:.2f}' for name, probability in found.items()), sep='  ')


if __name__ == '__main__':
  if len(sys.argv) < 2:
    sys.exit(__doc__)
  main(*sys.argv[1:])
