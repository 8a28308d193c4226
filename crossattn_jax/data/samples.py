"""The small files that ship with the library to predict for; all are made here.

`python -m crossattn_jax.data.samples` writes them into `crossattn_jax/samples`.
"""

import json
import pathlib
import tempfile

from absl import app
import numpy as np
from PIL import Image, ImageDraw

from crossattn_jax.data import sources as data_sources
from crossattn_jax.data.classification import digits, sources
from crossattn_jax.data.scene_points import point_files
from crossattn_jax.data.scenes import dataset, drawings, rooms, shapes, tones

FOLDER = pathlib.Path(__file__).parents[1] / 'samples'

# Of scenes and clips that no data set has.
_SEED = 1
_SCENES = 3
# Photographs of the room.
_VIEWS = 4
_NIGHTS = 4
# Of scenes of many shapes.
_MANY = (1, 4, 5, 11)
_CLIP = ('samples', 0)
_QUERIES = ('snow with an orange cross, a yellow square and a green star', 'a blue disc')

# Which of them data sets are like, by the task.
_OFFERED = {
  ('classification', 'digits'): 'digits',
  ('audio_classification', 'tones'): 'sounds',
  ('segmentation', 'shape_scenes'): 'scenes',
  ('detection', 'shape_scenes'): 'scenes',
  ('image_fusion', 'shape_scenes'): 'pairs',
  ('paired_detection', 'shape_scenes'): 'night',
  ('retrieval', 'shape_scenes'): 'queries.txt',
  ('sketch_localization', 'shape_scenes'): 'shapes',
  ('point_segmentation', 'room_scenes'): 'rooms',
  ('scene_labels', 'room_scenes'): 'rooms',
}


def offered(task: str, dataset: str) -> pathlib.Path | None:
  """The samples that look like a data set that is made here; None for others."""
  name = _OFFERED.get((task, data_sources.bare_name(dataset)))
  return None if name is None else FOLDER / name


def write(folder: pathlib.Path) -> None:
  """Writes digits of the test split, rendered scenes, pairs, sketches, a room, a sound, queries."""
  pairs = [f'{name}/{kind}' for name in ('pairs', 'night') for kind in ('visible', 'infrared')]
  for name in ('digits', 'scenes', 'shapes', 'sketches', 'sounds', 'rooms', *pairs):
    (folder / name).mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as data_dir:
    digits.prepare(data_dir)
    source = sources.create_source(sources.DIGITS, 'test', data_dir)
    for example in (source[index] for index in reversed(range(len(source)))):
      (folder / 'digits' / f'{example["label"]}.png').write_bytes(example['image'])
  for index in range(_SCENES):
    scene = shapes.render_scene(_SEED, index)
    visible, thermal = Image.fromarray(scene.image), Image.fromarray(scene.thermal)
    visible.save(folder / 'scenes' / f'{index}.jpg', quality=90)
    if index < 2:
      visible.save(folder / 'pairs' / 'visible' / f'{index}.jpg', quality=90)
      thermal.save(folder / 'pairs' / 'infrared' / f'{index}.jpg', quality=90)
  sets = {config.name: config for config in dataset.ShapeScenes.BUILDER_CONFIGS}
  for number, index in enumerate(_MANY):
    image = Image.fromarray(sets['sketch'].render(_SEED, index).image)
    image.save(folder / 'shapes' / f'{number}.jpg', quality=90)
  _write_sketches(folder / 'sketches')
  for index in range(_NIGHTS):
    scene = sets['night'].render(_SEED, index)
    for kind, image in (('visible', scene.image), ('infrared', scene.thermal)):
      Image.fromarray(image).save(folder / 'night' / kind / f'{index}.jpg', quality=90)
  samples, labels = tones.clip(*_CLIP)
  name = ', '.join(tones.CLASS_NAMES[label] for label in labels)
  (folder / 'sounds' / f'{name}.wav').write_bytes(tones.encode(samples))
  _write_room(folder / 'rooms')
  (folder / 'queries.txt').write_text('\n'.join(_QUERIES) + '\n')


def _write_room(folder: pathlib.Path) -> None:
  """Writes the points of a room, and photographs of it."""
  room = rooms.make_room(_SEED, 0)
  scan = rooms.scan(room, _SEED, 0)
  point_files.write_ply(folder / '0.ply', point_files.Scene(np.round(scan.points, 3), scan.colors))
  images = folder / '0' / 'images'
  images.mkdir(parents=True, exist_ok=True)
  for view in range(_VIEWS):
    image = Image.fromarray(rooms.photograph(room, _SEED, 0, view, (48, 64)))
    image.save(images / f'{view}.jpg', quality=90)


def _write_sketches(folder: pathlib.Path) -> None:
  """Writes a drawing in each of the forms that people have them in."""
  strokes = {name: drawings.drawing(_SEED, name, 0) for name in ('cup', 'house', 'fish', 'drop')}
  for name, size, paper, ink in (('cup', (400, 340), 255, 0), ('house', (320, 320), 0, 255)):
    image = Image.new('L', size, paper)
    for stroke in strokes[name]:
      ImageDraw.Draw(image).line([tuple(x) for x in (stroke + 30).tolist()], ink, 6, 'curve')
    image.save(folder / f'{name}.png')
  path = ' '.join('M' + ' '.join(f'{x},{y}' for x, y in each.tolist()) for each in strokes['fish'])
  (folder / 'fish.svg').write_text(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-5 -5 265 265">'
    f'<path d="{path}" fill="none" stroke="black" stroke-width="3"/></svg>\n'
  )
  drop = {'word': 'drop', 'drawing': [stroke.T.tolist() for stroke in strokes['drop']]}
  (folder / 'drop.ndjson').write_text(json.dumps(drop, separators=(',', ':')) + '\n')


if __name__ == '__main__':
  app.run(lambda argv: write(FOLDER))
