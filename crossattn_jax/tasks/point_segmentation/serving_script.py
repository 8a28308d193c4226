"""Labels coloured points with the exported model in this folder.

  python load_and_run.py FILE...

A file is a .ply whose vertices have x y z red green blue, or an .npz with `points` and `colors`, in
metres and with z upwards. Writes FILE_labels.txt (a label for each point, as the data set has them)
and FILE_classes.ply (the points in the colours of their classes) beside each. Needs nothing but
`pip install jax flatbuffers safetensors plyfile`.
"""

import pathlib
import sys

from loading import load
import numpy as np
import point_files
import points


def classify(scene, spec, model):
  """Returns the class of each point by the sum of the scores of all looks at a scene."""
  scores, shapes = 0, {name: x['shape'][1:] for name, x in spec['inputs'].items()}
  for transform in spec['preprocessing']['looks']:
    voxels = points.voxelize(scene.points, np.array(transform))
    pyramid = points.Pyramid.build(voxels.cells, spec['preprocessing']['num_levels'])
    try:
      found = points.tables(pyramid, scene.colors[voxels.first], shapes)
    except ValueError as error:
      sys.exit(
        f'error: the scene has more voxels than this model takes: {error}; cut it, or export with '
        'larger --config.dataset.buckets'
      )
    logits = model({name: x[None] for name, x in found.items()})['logits'][0]
    scores = scores + np.asarray(logits)[voxels.inverse]
  return scores.argmax(axis=-1)


def main(paths):
  """Writes labels and colours of each file, and prints how much of it each class covers."""
  spec, model = load(pathlib.Path(__file__).parent)
  labels, palette = np.array(spec['labels']), np.array(spec['palette'], np.uint8)
  for path in map(pathlib.Path, paths):
    try:
      scene = point_files.read(path)
    except (ValueError, OSError) as error:
      sys.exit(f'error: cannot read {path}: {error}')
    classes = classify(scene, spec, model)
    text = '\n'.join(map(str, labels[classes].tolist()))
    path.with_name(f'{path.stem}_labels.txt').write_text(text + '\n')
    colored = scene._replace(colors=palette[classes], labels=labels[classes])
    point_files.write_ply(path.with_name(f'{path.stem}_classes.ply'), colored)
    shares = np.bincount(classes, minlength=len(spec['classes'])) / len(classes)
    best = [index for index in np.argsort(-shares)[:5] if shares[index]]
    print(path, *(f'{spec["classes"][index]} {shares[index]:.1%}' for index in best), sep='  ')


if __name__ == '__main__':
  if len(sys.argv) < 2:
    sys.exit(__doc__)
  main(sys.argv[1:])
