r"""Rate of the training stream of each task, beside a PyTorch `DataLoader` that does the same work.

  python -m benchmarks.input_streams
  python -m benchmarks.input_streams detection audio_classification --rounds=5

Reading, decoding, augmentation and batching as a recipe of each task has them, on files that are
made here: photos of 640 x 480 pixels, clips of ten seconds, rooms of 200 points per square metre.
Both sides read the same files, take turns in one process, each on one thread, and the rate is per
second of processor time. The other side (`benchmarks/torch_streams.py`) is a `Dataset` on the
operations of torchvision, Pillow and PyTorch, as its users write them. Word pieces and tables of
points have no counterpart there: these streams are measured alone. Classification is measured by
`benchmarks.input_pipeline`.
"""

import argparse
from collections.abc import Callable, Iterator
import csv
import dataclasses
import importlib
import importlib.util
import json
import pathlib
import statistics
import tempfile
import time
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import wavfile

from benchmarks import input_pipeline
from crossattn_jax import tasks
from crossattn_jax.data import examples as example_folders

WIDTH, HEIGHT, COUNT = 640, 480, 24
CLASSES = ('star', 'heart', 'fish', 'cup', 'house', 'moon', 'key', 'tree')


def write_photos(folder: pathlib.Path, seed: int = 0, gray: bool = False) -> None:
  """Draws photos: `0000.jpg` and so on."""
  folder.mkdir(parents=True)
  rng = np.random.default_rng(seed)
  for index in range(COUNT):
    image = input_pipeline.photo(rng, WIDTH, HEIGHT)
    (image.convert('L') if gray else image).save(folder / f'{index:04d}.jpg', quality=90)


def boxes_of(index: int) -> list[tuple[int, int, int, int, int]]:
  """Eight objects of a photo: class, left, top, width, height."""
  rng = np.random.default_rng(index)
  sides = rng.integers(40, 200, (8, 2))
  starts = rng.integers(0, [WIDTH, HEIGHT] - sides)
  labels = rng.integers(len(CLASSES), size=(8, 1))
  return [tuple(row) for row in np.concatenate([labels, starts, sides], axis=1).tolist()]


def write_masks(folder: pathlib.Path) -> None:
  """Photos, and masks of 19 classes in patches."""
  write_photos(folder / 'images' / 'train')
  masks = folder / 'masks' / 'train'
  masks.mkdir(parents=True)
  rng = np.random.default_rng(1)
  for index in range(COUNT):
    mask = Image.fromarray(rng.integers(19, size=(15, 20), dtype=np.uint8))
    mask.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST).save(masks / f'{index:04d}.png')
  rows = [f'{value},class {value}' for value in range(19)]
  (folder / 'classes.csv').write_text('\n'.join(['value,name', *rows, '']))


def write_boxes(folder: pathlib.Path) -> None:
  """Photos, and COCO's file of their objects."""
  write_photos(folder / 'train')
  images, annotations = [], []
  for index in range(COUNT):
    size = {'height': HEIGHT, 'width': WIDTH}
    images.append({'id': index, 'file_name': f'{index:04d}.jpg', **size})
    for label, *box in boxes_of(index):
      identity = {'id': len(annotations) + 1, 'image_id': index, 'category_id': label + 1}
      annotations.append({**identity, 'bbox': box, 'area': box[2] * box[3], 'iscrowd': 0})
  categories = [{'id': label + 1, 'name': name} for label, name in enumerate(CLASSES)]
  content = {'images': images, 'annotations': annotations, 'categories': categories}
  (folder / 'annotations').mkdir()
  (folder / 'annotations' / 'instances_train.json').write_text(json.dumps(content))


def write_pairs(folder: pathlib.Path) -> None:
  """Visible and grey infrared photos, and YOLO's files of their objects."""
  write_photos(folder / 'visible' / 'train')
  write_photos(folder / 'infrared' / 'train', seed=1, gray=True)
  labels = folder / 'labels' / 'train'
  labels.mkdir(parents=True)
  for index in range(COUNT):
    lines = [
      f'{label} {(x + w / 2) / WIDTH} {(y + h / 2) / HEIGHT} {w / WIDTH} {h / HEIGHT}\n'
      for label, x, y, w, h in boxes_of(index)
    ]
    (labels / f'{index:04d}.txt').write_text(''.join(lines))
  names = [f'  {label}: {name}' for label, name in enumerate(CLASSES)]
  (folder / 'data.yaml').write_text('\n'.join(['names:', *names, '']))


def write_sketches(folder: pathlib.Path) -> None:
  """Photos with objects, and drawings of their classes."""
  example_folders.write('sketches', folder / 'drawn', 10)
  for path in (folder / 'drawn' / 'sketches').glob('*/*.png'):
    if int(path.stem) >= 4:  # Half of four are held out.
      path.unlink()
  write_boxes(folder / 'photos')


def write_clips(folder: pathlib.Path) -> None:
  """Ten seconds of noise each, and a table."""
  rng, rows = np.random.default_rng(0), [('file', 'labels')]
  for index in range(COUNT):
    wavfile.write(
      folder / f'{index:04d}.wav', 16_000, rng.normal(0, 3000, 160_000).astype(np.int16)
    )
    rows.append((f'{index:04d}.wav', CLASSES[index % len(CLASSES)]))
  with (folder / 'train.csv').open('w', newline='') as file:
    csv.writer(file).writerows(rows)


@dataclasses.dataclass(frozen=True)
class Stream:
  """The training stream of a task.

  Attributes:
    recipe: a file in `configs/` and its argument, of whose data pipeline it is.
    name: of the data set that takes the place of the recipe's own.
    write: writes its files into a folder that is there.
    options: of `config.dataset`; '{folder}' stands for the folder.
    batch: examples of a batch.
    unit: what is counted.
  """

  recipe: str
  name: str
  write: Callable[[pathlib.Path], Any]
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  batch: int = 4
  unit: str = 'photos'


def _example(kind: str, size: int) -> Callable[[pathlib.Path], Any]:
  return lambda folder: example_folders.write(kind, folder, size)


STREAMS = {
  'segmentation': Stream('ccnet_cityscapes', 'segmentation_folder', write_masks),
  'detection': Stream('retinanet_coco', 'detection_folder', write_boxes),
  'paired_detection': Stream(
    'icafusion_flir', 'pair_folder', write_pairs, {'class_names': ()}, unit='pairs'
  ),
  'image_fusion': Stream('atfuse_msrs', 'pair_folder', write_pairs, batch=16, unit='pairs'),
  'sketch_localization': Stream(
    'sketch_localizer_quickdraw',
    'detection_folder',
    write_sketches,
    {
      'data_dir': '{folder}/photos',
      'unseen_classes': (),
      'sketches.name': 'sketch_folder',
      'sketches.data_dir': '{folder}/drawn/sketches',
      'augmentation.short_side': (480, 800),
      'augmentation.short_step': 32,
      'augmentation.crop.probability': 0.5,
    },
  ),
  'audio_classification': Stream(
    'mmvit_audioset', 'wav_folder', write_clips, {'eval_split': 'train'}, unit='clips'
  ),
  'retrieval': Stream(
    'mmca_shapes',
    'caption_folder',
    _example('captions', 60),
    {'num_regions': 10, 'eval_split': 'val'},
    batch=32,
  ),
  'point_segmentation': Stream(
    'minkunet_rooms:supervised',
    'point_folder',
    _example('points', 10),
    unit='rooms',
  ),
}


def our_batches(task: str, folder: pathlib.Path) -> Iterator[Any]:
  """Endless training batches of this library, made on this thread."""
  stream = STREAMS[task]
  recipe, _, argument = stream.recipe.partition(':')
  config = importlib.import_module(f'configs.{recipe}').get_config(*filter(None, [argument]))
  options = {'name': stream.name, 'data_dir': '{folder}', 'train_split': 'train'} | stream.options
  with config.unlocked():
    for key, value in options.items():
      value = value.format(folder=folder) if isinstance(value, str) else value
      config.update_from_flattened_dict({f'dataset.{key}': value})
  tasks.complete_config(config)
  examples = tasks.create_task(config).examples(config.dataset.train_split)
  batches = examples.train_stream(0, stream.batch).batch(stream.batch)
  for index in range(len(batches)):
    yield batches[index]


def their_batches(task: str, folder: pathlib.Path) -> Iterator[Any] | None:
  """Those of PyTorch, where there is a counterpart."""
  if not importlib.util.find_spec('torchvision'):
    return None
  from benchmarks import torch_streams

  build = torch_streams.DATASETS.get(task)
  return build and torch_streams.batches(build(folder), STREAMS[task].batch)


def seconds(batches: Iterator[Any], examples: int, batch: int) -> float:
  """Processor time of an example."""
  count = -(-examples // batch)
  start = time.process_time()
  for _ in range(count):
    next(batches)
  return (time.process_time() - start) / (count * batch)


def measure(task: str, rounds: int, examples: int) -> str:
  """A row of the table."""
  with tempfile.TemporaryDirectory() as name:
    folder, batch = pathlib.Path(name), STREAMS[task].batch
    STREAMS[task].write(folder)
    sides = our_batches(task, folder), their_batches(task, folder)
    sides = [side for side in sides if side]
    for side in sides:
      seconds(side, 2 * COUNT, batch)  # What is read once, such as drawings, is read.
    times = [[seconds(side, examples, batch) for side in sides] for _ in range(rounds)]
  rates = [f'{1 / statistics.median(side):.3g}' for side in zip(*times, strict=True)]
  ratio = '-'
  if len(sides) > 1:
    values = sorted(theirs / ours for ours, theirs in times)
    ratio = f'{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})'
  rates += ['-'] * (2 - len(rates))
  return f'| {task} | {STREAMS[task].unit} | {rates[0]} | {rates[1]} | {ratio} |'


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('tasks', nargs='*', metavar='TASK', help=f'of {", ".join(STREAMS)}; or all')
  parser.add_argument('--rounds', type=int, default=7, help='turns of each side')
  parser.add_argument('--examples', type=int, default=16, help='of each turn')
  arguments = parser.parse_args()
  unknown = set(arguments.tasks) - set(STREAMS)
  if unknown:
    parser.error(f'no stream of {", ".join(sorted(unknown))}; there are {", ".join(STREAMS)}')
  print('| task | of | crossattn_jax, 1/s | PyTorch, 1/s | ratio |\n|---|---|---|---|---|')
  for task in arguments.tasks or STREAMS:
    print(measure(task, arguments.rounds, arguments.examples), flush=True)


if __name__ == '__main__':
  main()
