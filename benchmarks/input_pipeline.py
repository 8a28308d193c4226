r"""Rate of the ImageNet training pipeline on generated JPEGs, beside torchvision's.

  python -m benchmarks.input_pipeline --json=/tmp/input_pipeline.json

Both sides read the same files (500 x 375 pixels, drawn here) from the same folder and deliver
normalised float32 batches of 240 x 240: random resized crop, flip, two operations of RandAugment
with probability 1/2 each, random erasing. They take turns in one process, each on one thread, and
the rate is per second of processor time, which other processes on the machine disturb least. The
torchvision side runs when torchvision is installed; its RandAugment has 14 operations of its own,
drawn equally often.
"""

import argparse
from collections.abc import Callable, Iterator
import importlib.util
import json
import os
import pathlib
import statistics
import tempfile
import time

import numpy as np
from PIL import Image, ImageFilter
from rich import console, table

from crossattn_jax.data import image_ops
from crossattn_jax.data.classification import augmentation, rand_augment
from crossattn_jax.data.classification import batches as classification

WIDTH, HEIGHT = 500, 375
SIZE = 240
# Names per generated file: the order is drawn among many images, as in ImageNet.
LINKS = 100


def photo(rng: np.random.Generator, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
  """Draws an image with edges, gradients and texture."""
  coarse = rng.integers(256, size=(6, 8, 3), dtype=np.uint8)
  image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
  patches = rng.integers(256, size=(25, 33, 3), dtype=np.uint8)
  edges = Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST)
  texture = rng.normal(128, 40, (height, width, 3)).clip(0, 255).astype(np.uint8)
  image = Image.blend(image, edges, 0.3)
  return Image.blend(image, Image.fromarray(texture).filter(ImageFilter.GaussianBlur(0.7)), 0.35)


def write_jpegs(folder: pathlib.Path, count: int) -> int:
  """Draws images; returns their mean size in bytes."""
  folder.mkdir(parents=True)
  rng = np.random.default_rng(0)
  sizes = []
  for index in range(count):
    path = folder / f'{index:04d}.jpg'
    photo(rng).save(path, quality=90)
    sizes.append(path.stat().st_size)
    for link in range(1, LINKS):
      os.link(path, folder / f'{index:04d}_{link}.jpg')
  return round(statistics.mean(sizes))


def pipeline_config(data_dir: str):
  config = classification.default_config()
  config.name = 'image_folder'
  config.data_dir = data_dir
  config.image_size = (SIZE, SIZE)
  return config


def our_batches(data_dir: str, batch_size: int) -> Iterator[np.ndarray]:
  examples = classification.Examples(pipeline_config(data_dir), 'train')
  batches = examples.train_stream(seed=0).batch(batch_size)
  for index in range(len(batches)):
    yield batches[index]['image']


def torchvision_batches(data_dir: str, batch_size: int) -> Iterator:
  import torch
  from torch.utils import data
  from torchvision import datasets, transforms

  torch.set_num_threads(1)
  torch.manual_seed(0)
  bicubic = transforms.InterpolationMode.BICUBIC
  # Magnitude 9 of 10 is bin 27 of torchvision's 31.
  one_op = transforms.RandAugment(1, 27, interpolation=bicubic, fill=[124, 116, 104])
  transform = transforms.Compose(
    [
      transforms.RandomResizedCrop(SIZE, interpolation=bicubic),
      transforms.RandomHorizontalFlip(),
      transforms.RandomApply([one_op], 0.5),
      transforms.RandomApply([one_op], 0.5),
      transforms.ToTensor(),
      transforms.Normalize(classification.IMAGENET_MEAN, classification.IMAGENET_STD),
      transforms.RandomErasing(0.25, value='random'),
    ]
  )
  folder = datasets.ImageFolder(os.path.join(data_dir, 'train'), transform)
  while True:
    loader = data.DataLoader(folder, batch_size, shuffle=True, drop_last=True)
    for images, _ in loader:
      yield images


def seconds_per_image(batches: Iterator, num_batches: int, batch_size: int) -> float:
  start = time.process_time()
  for _ in range(num_batches):
    next(batches)
  return (time.process_time() - start) / (num_batches * batch_size)


def stage_times(paths: list[pathlib.Path], rounds: int) -> dict[str, float]:
  """Milliseconds of processor time per image of each step of the pipeline."""
  rng = np.random.default_rng(0)
  config = classification.default_config()
  times: dict[str, float] = {}

  def timed(name: str, function: Callable, items: list) -> list:
    start = time.process_time()
    results = [function(item) for item in items]
    elapsed = 1e3 * (time.process_time() - start) / (rounds * len(items))
    times[name] = times.get(name, 0.0) + elapsed
    return results

  def crop(image: Image.Image) -> Image.Image:
    box = augmentation.random_resized_crop(*image.size, rng)
    return image_ops.resize(image.crop(box), (SIZE, SIZE), 'bicubic')

  for _ in range(rounds):
    data = timed('read', pathlib.Path.read_bytes, paths)
    images = timed('decode', lambda data: image_ops.decode(data, 3), data)
    images = timed('crop and resize', crop, images)
    images = timed('flip', lambda image: augmentation.random_flip(image, rng, 0.5), images)
    images = timed(
      'RandAugment',
      lambda image: rand_augment.rand_augment(image, rng, fill=(124, 116, 104)),
      images,
    )
    arrays = timed(
      'normalise', lambda image: image_ops.normalize(image, config.mean, config.std), images
    )
    timed('random erasing', lambda array: augmentation.random_erasing(array, rng), arrays)
    timed('batch', np.stack, [arrays])
  times['batch'] /= len(paths)
  return times


def parallel_rate(data_dir: str, batch_size: int, num_batches: int, **options) -> float:
  """Images per second of wall time of `train_batches` with threads or worker processes."""
  config = pipeline_config(data_dir)
  config.update(options)
  examples = classification.Examples(config, config.train_split)
  iterator = iter(examples.train_batches(batch_size=batch_size, seed=0))
  # The batches that are made while the workers start are not counted.
  for _ in range(2 * (config.prefetch + 1) * max(1, config.num_workers)):
    next(iterator)
  start = time.perf_counter()
  for _ in range(num_batches):
    next(iterator)
  elapsed = time.perf_counter() - start
  iterator.close()
  return num_batches * batch_size / elapsed


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--images', type=int, default=128, help='number of generated JPEGs')
  parser.add_argument('--rounds', type=int, default=10, help='turns of each side')
  parser.add_argument('--batch_size', type=int, default=32)
  parser.add_argument('--json', help='file for the figures')
  arguments = parser.parse_args()
  cores = os.cpu_count() or 1

  with tempfile.TemporaryDirectory() as data_dir:
    folder = pathlib.Path(data_dir) / 'train' / 'only'
    mean_bytes = write_jpegs(folder, arguments.images)
    sides = {'crossattn_jax': our_batches(data_dir, arguments.batch_size)}
    if importlib.util.find_spec('torchvision'):
      sides['torchvision'] = torchvision_batches(data_dir, arguments.batch_size)
    per_round = max(1, arguments.images // arguments.batch_size)
    for batches in sides.values():
      next(batches)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
      for name, batches in sides.items():
        seconds[name].append(seconds_per_image(batches, per_round, arguments.batch_size))
    stages = stage_times(sorted(folder.glob('????.jpg')), rounds=3)
    parallel = {
      f'{cores} threads': {'num_threads': cores},
      f'{cores} worker processes': {'num_workers': cores, 'num_threads': 1},
    }
    wall = {
      name: parallel_rate(data_dir, arguments.batch_size, 4 * per_round, **options)
      for name, options in parallel.items()
    }

  figures = {
    'image': f'{WIDTH}x{HEIGHT} JPEG, {mean_bytes} bytes on average',
    'cores': cores,
    'images_per_core_second': {
      name: 1 / statistics.median(values) for name, values in seconds.items()
    },
    'stage_milliseconds': stages,
    'images_per_second': wall,
  }
  if 'torchvision' in seconds:
    # Of each round, so that a slow spell of the machine falls on both sides.
    ratios = [
      theirs / ours
      for ours, theirs in zip(seconds['crossattn_jax'], seconds['torchvision'], strict=True)
    ]
    figures['ratio'] = {
      'median': statistics.median(ratios),
      'min': min(ratios),
      'max': max(ratios),
      'rounds': arguments.rounds,
    }
  show(figures)
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps(figures, indent=2) + '\n')


def show(figures: dict) -> None:
  out = console.Console()
  rates = table.Table(title=f'ImageNet training augmentation, {figures["image"]}')
  rates.add_column('pipeline')
  rates.add_column('images/s', justify='right')
  for name, rate in figures['images_per_core_second'].items():
    rates.add_row(f'{name}, per core', f'{rate:.1f}')
  for name, rate in figures['images_per_second'].items():
    rates.add_row(f'crossattn_jax, {name}, wall time', f'{rate:.1f}')
  out.print(rates)
  stages = table.Table(title='Processor time per image')
  stages.add_column('step')
  stages.add_column('ms', justify='right')
  for name, milliseconds in figures['stage_milliseconds'].items():
    stages.add_row(name, f'{milliseconds:.2f}')
  out.print(stages)
  if 'ratio' in figures:
    ratio = figures['ratio']
    out.print(
      f'crossattn_jax / torchvision: {ratio["median"]:.2f} '
      f'(min {ratio["min"]:.2f}, max {ratio["max"]:.2f} of {ratio["rounds"]} rounds)'
    )


if __name__ == '__main__':
  main()
